"""Checkpoints in layout-independent coordinates: snapshot, write, commit; read without an engine."""
