"""What the loop carries from one iteration to the next beside the actors' state; saved with each checkpoint."""
