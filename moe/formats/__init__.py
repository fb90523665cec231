"""Models on disk: Hugging Face folders and GGUF files in and out, upcycling, certificates."""
