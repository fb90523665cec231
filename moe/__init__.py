"""The model and everything that computes with it: decoder, tokenizer, chat format, generation. Torch, and no Ray."""
