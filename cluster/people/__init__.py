"""What people say, kept beside a run's stages: one kind of file for it, and the places that they give to answers."""
