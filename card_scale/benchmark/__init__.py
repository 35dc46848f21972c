"""Measurements of the training step."""
