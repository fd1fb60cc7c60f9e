"""Nothing is lost. Tests are named after faults: R resuming, C files, N numbers, M processes, S services, X input."""
