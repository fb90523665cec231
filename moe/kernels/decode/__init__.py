"""Decoding on the CPU: one call in C for the next logits of all sequences."""
