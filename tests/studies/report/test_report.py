"""The report: what it groups, what it draws and leaves out, what it says, what it refuses."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws.analysis import Settings
from card_scale.laws.table_reader import find
from card_scale.studies.report import finished_runs as runs
from card_scale.studies.report import fitted_laws as laws
from card_scale.studies.report import page
from card_scale.studies.report.caveats import caveats
from card_scale.studies.report.figures import Figure, Missing, envelope, figures
from card_scale.studies.report.scalars import write_scalars
from card_scale.studies.report.swept_figures import isoloss, loss_over_weight_decay, sweeps
from tests.studies.report.conftest import UNIQUE, bound, row

NOTHING = Missing("Nothing", "it is not asked for")

ROOT = Path(__file__).resolve().parents[3]


def test_cells_are_seeds_together_and_settings_apart(write_table, rows):
    study = runs.read(write_table(rows))
    assert study.arms == ["ar", "card", "mdlm"]
    assert [study.is_bound(arm) for arm in study.arms] == [False, False, True]
    assert study.panels() == [("s", UNIQUE)]
    points = study.points("card", "s", UNIQUE)
    assert [(p.first.epochs, p.first.setting.weight_decay, len(p.runs)) for p in points] == [
        (1, 0.1, 1),
        (4, 0.1, 1),
        (16, 0.1, 2),
        (16, 0.4, 1),
    ]
    seeds = points[2]
    assert seeds.loss == pytest.approx(3.85)
    assert seeds.spread == (3.8, 3.9)
    assert seeds.deviation == pytest.approx(0.1 / math.sqrt(2))
    assert seeds.mean("gap") == pytest.approx(0.16)
    assert [point.loss for point in study.best_points("card", "s", UNIQUE)] == [5.2, 4.1, 3.7]
    assert [one.cells["run"] for one in study.unfinished] == [rows[-1]["run"]]


def test_laws_and_curves_take_the_best_setting_of_each_cell_with_all_its_seeds(write_table):
    sweep = [row("ar", 4, 4.0), row("ar", 4, 4.4, seed=2), row("ar", 4, 4.1, weight_decay=0.4)]
    study = runs.read(write_table([row("ar", 1, 5.0), row("ar", 1, 9.0, lr=0.1), *sweep]))
    taken = laws.as_runs(study.tuned("ar"))
    # On seed 1, which both have; that seed 2 is harder says nothing about the setting.
    assert taken.loss.tolist() == [5.0, 4.0, 4.4]
    assert taken.cost().tolist() == [6.0 * 5000 * UNIQUE * epochs for epochs in (1, 4, 4)]
    better = runs.read(write_table([*sweep[:2], row("ar", 4, 3.9, weight_decay=0.4)]))
    assert laws.as_runs(better.tuned("ar")).loss.tolist() == [3.9]


def test_other_arms_than_the_first_can_be_compared_with(write_table, rows):
    study = runs.read(write_table(rows))
    assert study.exact_arms(["card", "ar", "card"]) == ["card", "ar"]
    for name in ("mdlm", "carp"):
        with pytest.raises(ConfigurationError, match=f"no arm '{name}' with an exact likelihood.* ar, card$"):
            study.exact_arms([name])
    text = page.page("T", study, [NOTHING], [], page.Compared(["ar", "card"], []), "x")
    assert text.index("Against ar, seed by seed") < text.index("Against card, seed by seed")
    assert "<th scope=row>ar</th><td>s</td><td>1,000</td><td>1</td><td>-0.2000</td>" in text  # 5.0 - 5.2


def test_weight_decay_curves_keep_subsets_and_learning_rates_apart(write_table):
    sweep = [
        row("ar", 4, 4.0, weight_decay=decay, lr=lr, size=size, params_N=5000 + len(size))
        for decay in (0.1, 0.4)
        for lr in (1e-3, 2e-3)
        for size in ("s", "medium")
    ]
    found = sweeps(runs.read(write_table(sweep)), "s", UNIQUE)
    assert {key: [p.first.setting.weight_decay for p in points] for key, points in found.items()} == {
        ("ar", 4.0, 1e-3, 0.0): [0.1, 0.4],
        ("ar", 4.0, 2e-3, 0.0): [0.1, 0.4],
    }


def test_a_run_of_one_epoch_in_whole_batches_stands_with_the_longer_ones(write_table):
    short = row("ar", 1, 5.0) | {"tokens_D": 995, "epochs": 0.995}
    study = runs.read(write_table([short, row("ar", 4, 4.0)]))
    assert [point.first.tokens for point in study.curve("ar", "s", UNIQUE)] == [995, 4000]


def test_curves_and_differences_stay_with_their_seeds(write_table):
    table = [row("ar", 1, 5.0), row("ar", 4, 4.0), row("ar", 4, 7.0, seed=2)]
    table += [row("card", 4, 4.5), row("card", 4, 7.25, seed=2), row("card", 4, 1.0, seed=3)]
    study = runs.read(write_table(table))
    first, last = study.best_points("ar", "s", UNIQUE)
    assert [point.loss for point in study.curve("ar", "s", UNIQUE)] == [5.0, 4.0]
    (card,) = study.best_points("card", "s", UNIQUE)
    found = runs.difference(card, last)
    assert (found.seeds, found.mean) == (2, pytest.approx(0.375))
    assert found.deviation == pytest.approx(0.25 / math.sqrt(2))
    assert runs.difference(card, first) == (1, -0.5, None)
    text = page.page("T", study, [NOTHING], [], page.Compared(["ar"], []), "x")
    assert "<th scope=row>card</th><td>s</td><td>1,000</td><td>4</td><td>+0.3750</td>" in text


def test_arms_with_exact_likelihoods_come_first(write_table, rows):
    assert runs.read(write_table(rows[::-1])).arms == ["card", "ar", "mdlm"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"val_loss": float("nan")}, r"row 1: val_loss = nan"),
        ({"val_loss": None}, r"row 1: val_loss = \(empty\)"),
        ({"tokenizer_hash": "other"}, "tokenizer_hash is mixed"),
        ({"validation_hash": "other"}, "validation_hash is mixed"),
        ({"validation_hash": "other"}, r"cannot be compared\. Make a table, and a report, of each$"),
        ({"val_loss": float("nan")}, r"val_loss = nan\. Their status says that they are done, so write the table anew"),
        ({"bound": True}, "bound is mixed: .*row 1 has true, .*row 2 has false"),
        *(
            ({name: value}, rf"row 1: {name} = {value}; it must be a (positive )?finite number")
            for name in (
                "gap",
                "best_val_loss",
                "best_epoch",
                "val_loss_standard_error",
                "lr",
                "weight_decay",
                "dropout",
                "flops",
            )
            for value in (math.nan, math.inf)
        ),
        ({"lr": None}, r"row 1: lr = \(empty\); it must be a finite number"),
        ({"vocabulary_size": None}, r"row 1: vocabulary_size = \(empty\); it must be a whole number above 1"),
        ({"vocabulary_size": 512.5}, r"row 1: vocabulary_size = 512.5; it must be a whole number above 1"),
        ({"vocabulary_size": 1}, r"row 1: vocabulary_size = 1; it must be a whole number above 1"),
        ({"unique_tokens_U": 10 * UNIQUE}, "row 1: unique_tokens_U = 10000 is more than"),
    ],
)
def test_tables_that_no_comparison_should_be_made_of(write_table, rows, change, message):
    with pytest.raises(DataError, match=message) as refusal:
        runs.read(write_table([rows[0] | change, *rows[1:]]))
    # Options of another tool are no advice.
    assert "--" not in str(refusal.value)


@pytest.mark.parametrize("bound", ["maybe", "2"])
def test_a_bound_is_true_or_false(write_table, rows, bound):
    text = [one | {"bound": bound if number == 1 else str(one["bound"])} for number, one in enumerate(rows)]
    with pytest.raises(DataError, match=f"row 2: bound = {bound}; it must be true or false"):
        runs.read(write_table(text))


def test_a_directory_stands_for_the_table_in_it(write_table, rows, tmp_path):
    with pytest.raises(
        DataError, match=r"neither results\.parquet nor results\.csv; tools/study\.py table writes them"
    ):
        find(tmp_path)
    parquet = write_table(rows)
    assert find(tmp_path) == parquet
    parquet.unlink()
    assert find(tmp_path) == tmp_path / "results.csv"
    assert len(runs.read(find(tmp_path)).runs) == len(rows) - 1
    assert find(tmp_path / "none.csv") == tmp_path / "none.csv"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"run,pass\na,1\n", "losses_by_pass.csv has no column loss"),
        (b"run,pass,loss\na,1,nan\na,one,3\n", "losses_by_pass.csv row 2: pass = one; it must be a whole number"),
        (b"run,pass,loss\na,1,\n", r"losses_by_pass.csv row 1: loss = \(empty\); it must be a number"),
        (b"run,pass,loss\na,1\n", "losses_by_pass.csv row 1 has 2 cells, the header 3"),
        (b"run,pass,loss\n\xe9,1,2\n", "losses_by_pass.csv is not UTF-8"),
    ],
)
def test_losses_by_pass_that_are_damaged_are_refused(write_table, rows, tmp_path, content, message):
    path = write_table(rows)
    (tmp_path / "losses_by_pass.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        runs.read(path)


def test_duplicates_missing_columns_and_nothing_done_are_refused(write_table, rows):
    with pytest.raises(DataError, match="repeats"):
        runs.read(write_table([*rows, rows[0] | {"run": "again"}]))
    with pytest.raises(DataError, match="none of 1 runs is done"):
        runs.read(write_table([rows[-1]]))
    with pytest.raises(DataError, match="has no column bound"):
        runs.read(write_table([{k: v for k, v in one.items() if k != "bound"} for one in rows]))


def test_figures_that_the_data_do_not_allow_say_why(write_table, rows):
    study = runs.read(write_table(rows))
    assert all(isinstance(one, Figure) for one in (*figures(study, []), loss_over_weight_decay(study)))
    assert "the study has 1" in isoloss(study).reason
    single = [row("ar", 4, 4.0) | {"gap": None}]
    alone = runs.read(write_table(single))
    shown = [*figures(alone, []), loss_over_weight_decay(alone)]
    reasons = {one.title: one.reason for one in shown if isinstance(one, Missing)}
    assert "two numbers of epochs" in reasons["Validation loss over epochs"]
    assert "data.train_samples" in reasons["Gap between validation and training samples over epochs"]
    assert "same FLOPs" in reasons["Validation loss over training FLOPs"]
    assert "two weight decays" in reasons["Validation loss over weight decay at fixed epochs"]


def test_three_sizes_make_contours(write_table):
    grid = [
        row("ar", epochs, 5.0 - number - 0.1 * epochs, size=f"s{number}", params_N=1000 * 4**number)
        for number in range(3)
        for epochs in (1, 2, 4)
    ]
    drawn = isoloss(runs.read(write_table(grid)))
    assert [drawing.title for drawing in drawn.drawings] == ["ar, U = 1,000"]


def test_the_envelope_by_hand(write_table, rows):
    study = runs.read(write_table(rows))
    compute, lowest = envelope(study.tuned("ar"))
    assert compute == [6.0 * 5000 * UNIQUE * e for e in (1, 4, 16)]
    assert lowest == [5.0, 4.0, 4.0]


def test_crossovers_count_what_was_really_spent(write_table):
    def ladder(arm, losses, factor):
        return [row(arm, e, loss) | {"flops": factor * 1e6 * e} for e, loss in zip((1, 4, 16, 64), losses, strict=True)]

    same = [*ladder("ar", (5.0, 4.0, 3.9, 3.9), 1), *ladder("card", (5.5, 4.5, 3.5, 3.0), 1)]
    (plain,) = laws.crossovers(runs.read(write_table(same)), "ar", samples=20, seed=0)
    twice = [*ladder("ar", (5.0, 4.0, 3.9, 3.9), 1), *ladder("card", (5.5, 4.5, 3.5, 3.0), 2)]
    (dear,) = laws.crossovers(runs.read(write_table(twice)), "ar", samples=20, seed=0)
    assert (plain.base, plain.challenger) == ("ar", "card")
    # Lead of 0.5 at 4 and -0.4 at 16 epochs, linear in log compute.
    assert plain.found.compute == pytest.approx(4e6 * 4 ** (0.5 / 0.9))
    # At 16e6 FLOPs 4.0, half way from 4.5 at 8e6 to 3.5 at 32e6, against 3.9: leads of 0.1 and -0.4.
    assert dear.found.compute == pytest.approx(16e6 * 2**0.2)
    assert laws.crossings([plain]) == []  # four runs give it no interval within them
    study = runs.read(write_table(same))
    assert isinstance(laws.critical_compute(study, [plain]), Missing)
    other = plain._replace(unique=5 * UNIQUE, found=plain.found._replace(unique=5 * UNIQUE))
    assert not plain.found.bounded  # by four runs
    assert isinstance(laws.critical_compute(study, [plain, other]), Missing)
    certain = [
        one._replace(found=one.found._replace(low=one.found.compute / 2, high=2 * one.found.compute))
        for one in (plain, other)
    ]
    assert isinstance(laws.critical_compute(study, certain), Figure)
    at = plain.found.compute
    assert laws.crossings([certain[0]]) == [("card", UNIQUE, at, at / 2, 2 * at)]
    wide = certain[0]._replace(found=certain[0].found._replace(low=at / 20))
    assert laws.crossings([wide]) == []  # known to a factor of 40: not identified, so no line
    (few,) = laws.crossovers(runs.read(write_table([same[0], same[4]])), "ar", samples=20, seed=0)
    assert few.found is None
    assert "a curve needs 3" in few.reason


def test_what_must_be_said_is_said(write_table, rows):
    study = runs.read(write_table(rows))
    said = " ".join(caveats(study, laws.fit_arms(study, "data-constrained", Settings(starts=4, bootstrap=5))))
    assert "mdlm are estimated upper bounds" in said
    assert "8 of 9 cells have one seed" not in said
    assert "one seed" in said
    assert "one of lowest validation loss is shown" in said
    assert "1 run is not done" in said
    assert "The held-out documents were not compared with the training documents" in said


@pytest.mark.parametrize("flags, said", [((True, True), False), ((True, False), True), ((None, True), True)])
def test_what_was_never_decontaminated_is_said(write_table, flags, said):
    rows = [row("ar", epochs, 3.0, decontaminated=flag) for epochs, flag in zip((1, 4), flags, strict=True)]
    found = " ".join(caveats(runs.read(write_table(rows)), []))
    assert ("not compared with the training documents" in found) == said


def test_the_page_ranks_bounds_apart_and_lists_failures(write_table, rows):
    study = runs.read(write_table(rows))
    text = page.page("T<1>", study, [Missing("None", "why & how")], [], page.Compared(["ar"], []), "x.parquet")
    exact, bounds = text.index(", exact likelihood</h3>"), text.index(", upper bounds</h3>")
    assert exact < bounds
    # The bound is the lowest number of all and does not stand among the exact ones.
    assert "mdlm" not in text[exact:bounds]
    assert re.search(r"<th scope=row>mdlm \(upper bound\)</th><td>≤ 3\.6000 ± 0\.020</td>", text)
    assert text.index("row>card</th>", exact) < text.index("row>ar</th>", exact)
    assert "the loss is &lt;nan&gt;" in text
    assert "T&lt;1&gt;" in text
    assert "why &amp; how" in text


def test_scalars_are_those_of_the_figures(write_table, rows, tmp_path):
    study = runs.read(write_table(rows))
    write_scalars(study, tmp_path / "tensorboard")
    events = EventAccumulator(str(tmp_path / f"tensorboard/card-s-U{UNIQUE}")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("repetition/validation_loss")]
    assert losses == [(1, pytest.approx(5.2)), (4, pytest.approx(4.1)), (16, pytest.approx(3.7))]
    assert [event.value for event in events.Scalars("repetition/loss_by_pass")] == [4.0, 3.0]
    assert len(events.Scalars("repetition/gap")) == 3
    assert sorted(path.name.partition("-s-")[0] for path in (tmp_path / "tensorboard").iterdir()) == [
        "ar",
        "card",
        "mdlm-bound",
    ]


def test_the_tool_writes_a_page_with_every_figure_inside(write_table, tmp_path):
    losses = {1: 5.0, 4: 4.3, 16: 4.05}
    table = [bound(e, loss + 0.3) for e, loss in losses.items()]
    for number, size in enumerate(("a", "b", "c")):
        keys = {"size": size, "params_N": 2000 * 3**number}
        table += [row("ar", e, loss - 0.2 * number, **keys) for e, loss in losses.items()]
    path = write_table(table)
    command = [sys.executable, str(ROOT / "tools/repetition_report.py"), str(path.parent), "--bootstrap", "10"]
    done = subprocess.run([*command, "--hold-out", "1"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = path.parent / "report"
    text = (report / "index.html").read_text()
    pictures = sorted(file.stem for file in (report / "figures").iterdir())
    assert pictures == [
        "gap_over_epochs",
        "isoloss",
        "law_ar",
        "loss_by_pass",
        "loss_over_epochs",
        "loss_over_flops",
    ]
    # One drawing for each of the four sizes where a figure has panels, one for others.
    assert text.count("<svg") == text.count("</svg>") == 4 * 3 + 1 + 1 + 1
    for outside in ('src="', "url(http", "<link", "@import", 'href="http'):
        assert outside not in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert "Extrapolation: the 1 runs of the most compute" in text
    assert "R_D" in text
    # Three runs cannot carry seven constants.
    assert "not fitted: " in text
    bad = subprocess.run([*command[:2], str(tmp_path / "none.csv")], capture_output=True, text=True, check=False)
    assert bad.returncode == 4, bad.stderr
