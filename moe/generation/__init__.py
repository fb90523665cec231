"""Decoding: the engine, log-probabilities of given tokens, int8 weights."""
