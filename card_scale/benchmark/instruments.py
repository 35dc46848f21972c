"""Where a training step's time goes, measured in place: hooks and identity operations that stamp the device's time.

Both instruments divide the whole step (:class:`Partition`), so their parts add up to it. Phases cost a handful of
stamps and are taken in every step; parts need an operation around each layer's attention in both passes, so they are
taken in steps of their own and compared with the undisturbed ones.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from card_scale.benchmark.clock import Partition
from card_scale.engine.base import Judge, ShardingEngine
from card_scale.model.gpt import GPT

PHASES = ("prepare", "forward", "backward", "optimizer")
"""Corruption and the like before the first pass; forward passes with the loss; backward passes; the engine's step."""

PARTS = ("layers", "attention", "head", "rest")
"""Decoder layers without the attention kernel; the attention kernel; final norm, output head and token losses; the
rest: corruption, embedding, weighting of the losses, optimizer, engine. Forward and backward together."""

Switch = Callable[[str], None]


@contextlib.contextmanager
def phases(engine: ShardingEngine, partition: Partition) -> Iterator[None]:
    """Switch ``partition`` between :data:`PHASES` as the engine's steps go; begin it in "prepare".

    With pipeline stages the waiting for another stage counts to the phase that it interrupts.
    """
    before_backward, step = engine.before_backward, engine.step

    def stamped_before_backward() -> None:
        partition.switch("backward")
        before_backward()

    def stamped_step(learning_rate: float, judge: Judge) -> Tensor:
        partition.switch("optimizer")
        return step(learning_rate, judge)

    with contextlib.ExitStack() as stack:
        for chunk in engine.chunks:
            # First of all hooks: gathering the chunk's weights is part of its forward pass.
            hook = chunk.register_forward_pre_hook(lambda *_: partition.switch("forward"), prepend=True)
            stack.callback(hook.remove)
        stack.enter_context(_replaced(engine, "before_backward", stamped_before_backward))
        stack.enter_context(_replaced(engine, "step", stamped_step))
        yield


@contextlib.contextmanager
def parts(engine: ShardingEngine, partition: Partition, *, inside_layers: bool) -> Iterator[None]:
    """Switch ``partition`` between :data:`PARTS` as the engine's steps go; begin it in "rest".

    ``inside_layers`` is false where layers are compiled whole, which a stamp inside would break: their attention then
    counts to "layers".
    """
    with contextlib.ExitStack() as stack:
        for chunk in engine.chunks:
            for hook in _chunk_hooks(chunk, partition.switch):
                stack.callback(hook.remove)
            if inside_layers:
                for kernel in chunk.attention.kernels:
                    attend = _stamped_attention(kernel.attend, partition.switch)
                    stack.enter_context(_replaced(kernel, "attend", attend))
        yield


def _chunk_hooks(chunk: GPT, switch: Switch) -> Iterator[Any]:
    """Install the stamps at the borders of a chunk's layers and head; yield the hooks' handles."""
    last_part = "head" if chunk.is_last else "layers"

    def take_stage_input(chunk: GPT, _arguments: tuple) -> None:
        assert chunk.stage_input is not None
        (chunk.stage_input,) = mark(switch, "layers", "rest", chunk.stage_input)

    if chunk.is_first:
        yield chunk.embedding.register_forward_hook(lambda _, __, output: mark(switch, "layers", "rest", output)[0])
    else:
        yield chunk.register_forward_pre_hook(take_stage_input)
    if chunk.is_last:
        yield chunk.head.norm.register_forward_pre_hook(lambda _, inputs: mark(switch, "head", "layers", *inputs))
    yield chunk.register_forward_hook(lambda _, __, output: mark(switch, "rest", last_part, output)[0])


def _stamped_attention(attend: Callable[..., Tensor], switch: Switch) -> Callable[..., Tensor]:
    def stamped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = attend(*mark(switch, "attention", "layers", query, key, value))
        return mark(switch, "layers", "attention", mixed)[0]

    return stamped


def mark(switch: Switch, on_forward: str, on_backward: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors unchanged, and switch to ``on_forward`` now and to ``on_backward`` in the backward pass, when
    the gradients of all of them are known."""
    return _Mark.apply(switch, on_forward, on_backward, *tensors)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, switch, on_forward, on_backward, *tensors):
        ctx.set_materialize_grads(False)
        ctx.switch, ctx.on_backward = switch, on_backward
        switch(on_forward)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.switch(ctx.on_backward)
        return None, None, None, *gradients


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Shadow a method of ``owner`` by ``value``."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
