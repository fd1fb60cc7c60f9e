"""Tests of data/sets."""
