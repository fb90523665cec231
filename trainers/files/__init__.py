"""Readers of what users bring and of what earlier stages wrote."""
