"""Scaling laws of training runs, fits that say what they identify, and their reports: numpy over tables."""

from card_scale.laws.formulas import chinchilla, data_constrained

__all__ = ["chinchilla", "data_constrained"]
