"""One run, from configuration to folder."""
