"""Packed rows of token ids, their order, and how they reach the workers."""
