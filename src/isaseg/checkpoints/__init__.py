"""Checkpoint files: ours, published ones, and what to load of them."""
