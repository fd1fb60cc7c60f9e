"""Compares runs from their folders alone. Without torch, except for `bounds` and `reach`: it must start fast."""
