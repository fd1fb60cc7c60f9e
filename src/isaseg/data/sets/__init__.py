"""One small file a data set."""
