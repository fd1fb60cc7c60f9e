"""Compares runs from their folders alone. Without torch, except for `reach`: it must start fast."""
