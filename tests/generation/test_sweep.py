"""Measuring ways to decode: which settings there are, what is counted, and what the zone and the front hold."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.generation import generate
from card_scale.generation.sampling import Sampling
from card_scale.generation.scoring import Scored, score
from card_scale.generation.sweep import Setting, grid, safe_zone, sweep
from card_scale.generation.sweep_figure import draw, front
from card_scale.generation.text_metrics import agreement, distinct, entropy, repetition_rate
from tests.generation.conftest import make_model, prompt


def test_a_method_is_varied_only_in_what_it_looks_at():
    labels = [one.label for one in grid(["self_verified", "card", "bd3lm"], [2, 4], [0.5, 0.9], [None, 3], [1], [True])]
    assert labels == [
        "ar, batch 1",
        "self_verified, K 2, batch 1",
        "self_verified, K 4, batch 1",
        *(f"card, K {k}, tau {tau}{most}, batch 1" for k in (2, 4) for tau in (0.5, 0.9) for most in ("", ", T 3")),
        "bd3lm, batch 1",
        "bd3lm, T 3, batch 1",
    ]
    assert [one.batch for one in grid(["ar"], [2], [0.5], [None], [1, 8], [True])] == [1, 8]
    lenient = grid(["self_verified", "card"], [4], [0.5], [None], [1], [True], leniencies=[0, 0.5], candidates=[1, 2])
    assert [one.label for one in lenient] == [
        "ar, batch 1",
        "self_verified, K 4, candidates 1, batch 1",
        "self_verified, K 4, candidates 1, leniency 0.5, batch 1",
        "self_verified, K 4, candidates 2, batch 1",
        "self_verified, K 4, candidates 2, leniency 0.5, batch 1",
        "card, K 4, tau 0.5, batch 1",
    ]
    strided = grid(
        ["armd_strided"], [2, 4], [0.5, 0.9], [None], [1], [True], strides=[2, 1, 4], baseline="armd_strided"
    )
    assert [one.label for one in strided] == [f"armd_strided, S {stride}, batch 1" for stride in (1, 2, 4)]
    assert [one.is_sequential for one in strided] == [True, False, False]
    in_place = grid(["bd3lm"], [2], [0.5], [3], [1], [True], baseline="bd3lm")
    assert [(one.label, one.is_sequential) for one in in_place] == [
        ("bd3lm, batch 1", True),
        ("bd3lm, T 3, batch 1", False),
    ]


def test_strides_are_measured_against_one_token_a_pass():
    model = make_model(2.0, two_streams=True)
    settings = grid(["armd_strided"], [2], [0.5], [None], [2], [True], strides=[4], baseline="armd_strided")
    options = {"new_tokens": 20, "sampling": Sampling(), "repetitions": 1}
    plain, strided = sweep(model, [prompt(6, seed) for seed in range(2)], settings, **options)
    assert (plain.speedup, plain.tokens_per_pass, plain.agreement) == (1.0, 1.0, 1.0)
    assert strided.tokens_per_pass == 20 / (4 + 20 / 4 - 1)
    assert strided.agreement < 1.0
    assert safe_zone([plain, strided], 0.05) == [True, False]


@pytest.fixture(scope="module")
def outcomes():
    model, judge = make_model(2.0), make_model(2.0, seed=2)
    prompts = [prompt(6, seed) for seed in range(3)]
    settings = grid(["self_verified", "card"], [3], [0.2], [None], [1, 2], [True])
    options = {"new_tokens": 20, "sampling": Sampling(), "repetitions": 2, "judge": judge}
    return model, judge, prompts, list(sweep(model, prompts, settings, **options))


def test_what_is_counted(outcomes):
    model, judge, prompts, found = outcomes
    assert [one.setting.method for one in found] == ["ar", "self_verified", "card"] * 2
    for one in found:
        options = dataclasses.asdict(one.setting)
        options.pop("batch")
        texts = [generate(model, [start], new_tokens=20, **options)[0] for start in prompts]
        assert one.distinct_2 == distinct([text.tokens for text in texts], 2)
        scores = score(judge, [Scored(start, text.tokens) for start, text in zip(prompts, texts, strict=True)])
        assert one.judged_nats == pytest.approx(-sum(each.log_likelihood for each in scores) / 60, rel=1e-5)
        assert one.record()["judged_perplexity"] == pytest.approx(math.exp(one.judged_nats))
        assert len(one.speedups) == 2
        assert one.tokens_per_second > 0
    for plain, verified in ((found[0], found[1]), (found[3], found[4])):
        assert (plain.speedup, plain.tokens_per_pass) == (1.0, 1.0)
        assert verified.agreement == 1.0
        assert verified.tokens_per_pass >= 1.0


def test_the_safe_zone_and_the_front(outcomes, tmp_path):
    base = outcomes[3][0]

    def outcome(speedup, nats, repetition=base.repetition_rate, agreement=0.5):
        setting = Setting("card", tau=speedup)
        return dataclasses.replace(
            base, setting=setting, speedup=speedup, judged_nats=nats, repetition_rate=repetition, agreement=agreement
        )

    nats = base.judged_nats
    points = [
        base,
        outcome(2.0, nats + 0.01),
        outcome(3.0, nats + 0.5),
        outcome(1.5, nats + 0.3),
        outcome(2.5, nats - 0.4),
    ]
    points.append(outcome(1.2, nats, base.repetition_rate + 0.5))
    assert safe_zone(points, 0.05) == [True, True, False, False, False, False]
    assert [one.speedup for one in front(points)] == [2.5, 3.0]
    unjudged = [
        dataclasses.replace(one, judged_nats=None) for one in (base, outcome(2.0, 0.0, agreement=1.0), points[2])
    ]
    assert safe_zone(unjudged, 0.05) == [True, True, False]
    draw(points, safe_zone(points, 0.05), tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()


def test_variety_and_repetition_by_hand():
    text = [1, 2, 1, 2, 1, 2]
    assert distinct([text], 2) == 2 / 5
    assert distinct([[1, 2], [2, 1], [1, 2]], 2) == 2 / 3
    assert repetition_rate([text], 2) == 3 / 5
    assert repetition_rate([[1, 2, 3], [1, 2, 3]], 2) == 0.0
    assert entropy([text]) == pytest.approx(math.log(2))
    assert entropy([[1, 1], text]) == pytest.approx(math.log(2) / 2)
    assert agreement([[1, 2, 9, 4], [5, 6]], [[1, 2, 3, 4], [5, 6]]) == 4 / 6
    for measure in (
        lambda: distinct([], 2),
        lambda: repetition_rate([[1]]),
        lambda: entropy([]),
        lambda: agreement([], []),
    ):
        assert math.isnan(measure())


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=4))
def test_rates_are_rates(texts):
    assert 0 <= entropy(texts) <= math.log(4) + 1e-9
    assert agreement(texts, texts) == 1.0
    longest = max(map(len, texts))
    if longest >= 2:
        assert 0 < distinct(texts, 2) <= 1
        assert 0 <= repetition_rate(texts, 2) < 1
