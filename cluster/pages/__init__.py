"""Parts of the run's report that have a file of their own."""
