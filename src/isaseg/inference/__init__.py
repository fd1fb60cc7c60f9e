"""Applying a network: windows and scales, labels, scores, evaluation, prediction, export."""
