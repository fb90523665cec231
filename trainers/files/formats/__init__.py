"""One file for each format that is more than lines: how its records are found, and what each of them says."""
