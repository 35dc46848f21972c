"""The names of the ways to decode a model, of which an objective lists its own, and of their options."""

from collections.abc import Mapping
from types import MappingProxyType

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ar": (),
        "self_verified": ("drafts", "candidates", "copies", "leniency"),
        "card": ("drafts", "tau", "max_passes", "leftmost"),
        "bd3lm": ("max_passes",),
        "mdlm": ("max_passes",),
        "armd_strided": ("strides",),
    }
)
"""What each method looks at beside sampling; what it does: card_scale/generation/methods.py."""

METHODS = tuple(OPTIONS)
