"""Faults that a trainer of this kind can have, to be put into the ranks of a run. Each must break layout parity."""

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.engine import gradients, optimizer, schedule
from card_scale.engine.deepspeed import adapter as deepspeed_adapter
from card_scale.engine.deepspeed import engine as deepspeed_engine
from card_scale.engine.fsdp2 import engine as fsdp2_engine
from card_scale.model import gpt, head, layer, norm
from card_scale.model.weights import LogicalWeight
from card_scale.objectives import masked_diffusion
from card_scale.objectives.armd import ArmdObjective
from card_scale.objectives.attention import BlockDiffusion
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.card import CardObjective
from card_scale.objectives.mdlm import MdlmObjective
from card_scale.training import train_step
from tests.layouts.trajectory import STAGE_LAYERS, Trajectory, form_groups, run, train

Mutation = Callable[[pytest.MonkeyPatch], None]


def run_mutated(cells: list[tuple[Mutation | None, Config]]) -> list[Trajectory]:
    """Run each configuration with its fault (or none) in this process; return their trajectories."""
    form_groups(cells[0][1])
    trajectories = []
    for mutation, config in cells:
        with pytest.MonkeyPatch.context() as patch:
            if mutation is not None:
                mutation(patch)
            trajectories.append(run(config, mutation.__name__ if mutation else "no fault"))
    return trajectories


def norms_with_a_gradient_that_is_not_finite(configs: list[Config]) -> list[list[float]]:
    """Run each configuration while the last rank's gradient of the final norm, where it has one, is NaN."""
    form_groups(configs[0])
    with pytest.MonkeyPatch.context() as patch:
        last = dist.get_rank() == dist.get_world_size() - 1
        _scale_final_norm_gradient(patch, math.nan if last else 1.0)
        return [train(config)[2] for config in configs]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


def _scale_final_norm_gradient(patch: pytest.MonkeyPatch, factor: float) -> None:
    class ScaledNorm(norm.RMSNorm):
        def forward(self, hidden_states):
            weight = _ScaledGradient.apply(self.weight, factor)
            return torch.nn.functional.rms_norm(hidden_states, weight.shape, weight, self.epsilon)

    patch.setattr(head, "RMSNorm", ScaledNorm)  # the final norm


def one_weight_has_a_doubled_gradient(patch: pytest.MonkeyPatch) -> None:
    _scale_final_norm_gradient(patch, 2.0)


def every_gradient_is_doubled(patch: pytest.MonkeyPatch) -> None:
    """Adam and the clip forgive it: only the reported norm shows it."""
    original = schedule.run

    def doubled(engine, micro_batches, loss, **keywords):
        def twice(*arguments):
            differentiated, reports = loss(*arguments)
            return 2 * differentiated, reports

        return original(engine, micro_batches, twice, **keywords)

    patch.setattr(schedule, "run", doubled)


def tied_gradients_are_not_summed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "sum_over_tied_copies", lambda _: None)


def every_replica_is_counted(patch: pytest.MonkeyPatch) -> None:
    _change_places(patch, lambda where: dataclasses.replace(where, is_primary=True))


def norm_weights_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    _change_places(patch, lambda where: dataclasses.replace(where, is_primary=where.is_primary and where.decayed))


def gated_weights_are_split_as_one(patch: pytest.MonkeyPatch) -> None:
    """[gate; up] cut into contiguous halves: rank 0 gets the gate, rank 1 the other factor."""

    def contiguous(where: LogicalWeight) -> LogicalWeight:
        if len(where.slices) == 1:
            return where
        extent = sum(part.local.stop - part.local.start for part in where.slices)
        start = process_groups.tensor_rank() * extent
        part = dataclasses.replace(where.slices[0], local=slice(0, extent), whole=slice(start, start + extent))
        return dataclasses.replace(where, slices=(part,))

    _change_places(patch, contiguous)


def _change_places(patch: pytest.MonkeyPatch, change: Callable[[LogicalWeight], LogicalWeight]) -> None:
    for engine in (deepspeed_engine, fsdp2_engine):
        original = engine.logical_weights
        patch.setattr(engine, "logical_weights", lambda chunks, original=original: _changed(original(chunks), change))


def _changed(weights, change: Callable[[LogicalWeight], LogicalWeight]):
    for parameter, where in weights:
        yield parameter, change(where)


def noise_differs_by_data_rank(patch: pytest.MonkeyPatch) -> None:
    _shift_sample_ids(patch, process_groups.data_rank())


def noise_differs_by_tensor_rank(patch: pytest.MonkeyPatch) -> None:
    _shift_sample_ids(patch, process_groups.tensor_rank())


def noise_differs_by_stage(patch: pytest.MonkeyPatch) -> None:
    _shift_sample_ids(patch, process_groups.pipeline_rank())


def _shift_sample_ids(patch: pytest.MonkeyPatch, shift: int) -> None:
    change_samples(patch, lambda samples: samples._replace(sample_ids=samples.sample_ids + 1000 * shift))


def noise_strata_are_of_the_ranks_own_places(patch: pytest.MonkeyPatch) -> None:
    """A sample takes the stratum of its place among this rank's, as if they were the first of the global batch."""

    def own(samples: Samples) -> Samples:
        first = samples.global_positions // samples.batch_size * samples.batch_size
        return samples._replace(global_positions=first + torch.arange(len(first), device=first.device))

    change_samples(patch, own)


def noise_is_stratified_over_the_ranks_samples(patch: pytest.MonkeyPatch) -> None:
    change_samples(patch, lambda samples: samples._replace(batch_size=len(samples.tokens)))


def change_samples(patch: pytest.MonkeyPatch, change: Callable[[Samples], Samples]) -> None:
    for objective in (CardObjective, MdlmObjective, BlockDiffusionObjective, ArmdObjective):
        original = objective.corrupt
        patch.setattr(objective, "corrupt", lambda self, samples, seed, of=original: of(self, change(samples), seed))


def weights_are_shifted_by_one_position(patch: pytest.MonkeyPatch) -> None:
    original = CardObjective.corrupt

    def shifted(self, *arguments):
        batch = original(self, *arguments)
        return batch._replace(weights=batch.weights.roll(1, dims=1))

    patch.setattr(CardObjective, "corrupt", shifted)


def normaliser_is_the_ranks_own(patch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor, **keywords):
        if tensor.dim() > 0:
            dist.all_reduce(tensor, **keywords)

    patch.setattr(train_step, "dist", SimpleNamespace(all_reduce=all_reduce, get_world_size=dist.get_world_size))


def gradients_are_averaged_over_data_ranks(patch: pytest.MonkeyPatch) -> None:
    """The engine's average is not undone."""
    patch.setattr(train_step, "dist", SimpleNamespace(all_reduce=dist.all_reduce, get_world_size=lambda _: 1))


def clipping_is_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "clip", lambda *_: None)


def clipping_enlarges_small_gradients(patch: pytest.MonkeyPatch) -> None:
    """The factor is not held at 1."""

    def unlimited(held, norm, largest):
        torch._foreach_mul_(held, largest / (norm + 1e-6))

    patch.setattr(gradients, "clip", unlimited)


def the_average_lags_one_update(patch: pytest.MonkeyPatch) -> None:
    original = optimizer.AdamW.step

    def lagging(self, closure=None):
        before = {weight: weight.detach().clone() for weight, state in self.state.items() if "ema" in state}
        result = original(self, closure)
        for weight, value in before.items():
            self.state[weight]["ema"].add_(value - weight.detach(), alpha=1.0 - self.ema_decay)
        return result

    patch.setattr(optimizer.AdamW, "step", lagging)


def hooks_are_not_reset_between_backward_passes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deepspeed_adapter, "reset_backward_hooks", lambda _: None)


def gathered_weights_outlive_the_update(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fsdp2_engine.Fsdp2Engine, "publish_weights", lambda _: None)


def norm_gradients_stay_on_their_part_of_the_sequence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(norm, "copy_to_tensor_model_parallel_region", lambda weight, **_: weight)


def dropout_counts_positions_from_the_ranks_own(patch: pytest.MonkeyPatch) -> None:
    for module in (gpt, layer):
        original = module.dropout

        def local(*arguments, original=original, **keywords):
            return original(*arguments, **{**keywords, "first_position": 0})

        patch.setattr(module, "dropout", local)


def dropout_counts_layers_from_the_stages_own(patch: pytest.MonkeyPatch) -> None:
    original = gpt.GPT.__init__

    def renumbered(self, *arguments, **keywords):
        original(self, *arguments, **keywords)
        for index, decoder_layer in enumerate(self.layers.values()):
            decoder_layer.dropout_site = torch.tensor(2 * index + 1, device="cpu")

    patch.setattr(gpt.GPT, "__init__", renumbered)


def a_stage_keeps_its_first_input(patch: pytest.MonkeyPatch) -> None:
    original = gpt.GPT.set_input_tensor

    def first_only(self, tensor):
        original(self, tensor)
        if self.stage_input is not None:
            first = self.__dict__.setdefault("first_input", self.stage_input.detach())
            self.stage_input = first + 0 * self.stage_input

    patch.setattr(gpt.GPT, "set_input_tensor", first_only)


def chunks_are_numbered_stage_by_stage(patch: pytest.MonkeyPatch) -> None:
    """Chunk c of stage s is part c * stages + s of the model, not s * chunks + c."""
    original = gpt.GPT.__init__

    def misnumbered(self, model, vocabulary, attention_kind, dims, *, chunk=0, **keywords):
        original(self, model, vocabulary, attention_kind, dims, chunk=chunk, **keywords)
        chunks = dims.virtual_pipeline
        first = (process_groups.pipeline_rank() * chunks + chunk) * len(self.layers)
        self.layers = nn.ModuleDict({str(first + i): one for i, one in enumerate(self.layers.values())})

    patch.setattr(gpt.GPT, "__init__", misnumbered)


def normaliser_counts_masked_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masked_diffusion, "clean_tokens", lambda batch: batch.masked.sum(dtype=torch.float64))


def noisy_blocks_see_their_own_clean_tokens(patch: pytest.MonkeyPatch) -> None:
    """What is to be predicted can be read."""
    _change_sight(patch, lambda query, key, length, block: query % length // block == key % length // block)


def noisy_blocks_see_earlier_noisy_ones(patch: pytest.MonkeyPatch) -> None:
    _change_sight(
        patch,
        lambda query, key, length, block: (
            (query < length) & (key < length) & (key % length // block < query % length // block)
        ),
    )


def _change_sight(patch: pytest.MonkeyPatch, also: Callable[..., torch.Tensor]) -> None:
    original = BlockDiffusion.visible

    def wider(self, query, key, positions):
        return original(self, query, key, positions) | also(query, key, positions // 2, self.block)

    patch.setattr(BlockDiffusion, "visible", wider)


def the_clean_half_has_positions_of_its_own(patch: pytest.MonkeyPatch) -> None:
    original = BlockDiffusionObjective.corrupt

    def counted_on(self, *arguments):
        batch = original(self, *arguments)
        return batch._replace(positions=torch.arange(batch.positions.shape[1]).expand_as(batch.positions))

    patch.setattr(BlockDiffusionObjective, "corrupt", counted_on)


def the_noisy_halfs_gradient_is_doubled(patch: pytest.MonkeyPatch) -> None:
    """The residual branch of the last layer, gathered over the sequence: its gradient is summed over equal copies."""
    original = layer.gather_from_sequence_parallel_region
    patch.setattr(layer, "gather_from_sequence_parallel_region", lambda states, **_: original(states))


def the_noisy_halfs_gradient_is_lost(patch: pytest.MonkeyPatch) -> None:
    original = layer.gather_from_sequence_parallel_region
    patch.setattr(
        layer,
        "gather_from_sequence_parallel_region",
        lambda states, **keywords: original(states.detach(), **keywords),
    )


def the_last_layer_keeps_the_first_half_of_each_rank(patch: pytest.MonkeyPatch) -> None:
    """In place of the first half of the sequence."""
    patch.setattr(layer.DecoderLayer, "_first", lambda _, hidden_states, attended: hidden_states[: len(attended)])


def dropout_of_the_last_layer_counts_all_positions(patch: pytest.MonkeyPatch) -> None:
    """It holds the noisy half only, so its ranks begin at other positions than those of the layers before."""
    original = layer.dropout

    def doubled(states, keys, probability, *, site, first_position):
        last = site > 2 * (STAGE_LAYERS - 1)
        return original(states, keys, probability, site=site, first_position=first_position * (1 + last))

    patch.setattr(layer, "dropout", doubled)


def stages_expect_half_of_the_positions(patch: pytest.MonkeyPatch) -> None:
    original = schedule.schedules.get_forward_backward_func

    def halved():
        function = original()
        return lambda *, seq_length, **keywords: function(seq_length=seq_length // 2, **keywords)

    patch.setattr(schedule.schedules, "get_forward_backward_func", halved)
