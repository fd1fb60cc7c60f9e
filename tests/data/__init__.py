"""Tests of isaseg.data."""
