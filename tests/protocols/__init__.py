"""Tests of protocols: what the sources say is in the JSON files, each value with the file and line that says it."""
