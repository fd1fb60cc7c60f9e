"""What a run folder holds: history, facts, pictures, loggers."""
