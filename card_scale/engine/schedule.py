"""Megatron-core's pipeline schedules over a sharding engine: one global batch forward and backward."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.pipeline_parallel import schedules
from torch import Tensor

from card_scale import faults
from card_scale.engine.base import ShardingEngine
from card_scale.objectives.batch import Batch

LossFunction = Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]
"""(token losses [B, L], micro-batch) -> (loss to differentiate, values to report)."""


def run(
    engine: ShardingEngine,
    micro_batches: Sequence[Batch],
    loss: LossFunction,
    *,
    forward_only: bool = False,
) -> list[dict[str, Tensor]]:
    """Run the micro-batches through the pipeline.

    The differentiated loss is averaged over micro-batches (by the schedule) and data-parallel ranks (by the engine).

    Returns:
        On the last pipeline stage the reports of each micro-batch, in order; elsewhere an empty list.
    """

    def forward_step(batches: Iterator[Batch], stage) -> tuple[Tensor, Callable]:
        engine.on_pass()
        batch = next(batches)
        if step is not None:
            faults.reach("step.forward", step)
        output = stage(batch.inputs, batch.positions, batch.targets, batch.dropout_keys, batch.attention)
        if step is not None:
            output = faults.spoil("gradient", output, step)

        def finish(token_losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            differentiated, reports = loss(token_losses, batch)
            # Megatron divides the loss by the micro-batches in place, so a report must not alias it.
            return differentiated, {name: value.detach().clone() for name, value in reports.items()}

        return output, finish

    def before_backward() -> None:
        engine.on_pass()
        faults.reach("step.backward", step)
        engine.before_backward()

    step = None if forward_only else micro_batches[0].samples.update + 1
    interleaved = len(engine.stages) > 1
    iterators = [iter(micro_batches) for _ in engine.stages]
    batch_rows, positions = micro_batches[0].positions.shape
    gradient_context = torch.no_grad() if forward_only else contextlib.nullcontext()
    with _before_each_backward(before_backward), gradient_context:
        return schedules.get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if interleaved else iterators[0],
            model=list(engine.stages),
            num_microbatches=len(micro_batches),
            seq_length=positions,
            micro_batch_size=batch_rows,
            forward_only=forward_only,
        )


@contextlib.contextmanager
def _before_each_backward(prepare: Callable[[], None]) -> Iterator[None]:
    """Call ``prepare`` before each backward pass; Megatron's schedules have no hook for it (0.16.1)."""
    backward_step = schedules.backward_step

    def prepared_backward_step(*arguments, **keywords):
        prepare()
        return backward_step(*arguments, **keywords)

    schedules.backward_step = prepared_backward_step
    try:
        yield
    finally:
        schedules.backward_step = backward_step
