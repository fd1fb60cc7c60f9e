"""Tests of data/tools."""
