"""AdamW with an optional moving average of the weights, the same object under every engine."""

from collections.abc import Iterable

import torch
from torch import Tensor

from card_scale.config import OptimizerConfig


class AdamW(torch.optim.AdamW):
    """torch's AdamW that also keeps ``ema``, an exponential moving average of the weights, as one more state tensor.

    As a state next to ``exp_avg`` it is sharded, saved and resharded by whatever handles the moments.
    """

    def __init__(self, groups: list[dict], config: OptimizerConfig):
        super().__init__(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True if torch.cuda.is_available() else None
        )
        self.ema_decay = config.ema

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Names of the state tensors that have a weight's shape."""
        return ("exp_avg", "exp_avg_sq", "ema") if self.ema_decay else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def create_state(self, weights: Iterable[Tensor], step: int) -> None:
        """Create the state of ``weights`` as after ``step`` updates, with zero moments, to be filled by a load."""
        for weight in weights:
            on_device = weight.device if self.defaults["fused"] else torch.device("cpu")
            self.state[weight]["step"] = torch.tensor(float(step), dtype=torch.float32, device=on_device)
            for key in self.state_keys:
                self.state[weight][key] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure=None):
        """Update the weights, then their moving average."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if self.ema_decay:
            for weight in weights:
                if "ema" not in self.state[weight]:
                    # AdamW takes a non-empty state for an initialised one, so it must be created whole.
                    self.create_state([weight], 0)
                    self.state[weight]["ema"].copy_(weight)
        result = super().step(closure)
        if self.ema_decay:
            for weight in weights:
                self.state[weight]["ema"].lerp_(weight, 1.0 - self.ema_decay)
        return result
