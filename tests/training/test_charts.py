"""Groups and charts of TensorBoard: of what a run draws, and no others."""

import dataclasses

import pytest

from card_scale.config import Config
from card_scale.objectives import registry
from card_scale.training.charts import charts


def groups(objective="card", train_samples=0, repeats_data=False, peak_is_known=False):
    config = Config()
    config = dataclasses.replace(
        config,
        objective=registry.create(objective),
        data=dataclasses.replace(config.data, train_samples=train_samples),
    )
    return charts(config, repeats_data=repeats_data, peak_is_known=peak_is_known)


def test_a_plain_run_has_no_empty_groups_nor_charts():
    assert list(groups("ar")) == ["learning", "speed", "data"]
    assert list(groups("card")) == ["learning", "card", "speed", "data"]
    assert list(groups("mdlm")) == ["learning", "mdlm", "speed", "data"]
    assert list(groups()["speed"]) == ["tokens per second", "seconds per step"]


def test_what_a_run_draws_besides_has_its_charts():
    assert list(groups(repeats_data=True)["repetition"]) == ["first seen and repeated"]
    assert list(groups(train_samples=8)["repetition"]) == ["loss of training samples", "gap to validation"]
    assert "model FLOPs utilisation" in groups(peak_is_known=True)["speed"]


@pytest.mark.parametrize(
    "objective, title, tag",
    [
        ("card", "validation loss", "lm loss validation"),
        ("mdlm", "validation loss (bound)", "lm loss validation bound"),
    ],
)
def test_few_points_are_never_smoothed(objective, title, tag):
    assert groups(objective)["learning"][title] == ("Margin", [tag] * 3)


def test_runs_of_all_objectives_share_the_definition_of_a_chart():
    """TensorBoard would draw a chart for each."""
    defined = {}
    for name in registry.names():
        for group, titled in groups(name).items():
            for title, chart in titled.items():
                assert defined.setdefault((group, title), chart) == chart
