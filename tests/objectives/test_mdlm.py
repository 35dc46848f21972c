"""The MDLM objective as a whole: loss against a float64 loop, evaluation draws, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from card_scale.objectives.attention import Bidirectional
from card_scale.objectives.batch import weighted_loss
from card_scale.objectives.mdlm import MdlmObjective
from card_scale.objectives.noise import Stream, uniforms
from tests.objectives import oracles
from tests.objectives.samples import samples_of, tensors_of

VOCABULARY = 11
MASK_ID = 4
STREAMS = {
    "corrupt": (Stream.NOISE_LEVEL, Stream.STRATA, Stream.MASK),
    "likelihood": (Stream.EVALUATION_NOISE_LEVEL, Stream.EVALUATION_STRATA, Stream.EVALUATION),
}


def clean_tokens(rows, length, seed=0):
    tokens = torch.randint(0, VOCABULARY - 1, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens + (tokens >= MASK_ID)


@given(
    rows=st.integers(1, 4),
    length=st.integers(2, 24),
    seed=st.integers(0, 2**40),
    first_batch=st.integers(0, 100),
    purpose=st.sampled_from(["corrupt", "likelihood"]),
)
@settings(max_examples=60, deadline=None)
def test_loss_equals_the_loop_from_logits_to_scalar(rows, length, seed, first_batch, purpose):
    tokens = clean_tokens(rows, length, seed % 1000)
    ids, epochs = torch.arange(rows) + seed % 1000, torch.arange(rows) % 3
    places = torch.arange(rows).flip(0)
    samples = samples_of(tokens, ids, epochs, first_batch * rows + places)
    objective = MdlmObjective(mask_id=MASK_ID)
    batch = getattr(objective, purpose)(samples, seed)
    # The logits depend on what the model reads, so a wrong input shows in the loss.
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    losses = torch.nn.functional.cross_entropy(table[batch.inputs].transpose(1, 2), batch.targets, reduction="none")
    loss = weighted_loss(losses, batch.weights, objective.normaliser(batch)).item()

    level_stream, strata_stream, mask_stream = STREAMS[purpose]
    within = uniforms(seed, ids, epochs, 1, level_stream)[:, 0].tolist()
    turned = uniforms(seed, torch.tensor([first_batch]), torch.tensor([0]), 1, strata_stream).item()
    draws = uniforms(seed, ids, epochs, length, mask_stream).tolist()
    total = 0.0
    for row in range(rows):
        rate = 0.001 + 0.999 * (((places[row].item() + within[row]) / rows + turned) % 1.0)
        assert batch.noise_level[row].tolist() == [pytest.approx(rate, rel=1e-6)]
        for position in range(1, length):
            masked = draws[row][position] < rate
            assert batch.masked[row, position].item() == masked
            if masked:
                total += oracles.cross_entropy(table[MASK_ID].tolist(), int(tokens[row, position])) / rate
    assert loss == pytest.approx(total / (rows * length), rel=1e-6)


def test_shapes_types_and_what_stays_clean():
    tokens = clean_tokens(64, 16)
    objective = MdlmObjective(mask_id=MASK_ID)
    batch = objective.corrupt(samples_of(tokens), 7)
    assert [t.dtype for t in tensors_of(batch)] == [
        torch.int64,
        torch.int64,
        torch.int64,
        torch.float32,
        torch.bool,
        torch.float32,
    ]
    assert batch.positions.tolist() == [list(range(16))] * len(batch.inputs)
    assert torch.equal(batch.targets, tokens[:, :-1])
    assert not batch.masked[:, 0].any()
    assert torch.equal(batch.inputs == MASK_ID, batch.masked)
    assert torch.equal(batch.inputs[~batch.masked], batch.targets[~batch.masked])
    assert torch.equal(batch.weights > 0, batch.masked)
    assert batch.noise_level.shape == (64, 1)
    assert ((batch.noise_level >= 0.001) & (batch.noise_level <= 1)).all()
    assert objective.normaliser(batch).item() == 64 * 16
    assert objective.scored(16) == 15
    assert not objective.likelihood_is_exact
    assert objective.attention == Bidirectional()
    assert registry.create("mdlm", mask_id=MASK_ID) == objective


@given(st.permutations(range(8)), st.integers(1, 7), st.sampled_from(["corrupt", "likelihood"]))
@settings(max_examples=20, deadline=None)
def test_corruption_does_not_depend_on_the_layout(order, split, purpose):
    tokens = clean_tokens(8, 33)
    samples = samples_of(tokens, torch.arange(8) * 10**12, torch.arange(8) % 3, 40 + torch.arange(8), batch_size=4)
    corrupt = getattr(MdlmObjective(mask_id=MASK_ID), purpose)
    whole = corrupt(samples, 5)
    for part in (torch.tensor(order[:split]), torch.tensor(order[split:])):
        batch = corrupt(Samples(*(field[part] for field in samples[:4]), 4), 5)
        for field in ("inputs", "targets", "weights", "masked", "noise_level"):
            assert torch.equal(getattr(batch, field), getattr(whole, field)[part])


def test_another_epoch_seed_or_purpose_is_another_corruption():
    samples = samples_of(clean_tokens(8, 64))
    objective = MdlmObjective(mask_id=MASK_ID)
    base = objective.corrupt(samples, 0)
    for other in (
        objective.corrupt(samples._replace(epochs=samples.epochs + 1), 0),
        objective.corrupt(samples, 1),
        objective.likelihood(samples, 0),
    ):
        assert not (other.noise_level == base.noise_level).any()
        assert not torch.equal(other.masked, base.masked)


@pytest.mark.parametrize("purpose", ["corrupt", "likelihood"])
def test_corruption_never_waits_for_the_device(purpose):
    with FakeTensorMode():
        objective = MdlmObjective()
        batch = getattr(objective, purpose)(samples_of(torch.zeros(4, 33, dtype=torch.int64)), 0)
        assert weighted_loss(batch.weights, batch.weights, objective.normaliser(batch)).shape == ()


def test_one_input_position_is_too_short():
    with pytest.raises(ConfigurationError, match=r"model\.length is 1"):
        MdlmObjective().corrupt(samples_of(torch.tensor([[1, 2]])), 0)
