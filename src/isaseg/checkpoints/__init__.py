"""Checkpoint files: ours and published ones, read, described and written."""
