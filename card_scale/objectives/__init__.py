"""Training objectives: what is corrupted, what is predicted, with which weight, and all that follows from it."""
