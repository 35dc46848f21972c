"""What a parameter's float32 states are called, by the engines that hold them and the checkpoints that store them.

The others are the optimizer's own. Imports nothing: a checkpoint is read without torch.distributed and Megatron.
"""

WEIGHT = "weight"
"""The weight itself."""
