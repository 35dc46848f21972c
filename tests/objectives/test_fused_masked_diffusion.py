"""The kernel of MDLM and BD3-LM: interpreted on a CPU it makes what the tensor operations make; launches are few."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.data.samples import Samples
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.masked_diffusion import SMALLEST_MASK_RATE
from card_scale.objectives.mdlm import MdlmObjective
from tests.objectives.fused import both, check_bits, launches
from tests.objectives.samples import samples_of

pytest.importorskip("triton", reason="make test installs it")
from card_scale.objectives import fused_masked_diffusion

FIELDS = ("inputs", "positions", "targets", "weights", "masked", "noise_level")

ids = st.integers(-(2**63), 2**63 - 1)
objectives = st.builds(MdlmObjective, resample=st.booleans()) | st.builds(
    BlockDiffusionObjective, block=st.integers(2, 9) | st.just(64), resample=st.booleans()
)


@given(
    objective=objectives,
    sample_ids=st.lists(ids, min_size=1, max_size=3),
    epoch=st.integers(0, 2**40),
    blocks=st.integers(1, 4),
    batch_size=st.integers(1, 2000),
    batch=st.integers(0, 2**40),
    seed=st.integers(0, 2**62),
    method=st.sampled_from(["corrupt", "likelihood"]),
)
@settings(max_examples=50, deadline=None)
def test_what_the_definition_makes(objective, sample_ids, epoch, blocks, batch_size, batch, seed, method):
    rows = len(sample_ids)
    size = objective.block if isinstance(objective, BlockDiffusionObjective) else 7
    tokens = torch.arange(rows * (blocks * size + 1)).view(rows, -1)
    positions = batch * batch_size + torch.arange(rows) % batch_size
    samples = Samples(tokens, torch.tensor(sample_ids), torch.full((rows,), epoch), positions, batch_size)
    check_bits(*both(objective, samples, seed, method), *FIELDS)


@pytest.mark.parametrize("length", [2, 1024, 1025, 3000])
def test_rows_of_one_program_and_of_several(length):
    check_bits(*both(MdlmObjective(), samples_of(torch.ones(2, length + 1, dtype=torch.int64)), 5), *FIELDS)


def test_rows_that_are_not_contiguous():
    wide = torch.arange(3 * 40).view(3, 40)
    every_other = torch.arange(12).view(6, 2)[:3, 0]
    samples = samples_of(wide[:, 3:20], every_other, every_other + 1, every_other + 2)
    check_bits(*both(BlockDiffusionObjective(block=4), samples, 1), *FIELDS)


def test_weights_are_of_the_rates_and_the_rates_of_their_range():
    _, batch = both(BlockDiffusionObjective(block=8), samples_of(torch.ones(64, 65, dtype=torch.int64)), 3)
    rates = batch.noise_level.repeat_interleave(8, dim=1)
    torch.testing.assert_close(batch.weights[batch.masked], rates[batch.masked].reciprocal())
    assert (batch.weights[~batch.masked] == 0).all()
    assert batch.noise_level.min() >= SMALLEST_MASK_RATE
    assert batch.noise_level.max() <= 1
    # One rate in each of the 512 strata.
    turned = (batch.noise_level.double() - SMALLEST_MASK_RATE) / (1 - SMALLEST_MASK_RATE)
    gaps = turned.flatten().sort().values.diff()
    assert gaps.max() < 2.01 / batch.noise_level.numel()
    assert math.isclose(float(turned.mean()), 0.5, abs_tol=1 / batch.noise_level.numel())


@pytest.mark.parametrize(
    "objective, expected",
    [
        (MdlmObjective(), 2),  # the positions, and the kernel
        (BlockDiffusionObjective(), 4),  # besides, those of the clean half and its tokens
    ],
    ids=["mdlm", "bd3lm"],
)
def test_no_more_launches_than_of_an_autoregressive_model(objective, expected):
    assert launches(objective, fused_masked_diffusion, "_mask_independently") == expected
