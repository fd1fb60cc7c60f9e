"""Parts of a lab's own, which isaseg trains by their names; see README.md."""
