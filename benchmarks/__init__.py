"""Measurements: ours beside other code bases, in one run."""
