"""Where a run lives: the Ray cluster, the run directory, storage, tracking and the pipeline. No model code."""
