"""The small corpora that the default runs use, and the domain of the demo."""
