"""The Megatron-core GPT: layers, attention, head and losses, weights by logical name."""
