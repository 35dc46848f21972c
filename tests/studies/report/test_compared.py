"""Tables, figures and crossovers on the same seeds, and sentences that follow from the numbers."""

import re

import pytest

from card_scale import charts
from card_scale.studies.report import compared, readings
from card_scale.studies.report import finished_runs as runs
from card_scale.studies.report import fitted_laws as laws
from card_scale.studies.report.caveats import caveats
from card_scale.studies.report.figures import Missing, figures, look
from card_scale.studies.report.page import Compared, page
from tests.studies.report.conftest import UNIQUE, bound, row

NOTHING = Missing("Nothing", "it is not asked for")


@pytest.fixture
def lopsided():
    """AR is best after 4 epochs, which seed 1 alone has; CARD after 16, which both have: seed 2 is the harder one."""
    table = [row("ar", 1, 5.0), row("ar", 4, 4.0), row("ar", 16, 4.4), row("ar", 16, 4.9, seed=2)]
    return table + [row("card", 1, 5.2), row("card", 4, 4.3), row("card", 16, 3.9), row("card", 16, 4.5, seed=2)]


def test_one_seed_is_not_ranked_against_the_mean_of_two(write_table, lopsided):
    """The mean of CARD's two seeds, 4.2, is above AR's one, 4.0; on the seed that both have CARD is lower."""
    study = runs.read(write_table(lopsided))
    one = compared.panel(study, "s", UNIQUE)
    assert one.seeds == {"1"}
    assert {arm: one.lowest(arm).loss for arm in one.points} == {"ar": 4.0, "card": 3.9}
    text = page("T", study, [NOTHING], [], Compared(["ar"], []), "x")
    ranked = re.findall(r"<th scope=row>(\w+)</th><td>([\d.]+)</td><td>-</td><td>1</td>", text)[:2]
    assert ranked == [("card", "3.9000"), ("ar", "4.0000")]
    assert "card is lowest: 3.900 nats at 16 epochs, 0.100 below ar (4.000 at 4 epochs) on seed 1" in text
    # The line of the figure ends where the table stands.
    _, (axis,) = charts.new_axes(1)
    figures(study, [])[0].drawings[0].draw(axis)
    drawn = [line.get_ydata()[-1] for line in axis.lines if len(line.get_xdata()) == 3]
    assert drawn == [4.4, 3.9]
    # So does the curve over FLOPs, and what the crossover is made of.
    assert [point.loss for point in compared.on_subset(study, "card", UNIQUE)] == [5.2, 4.3, 3.9]


def test_cells_with_more_seeds_are_compared_on_all_that_they_share(write_table):
    table = [row(arm, epochs, loss) for arm, loss in (("ar", 4.0), ("card", 3.9)) for epochs in (1, 4)]
    table = [one | {"val_loss": one["val_loss"] + (1.0 if one["epochs"] == 1 else 0.0)} for one in table]
    table += [row("ar", 4, 4.2, seed=2), row("card", 4, 4.3, seed=2)]
    one = compared.panel(runs.read(write_table(table)), "s", UNIQUE)
    assert one.seeds == {"1", "2"}
    assert {arm: one.lowest(arm).loss for arm in one.points} == pytest.approx({"ar": 4.1, "card": 4.1})
    # What lacks seed 2 is drawn apart, with the whole ladder's seed 1.
    assert [(p.first.epochs, p.loss) for p in one.apart("ar")] == [(1, 5.0), (4, 4.0)]
    assert [(p.first.epochs, p.loss) for p in one.every("ar")] == [(1, 5.0), (4, pytest.approx(4.1))]


def test_arms_without_a_common_seed_are_not_ranked(write_table):
    study = runs.read(write_table([row("ar", 4, 4.0), row("card", 4, 3.0, seed=2)]))
    panels = compared.panels(study)
    assert not panels[0].seeds
    assert "share no seed, hence no data: their losses are not ranked" in readings.summary(study, panels)[1]
    assert "lowest" not in readings.summary(study, panels)[1]


@pytest.mark.parametrize(
    "table, first, second, third",
    [
        ([row("ar", 4, 4.0)], "1 run of 1 arm (ar)", "The only arm, ar is lowest: 4.000 nats at 4 epochs.", "one seed"),
        (
            [row("ar", 1, 4.0), row("ar", 16, 4.5)],
            "for 1 to 16 epochs",
            "The only arm, ar is lowest: 4.000 nats at 1 epoch; 16 epochs end 0.50 higher.",
            "one seed",
        ),
        (
            [bound(4, 4.0), bound(16, 3.5)],
            "(mdlm)",
            "The only arm, mdlm is lowest: at most 3.500 nats at 16 epochs.",
            "mdlm is known by an upper bound only, 3.500",
        ),
        (
            [row("ar", 4, 4.0), bound(4, 3.5)],
            "2 runs of 2 arms",
            "ar is lowest: 4.000 nats at 4 epochs.",
            "below every exact loss, so it is better",
        ),
        (
            [row("ar", 4, 4.0), bound(4, 4.5)],
            "2 runs of 2 arms",
            "ar is lowest: 4.000 nats at 4 epochs.",
            "which says nothing of its rank",
        ),
        (
            [row("ar", 4, 4.0) | {"tokens_D": 500, "epochs": 1.0, "unique_tokens_U": 500}],
            "on 500 unique tokens",
            "The only arm, ar",
            "one seed",
        ),
        (
            [row(arm, 4, loss, seed=seed) for seed, pair in ((1, (4.0, 3.9)), (2, (4.0, 4.2)))
             for arm, loss in zip(("ar", "card"), pair, strict=True)],
            "4 runs of 2 arms",
            "on seeds 1, 2, but the seeds disagree about the order",
            "parameters behave",
        ),
    ],
)  # fmt: skip
def test_three_sentences_also_of_degenerate_studies(write_table, table, first, second, third):
    failed = row("ar", 64, 0.0) | {"status": "failed", "val_loss": None}
    study = runs.read(write_table([*table, failed]))
    said = readings.summary(study, compared.panels(study))
    assert first in said[0]
    assert "; 1 other run is not done." in said[0]
    assert second in said[1]
    assert third in said[2]
    assert all(re.fullmatch(r"[^.]*(\d\.\d+[^.]*)*\.", sentence) for sentence in said)


def test_a_bound_is_called_one_in_every_row_and_never_ranked(write_table, rows):
    study = runs.read(write_table(rows))
    text = page("T", study, figures(study, []), [], Compared(["ar"], laws.crossovers(study, "ar", 5, 0)), "x")
    body = text[text.index("<section>") :]
    assert not re.search(r"<th scope=row>mdlm</th>", body)
    assert re.search(
        r"<th scope=row>mdlm \(upper bound\)</th>.*?<td>≤ -0\.9000</td>.*?better by at least 0\.9000", body
    )
    assert re.search(r"<td>≤ \+1\.0000</td>.*?nothing: the bound is above", body)
    exact = body.index("losses minus those of ar")
    assert "mdlm" not in body[exact : body.index("bounds minus the losses of ar", exact)].partition("</table>")[0]


def test_one_line_style_an_arm_everywhere(write_table, rows):
    study = runs.read(write_table(rows))
    assert look(study, "mdlm")["linestyle"] == charts.BOUND_DASHES
    for figure in figures(study, []):
        _, (axis,) = charts.new_axes(1)
        figure.drawings[0].draw(axis)
        colour = look(study, "mdlm")["color"]
        lines = [line for line in axis.lines if line.get_color() == colour and len(line.get_xdata()) > 2]
        assert all(line.get_linestyle() == "--" for line in lines), figure.name
        assert lines or figure.name == "loss_by_pass"


def test_passes_that_were_not_logged_are_holes(write_table, tmp_path):
    path = write_table([row("ar", 16, 4.0)])
    (tmp_path / "losses_by_pass.csv").write_text(f"run,pass,loss\n{row('ar', 16, 4.0)['run']},3,3.0\n")
    with (tmp_path / "losses_by_pass.csv").open("a") as file:
        file.write("".join(f"{row('ar', 16, 4.0)['run']},{number},2.0\n" for number in (4, 8)))
    study = runs.read(path)
    _, (axis,) = charts.new_axes(1)
    figures(study, [])[3].drawings[0].draw(axis)
    (line,) = axis.lines
    assert [(x, y) for x, y in zip(*line.get_data(), strict=True) if y == y] == [(3, 3.0), (4, 2.0), (8, 2.0)]
    assert sum(y != y for y in line.get_ydata()) == 1


def test_bounds_among_themselves_have_no_verdict(write_table):
    """With bounds alone the first arm, which the others are compared with, is one as well."""
    table = [bound(epochs, loss) for epochs, loss in ((1, 6.0), (4, 5.0), (16, 4.0))]
    study = runs.read(write_table([*table, *(one | {"objective": "bd3lm", "run": f"b{one['run']}"} for one in table)]))
    base, other = study.arms
    crossed = laws.crossovers(study, base, 5, 0)
    assert [(one.found, one.reason) for one in crossed] == [(None, f"{base} is known by an upper bound only")]
    text = page("T", study, [NOTHING], [], Compared([base], crossed), "x")
    against = text[text.index(f"Against {base}, seed by seed</h2>") : text.index("Crossovers</h2>")]
    assert f"<th scope=row>{other} (upper bound)</th>" in against
    assert "differences of upper bounds: their signs do not say which model is better" in against
    for verdict in ("better by", "better than", "exact", "≤"):
        assert verdict not in against


def test_a_bound_on_other_seeds_is_compared_with_nothing(write_table):
    table = [row("ar", epochs, 4.0 - epochs / 100) for epochs in (1, 4, 16)]
    study = runs.read(write_table([*table, *(bound(epochs, 2.188, seed=2) for epochs in (1, 4, 16))]))
    panels = compared.panels(study)
    limits = readings.summary(study, panels)[2]
    assert "mdlm is known by an upper bound only, 2.188, on seed 2, and is compared with no exact loss" in limits
    assert "better" not in limits
    assert readings.over_epochs(study, panels[0])[-1] == "On seed 1; not compared: mdlm on seed 2."
    assert any("on equal seeds" in one and "seed 1; not compared: mdlm on seed 2)" in one for one in caveats(study, []))
    (crossed,) = laws.crossovers(study, "ar", 5, 0)
    assert (crossed.found, crossed.reason) == (None, "the two share no seed, hence no data")
    # With the seed of the others among its own it is.
    both = runs.read(write_table([*table, bound(16, 2.188, seed=2), bound(16, 2.0)]))
    (one,) = compared.panels(both)
    assert one.is_compared("mdlm")
    assert "2.000, below every exact loss, so it is better" in readings.summary(both, [one])[2]
    assert one.seeds_said == "seed 1"
