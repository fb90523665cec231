"""From records to documents worth learning from: steps, duplicates, and what became of each."""
