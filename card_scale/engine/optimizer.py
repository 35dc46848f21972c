"""AdamW with an optional moving average of the weights, the same object under every engine."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from card_scale.config import OptimizerConfig


def fused() -> bool:
    """Return whether one kernel makes the update. On a CPU that kernel rounds the ends of a buffer otherwise than the
    rest (torch 2.13), so that two copies of an embedding, cut at other places, would drift apart."""
    return torch.cuda.is_available()


class AdamW(torch.optim.AdamW):
    """torch's AdamW that also keeps ``ema``, an exponential moving average of the weights, as one more state tensor.

    As a state next to ``exp_avg`` it is sharded, saved and resharded by whatever handles the moments.
    """

    def __init__(self, groups: list[dict], config: OptimizerConfig, *, may_be_fused: bool = True):
        one_kernel = (may_be_fused and fused()) or None
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=one_kernel)
        self.ema_decay = config.ema
        self.refusal: Callable[[], Tensor] | None = None
        """Asked before every update: 1 (float32 scalar, on the weights' device) where nothing is to change."""

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
        """Update the weights, then their moving average; neither they nor the moments where the update is refused."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        self.ensure_state(weights)
        # Fused, torch's own way to leave out an update without asking the device: GradScaler's.
        refused = None if self.refusal is None else self.refusal()
        if refused is not None and weights:
            # Waits where weights are offloaded: torch would copy it without waiting, and read what is not there yet.
            refused = refused.to(weights[0].device)
        if self.defaults["fused"]:
            self.found_inf = refused
        elif refused:
            return None
        result = super().step(closure)
        if self.ema_decay:
            share = 1.0 - self.ema_decay
            weight_of = share if refused is None else share * (1.0 - refused)
            for weight in weights:
                self.state[weight]["ema"].lerp_(weight, weight_of)
        return result

    @torch.no_grad()
    def ensure_state(self, weights: Iterable[Tensor]) -> None:
        """Create the state of those weights that have none, as before the first update."""
        for weight in weights:
            if not self.state[weight]:
                # AdamW takes a non-empty state for an initialised one, so it must be created whole.
                self.create_state([weight], 0)
                if self.ema_decay:
                    self.state[weight]["ema"].copy_(weight)
