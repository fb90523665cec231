"""What a model is asked and when an answer is good: the seam to a domain, and the domain of any language."""
