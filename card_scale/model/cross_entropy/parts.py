"""How much of the logits is held at a time where it is not all. Imports nothing: estimates of memory ask it too."""

PART_ELEMENTS = 2**28
"""Logits of a part: half a gibibyte of bfloat16."""

LARGE_SHARE = 16
"""Logits above this part of a GPU's memory are not held all at once unasked."""


def most_at_once(device_bytes: float, item_bytes: int) -> int:
    """Return how many logits of so many bytes a GPU with ``device_bytes`` of memory holds at once unasked."""
    return max(PART_ELEMENTS, int(device_bytes // LARGE_SHARE // item_bytes))
