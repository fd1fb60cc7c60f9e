"""The commands, one file each; `isaseg NAME` and `src/NAME.py` run the same `main`."""
