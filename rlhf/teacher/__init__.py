"""Instruction data from passages: a model asks and answers about them, and what it says is sifted."""
