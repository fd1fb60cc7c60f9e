"""What a pixel attends to."""
