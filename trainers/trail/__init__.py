"""From a record to all that has seen it, and from a step of any stage back to its records."""
