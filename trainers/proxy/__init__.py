"""What text is worth: small models trained on parts of it for one budget, and measured on the same clean text."""
