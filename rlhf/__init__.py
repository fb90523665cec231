"""Rankings of answers and reinforcement learning from them, on Ray actors."""
