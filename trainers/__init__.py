"""Supervised jobs, from raw text to a chat model: corpus, tokens, tasks, pretraining, fine-tuning, reward."""
