"""One training step over any number of workers, and the state that it leaves."""
