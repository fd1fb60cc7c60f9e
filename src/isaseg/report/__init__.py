"""Runs beside each other, from their folders alone: tables, figures and one page. No torch: it must start fast."""
