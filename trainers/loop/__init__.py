"""The loop of the supervised stages and what stands around a step."""
