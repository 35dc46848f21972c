"""The bounds of MDLM and BD3-LM against float64 loops over draws, samples, blocks and positions."""

import dataclasses
import itertools
import math
import statistics
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from card_scale.config import Config
from card_scale.data.loader import EvaluationBatches
from card_scale.data.samples import Samples
from card_scale.distributed import parallel_dims, process_groups
from card_scale.model.initialization import initial_weight
from card_scale.training.evaluator import Evaluator
from tests.layouts.masked_diffusion_loops import evaluation_batch
from tests.layouts.processes import run_ranks
from tests.layouts.test_one_rank import weight_shapes
from tests.layouts.trajectory import VOCABULARY, engine_of, small_config
from tests.model import reference_gpt
from tests.training.test_evaluation import SAMPLE_IDS, SAMPLES, FixedStream

DRAWS = 4
MEAN_RATE = (0.001 + 1) / 2
ALLOWED = [i for i in range(VOCABULARY.size) if i != VOCABULARY.mask_id]
OBJECTIVES = {
    "mdlm": {"name": "mdlm"},
    "bd3lm": {"name": "bd3lm", "block": 4},
    # The interval of training must not show in an evaluation, that of the search must.
    "bd3lm searching": {
        "name": "bd3lm",
        "block": 8,
        "min_mask": 0.3,
        "max_mask": 0.8,
        "search_interval": True,
    },
    "bd3lm, blocks of one": {"name": "bd3lm", "block": 1},
}
LAYOUTS = {
    "pp2 dp2, ZeRO-3": dict(parallel=dict(pipeline=2, zero=3), train=dict(micro_batch=2)),
    "tp2 dp2 sequence, FSDP2": dict(parallel=dict(tensor=2, sequence=True, engine="fsdp2"), train=dict(micro_batch=4)),
}


def configs_on(**layout) -> list[Config]:
    return [small_config(objective=objective, **layout) for objective in OBJECTIVES.values()]


def evaluate(configs: list[Config], seeds: list[list[int]]) -> list[list[dict]]:
    """Return by configuration the results of an evaluation with the noise of each of its seeds."""
    process_groups.initialize(parallel_dims.plan(configs[0], dist.get_world_size()), 60)
    found = []
    for config, own_seeds in zip(configs, seeds, strict=True):
        engine = engine_of(config)
        batches = EvaluationBatches(
            FixedStream(config.model.length),
            SAMPLE_IDS,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            data_parallel_rank=process_groups.data_rank(),
            data_parallel_size=dist.get_world_size(process_groups.data_group()),
        )
        noisy = [dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed)) for seed in own_seeds]
        found.append([Evaluator(engine, one, batches)(one.objective) for one in noisy])
    return found


def evaluate_once(configs: list[Config]) -> list[dict]:
    return [results for (results,) in evaluate(configs, [[config.run.seed] for config in configs])]


@pytest.fixture(scope="module")
def one_rank() -> dict[str, dict]:
    configs = configs_on(parallel=dict(zero=0))
    return dict(zip(OBJECTIVES, run_ranks(evaluate_once, 1, configs, deadline=90)[0], strict=True))


class Token(NamedTuple):
    """What a draw of the noise made of a scored token."""

    weight: float
    rate: float
    loss: float


class Block(NamedTuple):
    """What a draw of the noise made of a block."""

    rate: float
    masks: int
    loss: float
    """Weighted, per token."""


def initial_weights(config: Config) -> dict[str, torch.Tensor]:
    return {
        name: initial_weight(name, shape, config.run.seed, config.model.layers).double()
        for name, shape in weight_shapes(config).items()
    }


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits[..., ALLOWED], -1) - logits.gather(-1, targets[..., None])[..., 0]


def draws_by_hand(config: Config) -> tuple[list[list[list[Token]]], list[Block]]:
    """Return (the scored tokens of each sample in each draw [draws][samples], every block of all)."""
    length, weights = config.model.length, initial_weights(config)
    tokens = torch.from_numpy(FixedStream(length).tokens)
    ids, places = torch.from_numpy(SAMPLE_IDS), torch.arange(SAMPLES)
    bounds, blocks = [], []
    for draw in range(DRAWS):
        batch = Samples(tokens, ids, torch.full_like(ids, draw), draw * SAMPLES + places, SAMPLES)
        made = evaluation_batch(config, batch, SAMPLES)
        logits = reference_gpt.logits(
            weights,
            torch.tensor(made.inputs),
            config.model.layers,
            config.model.heads,
            torch.tensor(made.sees),
            torch.tensor(made.positions),
        )
        losses = token_losses(logits[:, :length], tokens[:, :-1]).tolist()
        bounds.append([])
        for row, rates in enumerate(made.rates):
            weighted = [w * loss for w, loss in zip(made.weights[row], losses[row], strict=True)]
            size = length // len(rates)
            by_token = zip(made.weights[row], (rate for rate in rates for _ in range(size)), losses[row], strict=True)
            bounds[-1].append([Token(*values) for values in by_token][1:])  # the first token is given
            for number, rate in enumerate(rates):
                own = slice(number * size, (number + 1) * size)
                blocks.append(Block(rate, sum(made.masked[row][own]), math.fsum(weighted[own]) / size))
    return bounds, blocks


def line_through(tokens: list[Token]) -> tuple[float, float]:
    """Return (a, b) of the line a + b * rate through losses, by least squares weighted with the tokens' weights."""
    total = math.fsum(token.weight for token in tokens)
    rate = math.fsum(token.weight * token.rate for token in tokens) / total
    loss = math.fsum(token.weight * token.loss for token in tokens) / total
    above = math.fsum(token.weight * (token.rate - rate) * (token.loss - loss) for token in tokens)
    slope = above / math.fsum(token.weight * (token.rate - rate) ** 2 for token in tokens)
    return loss - slope * rate, slope


def bound_by_hand(draws: list[list[list[Token]]]) -> tuple[float, float]:
    """Return (mean, standard error): the losses of each draw, less what its weights and rates beyond their means cost
    by the other draws."""
    values = []
    for number, draw in enumerate(draws):
        others = [token for other in (*draws[:number], *draws[number + 1 :]) for sample in other for token in sample]
        level, slope = line_through(others)
        values.append(
            [
                statistics.fmean(
                    token.weight * token.loss - (level + slope * token.rate) * token.weight + level + slope * MEAN_RATE
                    for token in sample
                )
                for sample in draw
            ]
        )
    by_sample = list(zip(*values, strict=True))
    variance = math.fsum(statistics.variance(each) / len(draws) for each in by_sample)
    return statistics.fmean(map(statistics.fmean, by_sample)), math.sqrt(variance) / len(by_sample)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "bd3lm, blocks of one"])
def test_the_bound_and_its_standard_error_are_the_plain_loops(one_rank, name):
    config = small_config(objective=OBJECTIVES[name])
    mean, error = bound_by_hand(draws_by_hand(config)[0])
    results = one_rank[name]
    assert results["validation_nll"] == pytest.approx(mean, rel=1e-5)
    assert results["validation_nll_standard_error"] == pytest.approx(error, rel=1e-5)
    assert results["validation_perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert results["bound"] is True


def test_the_interval_is_that_of_a_search_over_raw_blocks(one_rank):
    config = small_config(objective=OBJECTIVES["bd3lm searching"])
    _, blocks = draws_by_hand(config)
    found = {}
    for width, first in itertools.product((10, 12, 14, 16, 18), range(11)):
        low, high = first / 20, (first + width) / 20
        if high > 1:
            continue
        inside = [
            block.loss for block in blocks if low <= block.rate <= high and low <= block.masks / 8 <= high + 1e-12
        ]
        if len(inside) > 1:
            found[low, high] = statistics.variance(inside)
    low, high = min(found, key=found.get)
    results = one_rank["bd3lm searching"]
    assert (results["bd3lm/min_mask"], results["bd3lm/max_mask"]) == pytest.approx((low, high))
    assert results["bd3lm/block_loss_variance"] == pytest.approx(found[low, high], rel=1e-4)
    assert not any(key.startswith("bd3lm/") for key in one_rank["bd3lm"])


def test_blocks_of_one_token_give_the_exact_left_to_right_likelihood(one_rank):
    """Each token after a clean prefix, the prefix read causally, its own place holding [MASK]; no second half."""
    config = small_config(objective=OBJECTIVES["bd3lm, blocks of one"])
    weights = initial_weights(config)
    tokens = torch.from_numpy(FixedStream(config.model.length).tokens)
    losses = []
    for position in range(1, config.model.length):
        masked = torch.full((SAMPLES, 1), VOCABULARY.mask_id)
        inputs = torch.cat((tokens[:, :position], masked), dim=1)
        logits = reference_gpt.logits(weights, inputs, config.model.layers, config.model.heads)[:, -1]
        losses += token_losses(logits, tokens[:, position]).tolist()
    results = one_rank["bd3lm, blocks of one"]
    assert results.keys() == {"validation_nll", "validation_perplexity"}
    assert results["validation_nll"] == pytest.approx(statistics.fmean(losses), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_of_another_layout_gets_the_same(one_rank, layout):
    for rank in run_ranks(evaluate_once, 4, configs_on(**LAYOUTS[layout]), deadline=120):
        for results, expected in zip(rank, one_rank.values(), strict=True):
            assert results == pytest.approx(expected, rel=1e-5)


def test_the_standard_error_is_the_spread_of_other_noise():
    """It may be too large, for it ignores what strata over the samples gain, but not by much, and not too small.

    In the mean of squares: single ones scatter, since rare low mask rates have large weights. The spread of a hundred
    runs is itself known to about a tenth.
    """
    seeds = list(range(100))
    configs = [
        small_config(parallel=dict(zero=0), model=dict(layers=1), train=dict(micro_batch=8), objective=OBJECTIVES[name])
        for name in ("mdlm", "bd3lm")
    ]
    for results in run_ranks(evaluate, 1, configs, [seeds] * 2, deadline=120)[0]:
        spread = statistics.stdev(one["validation_nll"] for one in results)
        claimed = math.sqrt(statistics.fmean(one["validation_nll_standard_error"] ** 2 for one in results))
        assert 0.85 * spread <= claimed <= 1.5 * spread
