"""What `data.py` does: check, prepare, cache, contact sheet."""
