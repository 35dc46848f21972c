"""Parallel dimensions, process groups, device and CPU backend."""
