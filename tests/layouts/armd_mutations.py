"""Faults of two streams and of orders, to be put into the ranks of a run. Each must break layout parity."""

from types import SimpleNamespace

import pytest
import torch

from card_scale.model import gpt
from card_scale.objectives.armd import ArmdObjective
from card_scale.objectives.attention import StrictBlockCausal
from tests.layouts import mutations


def queries_see_their_own_block(patch: pytest.MonkeyPatch) -> None:
    original = StrictBlockCausal.visible

    def wider(self, query, key, positions):
        length = positions // 2
        own = (query < length) & (key - length - 1 == query)
        return original(self, query, key, positions) | own

    patch.setattr(StrictBlockCausal, "visible", wider)


def prefix_aggregation_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    original = gpt.query_stream
    patch.setattr(gpt, "query_stream", lambda *arguments: original(*arguments).roll(1, 0))


def streams_are_swapped_at_a_stage_border(patch: pytest.MonkeyPatch) -> None:
    original = gpt.GPT.set_input_tensor

    def swapped(self, tensor):
        original(self, tensor)
        if self.stage_input is not None:
            self.stage_input = self.stage_input.roll(len(self.stage_input) // 2, 0)

    patch.setattr(gpt.GPT, "set_input_tensor", swapped)


def positions_are_ranks_in_the_order(patch: pytest.MonkeyPatch) -> None:
    original = ArmdObjective.corrupt

    def ranked(self, *arguments):
        batch = original(self, *arguments)
        ranks = torch.arange(batch.targets.shape[1])
        return batch._replace(positions=torch.cat((ranks + 1, ranks)).expand_as(batch.positions))

    patch.setattr(ArmdObjective, "corrupt", ranked)


def tokens_begin_to_move_at_another_update(patch: pytest.MonkeyPatch) -> None:
    """As after a resume that counts from its own first."""
    mutations.change_samples(patch, lambda samples: samples._replace(update=samples.update - 1))


def the_aggregations_gradient_is_summed_over_equal_copies(patch: pytest.MonkeyPatch) -> None:
    original = gpt.gather_from_sequence_parallel_region
    patch.setattr(gpt, "gather_from_sequence_parallel_region", lambda states, **_: original(states))


def stages_keep_the_stream_that_the_layers_have_left(patch: pytest.MonkeyPatch) -> None:
    """The second half of the positions, in place of the first, goes on into narrow layers."""
    patch.setattr(gpt, "F", SimpleNamespace(pad=lambda states, pad: torch.nn.functional.pad(states.roll(1, 0), pad)))
