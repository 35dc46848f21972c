"""What the training loop, the schedule and the checkpoints ask of a sharding engine."""

import abc
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from card_scale.config import Config
from card_scale.engine import gradients
from card_scale.engine.optimizer import AdamW
from card_scale.engine.selection import engine_kind
from card_scale.engine.state_keys import WEIGHT
from card_scale.model.gpt import GPT
from card_scale.model.weights import LogicalWeight

Judge = Callable[[Tensor], Tensor]
"""Global gradient norm before clipping (float32 scalar) -> 1 where the update is not to be applied, else 0."""


class Stage(nn.Module):
    """What Megatron's schedule sees of a model chunk.

    ``DeepSpeedEngine.config`` is a dictionary (deepspeed 0.19.8) and would shadow the Megatron configuration that the
    schedule asks for. An ``nn.Module``, because the interleaved schedule asserts one (megatron-core 0.16.1); the chunk
    is hidden in a tuple so that it is not registered a second time.
    """

    def __init__(self, chunk: GPT, forward):
        super().__init__()
        self.config, self.model_type = chunk.config, chunk.model_type
        self.set_input_tensor = chunk.set_input_tensor
        self._forward = (forward,)

    def forward(self, *arguments, **keywords) -> Tensor:
        return self._forward[0](*arguments, **keywords)


class ShardingEngine(abc.ABC):
    """Holds this rank's model chunks sharded over the data-parallel group, with their optimizer.

    Gradients are averaged over the data-parallel group; the global norm counts every element of the model once.
    """

    stages: list[Stage]

    def __init__(self, chunks: list[GPT], config: Config):
        """Engines take ``(chunks, config, compute_dtype)``: chunks made on the meta device, whose shards they fill."""
        self.chunks = chunks
        self.config = config
        self.on_pass: Callable[[], None] = lambda: None
        """Called before every pass of a micro-batch."""

    def take(self, parameters: Iterable[nn.Parameter], places: Iterable[LogicalWeight]) -> None:
        """Hold parameters, whose places in the whole model stand in the same order, and make their optimizer."""
        self._weights = list(zip(parameters, places, strict=True))
        two_copies = self.config.model.tie_embeddings and self.config.parallel.pipeline > 1
        # Offloaded copies, cut at other places, would drift apart in the one kernel, which is a CPU's there.
        offloads = "optimizer" in engine_kind(self.config).offloaded(self.config)
        self.optimizer = AdamW(
            parameter_groups(self._weights, self.config.optimizer.weight_decay),
            self.config.optimizer,
            may_be_fused=not (two_copies and offloads),
        )
        self.tied = gradients.tied_embeddings(self._weights) if two_copies else []
        """Copies of an embedding that another stage holds too: their gradients must be summed over both."""

    def weights(self) -> Iterator[tuple[nn.Parameter, LogicalWeight]]:
        """Yield this rank's parameters with their place in the whole model, in the same order on every data rank."""
        yield from self._weights

    def before_backward(self) -> None:  # noqa: B027 - optional hook
        """Prepare for one backward pass; the schedule calls it before each."""

    @abc.abstractmethod
    def step(self, learning_rate: float, judge: Judge) -> Tensor:
        """Reduce and clip the gradients and apply them unless they are refused; either way they are gone.

        ``judge`` is called once, by every rank. Where it refuses, weights, optimizer states and their count of updates
        stay as they are.

        Returns:
            The global gradient norm before clipping, float32 scalar.
        """

    @abc.abstractmethod
    def full_state(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Return WEIGHT or an optimizer state of a parameter, float32, gathered over the data-parallel group.

        Collective over the data-parallel group. The shape is the tensor-parallel rank's.
        """

    @abc.abstractmethod
    def set_full_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Set what :meth:`full_state` returns. Optimizer states must exist (:meth:`create_optimizer_state`)."""

    @abc.abstractmethod
    def master_weights(self) -> list[Tensor]:
        """Return the float32 weight tensors that the optimizer updates, this rank's shards."""

    @abc.abstractmethod
    def publish_weights(self) -> None:
        """Make the forward pass use the current float32 weights."""

    @torch.no_grad()
    def squared_weight_norm(self) -> Tensor:
        """Return the sum of squares of the weights that this rank updates, float32: infinite from about 1e19 on."""
        shards = [master.to_local() if isinstance(master, DTensor) else master for master in self.master_weights()]
        return torch.stack([shard.square().sum() for shard in shards]).sum()

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def create_optimizer_state(self, step: int) -> None:
        """Create optimizer states as after ``step`` updates, to be filled by :meth:`set_full_state`."""
        self.optimizer.create_state(self.master_weights(), step)

    def state_keys(self) -> tuple[str, ...]:
        """Return the keys that a checkpoint holds of every parameter."""
        return (WEIGHT, *self.optimizer.state_keys)

    @torch.no_grad()
    def swap_averaged(self) -> None:
        """Exchange the weights with their moving average; a second call exchanges them back."""
        for master in self.master_weights():
            average = self.optimizer.state[master]["ema"]
            kept = master.detach().clone()
            master.copy_(average)
            average.copy_(kept)
        self.publish_weights()

    def train(self, mode: bool = True) -> None:
        """Put the model into training or evaluation mode."""
        for chunk in self.chunks:
            chunk.train(mode)


def parameter_groups(weights: list[tuple[nn.Parameter, LogicalWeight]], weight_decay: float) -> list[dict]:
    """Return the optimizer's groups: matrices with weight decay, norms without."""
    groups = [
        {"params": [p for p, logical in weights if logical.decayed], "weight_decay": weight_decay},
        {"params": [p for p, logical in weights if not logical.decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
