"""Arms: names, refusals, and which are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_scale.benchmark import arms
from card_scale.benchmark.arms import Arm
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry
from tests.layouts.trajectory import small_config


def test_names_expand_over_blocks_and_keep_their_order():
    parsed = arms.parse(["ar", "card-flex", "bd3lm-dense", "bd3lm-split-b2", "ar"], [4, 8])
    assert [arm.name for arm in parsed] == ["ar", "card-flex", "bd3lm-dense-b4", "bd3lm-dense-b8", "bd3lm-split-b2"]
    assert parsed[2] == Arm("bd3lm", "dense", 4)


@given(st.sampled_from(registry.names()), st.sampled_from(arms.BACKENDS), st.integers(1, 4096))
def test_a_name_means_its_arm(objective, backend, block):
    arm = Arm(objective, backend, block if objective == "bd3lm" else 0)
    assert arms.parse([arm.name], []) == [arm]


@pytest.mark.parametrize(
    "name, message",
    [
        ("crad", "did you mean card"),
        ("bd3lm-flexx-b4", "did you mean flex"),
        ("card-b4", "card has no blocks"),
        ("bd3lm-split", "names no block size"),
        ("bd3lm-b0", "at least 1"),
        ("BD3LM b4", "not of the form"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ConfigurationError, match=message):
        arms.parse([name], [])


@pytest.mark.parametrize(
    "arm, message",
    [
        (Arm("bd3lm", "auto", 3), "objective.block 3 does not divide model.length 16"),
        (Arm("bd3lm", "auto", 32), "objective.block 32 does not divide model.length 16"),
    ],
)
def test_impossible_arms_are_refused(arm, message):
    with pytest.raises(ConfigurationError, match=message):
        arms.config_of(arm, small_config())


def test_blocks_of_one_token_need_no_name():
    assert arms.parse(["armd", "armd-dense", "armd-split-b4"], [8, 16]) == [
        Arm("armd"),
        Arm("armd", "dense"),
        Arm("armd", "split", 4),
    ]
    base = small_config(objective={"name": "bd3lm", "block": 8}, model={"length": 64})
    assert arms.config_of(Arm("armd"), base).objective.block == 1
    assert arms.config_of(Arm("armd", "split", 4), base).objective.block == 4
    assert arms.config_of(Arm("bd3lm", "split", 4), base).objective.block == 4


def test_an_arm_changes_objective_and_attention_alone():
    base = small_config()
    config = arms.config_of(Arm("bd3lm", "split", 4), base)
    assert (config.objective.name, config.objective.block, config.model.attention_backend) == ("bd3lm", 4, "split")
    assert arms.config_of(Arm("card"), config).objective.name == "card"
    assert (config.train, config.parallel, config.optimizer) == (base.train, base.parallel, base.optimizer)


def test_diffusion_is_compared_with_card_by_its_best_kernel_and_on_one_backend():
    chosen = arms.parse(["ar", "card", "card-flex", "mdlm", "bd3lm-flex-b4", "bd3lm-dense-b4"], [])
    assert [(arm.name, base.name) for arm, base in arms.comparisons(chosen)] == [
        ("card", "ar"),
        ("mdlm", "card"),
        ("bd3lm-flex-b4", "card"),
        ("bd3lm-flex-b4", "card-flex"),
        ("bd3lm-dense-b4", "card"),
    ]
    assert arms.comparisons(arms.parse(["ar", "mdlm"], [])) == []
