"""The device of this process."""

import torch


def current_device() -> torch.device:
    """Return this process's device: its current GPU where one is present, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
