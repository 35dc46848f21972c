"""How much of the logits is held at a time where it is not all. Imports nothing: estimates of memory ask it too."""

PART_ELEMENTS = 2**28
"""Logits of a part: half a gibibyte of bfloat16."""
