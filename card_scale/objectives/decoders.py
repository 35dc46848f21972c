"""The names of the ways to decode a model, of which an objective lists its own. Imports nothing."""

METHODS = ("ar", "self_verified", "card", "bd3lm", "mdlm", "armd")
"""What each of them does: card_scale/generation/methods.py."""
