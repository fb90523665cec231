"""Text to ids and back: tokenizers of our own and of others, vocabulary that grows, the chat format."""
