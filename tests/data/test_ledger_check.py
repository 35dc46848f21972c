"""The verdict on sample ledgers that are written by hand, line by line."""

import itertools
import json

import numpy as np
import pytest

from card_scale.data import ledger_check
from card_scale.data.ledger import read_ledger
from card_scale.data.ledger_check import check_ledger
from card_scale.errors import DataError

EPOCH, BATCH = 5, 2
SAMPLES = [0, 2, 3, 4, 1, 3, 4, 1, 2, 0, 2, 4, 1, 3, 0]
"""Three epochs of the order of seed 5, which is a matter of numpy's Philox, whose stream is fixed for ever."""
STEPS = 7

RUN = {"global_batch": BATCH, "samples_per_epoch": EPOCH, "dataset": "d", "seed": 5, "reshuffle": True, "format": 1}


def row(position):
    """(epoch, sample, position)."""
    return position // EPOCH, SAMPLES[position], position


def update(step, rows):
    epochs, samples, positions = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return {"step": step, "epochs": epochs, "samples": samples, "positions": positions}


def header(start=0, rank=0, size=1, **changes):
    return {"start": start, "data_parallel_rank": rank, "data_parallel_size": size, **RUN, **changes}


def attempt(start, last, size=1):
    """The lines of each rank of an attempt that makes the updates start + 1 ... last."""
    ranks = [[header(start, rank, size)] for rank in range(size)]
    for step in range(start + 1, last + 1):
        rows = [row(position) for position in range((step - 1) * BATCH, step * BATCH)]
        for rank, lines in enumerate(ranks):
            lines.append(update(step, rows[rank::size]))
    return ranks


def write(directory, *attempts):
    for number, ranks in enumerate(attempts, start=1):
        path = directory / f"ledger/attempt-{number:04d}"
        path.mkdir(parents=True)
        for rank, lines in enumerate(ranks):
            (path / f"dp{rank:04d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory / "ledger"


def check(directory, *attempts, saved_step=None):
    return check_ledger(read_ledger(write(directory, *attempts)), saved_step)


def numbers(report):
    return report.lost, report.doubled, report.misplaced, report.uneven


def test_an_exact_ledger(tmp_path):
    report = check(tmp_path, attempt(0, STEPS), saved_step=STEPS)
    assert report.is_exact
    assert report.faults == ()
    assert numbers(report) == (0, 0, 0, 0)
    assert (report.steps, report.attempts, report.rows, report.epochs_finished) == (7, 1, 14, 2)
    assert report.text() == (
        "7 steps in 1 attempts; 14 samples, 5 in an epoch, 2 epochs finished\n"
        "0 samples lost, 0 doubled, 0 misplaced; 0 steps of another size than the global batch"
    )


FAULTS = {
    "row lost": ({3: [4]}, (1, 0, 0, 1), ["lost: step 3, epoch 1, sample 3 (position 5)", "step 3 has 1 rows"]),
    "row doubled": (
        {3: [4, 4, 5]},
        (0, 1, 0, 1),
        ["doubled: step 3, epoch 0, sample 1 (position 4), as in step 3 (position 4)", "step 3 has 3 rows"],
    ),
    "step lost": ({4: None}, (2, 0, 0, 0), ["lost: step 4, epoch 1, sample 4 (position 6)", "(position 7)"]),
    "last row lost": ({7: [12]}, (1, 0, 0, 1), ["lost: step 7, epoch 2, sample 3 (position 13)", "step 7 has 1"]),
    "first row lost": ({1: [1]}, (1, 0, 0, 1), ["lost: step 1, epoch 0, sample 0 (position 0)", "step 1 has 1"]),
    "one for another": ({3: [4, 0]}, (1, 1, 0, 0), ["sample 3 (position 5)", "doubled: step 3, epoch 0, sample 0"]),
    "steps swapped": ({3: [6, 7], 4: [4, 5]}, (0, 0, 1, 0), ["misplaced: step 3, epoch 1, sample 4 at position 6"]),
    "sample for another": (
        {3: [4, (1, 4, 5)]},
        (1, 1, 1, 0),
        ["lost: epoch 1, sample 3, at no position", "doubled: step 4, epoch 1, sample 4", "that of sample 3"],
    ),
    "swapped in an epoch": ({3: [4, (1, 4, 5)], 4: [(1, 3, 6), 7]}, (0, 0, 2, 0), ["position 5", "position 6"]),
    "swapped in the last epoch": ({6: [(2, 4, 10), (2, 2, 11)]}, (0, 0, 2, 0), ["position 10", "position 11"]),
    "no such sample": ({7: [12, (2, 9, 13)]}, (0, 0, 1, 0), ["sample 9 at position 13"]),
    "position twice": ({7: [12, (2, 0, 12)]}, (1, 1, 1, 0), ["sample 3 (position 13)", "sample 0 at position 12"]),
    "neighbour twice": ({3: [4, 6]}, (1, 1, 0, 0), ["sample 3 (position 5)", "step 4, epoch 1, sample 4"]),
    "wrong epoch": ({3: [4, (0, 3, 5)]}, (1, 1, 1, 0), ["misplaced: step 3, epoch 0, sample 3", "in epoch 1"]),
}
"""The rows of some steps instead of theirs: a position whose row is right, or a row; the lost, doubled and misplaced
samples and the uneven steps that are then to be found; and what is named."""


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_counted_and_named(tmp_path, fault, size):
    changes, expected, named = FAULTS[fault]
    ranks = attempt(0, STEPS, size)
    for step, entries in changes.items():
        rows = [row(entry) if isinstance(entry, int) else entry for entry in entries or ()]
        for rank, lines in enumerate(ranks):
            lines[step] = update(step, rows[rank::size])
        if entries is None:
            for lines in ranks:
                lines[step] = None
    ranks = [[line for line in lines if line is not None] for lines in ranks]
    report = check(tmp_path, ranks)
    assert numbers(report) == expected
    assert not report.is_exact
    assert len([found for found in report.faults if found.startswith("lost: ")]) == expected[0]
    for words in named:
        assert any(words in found for found in report.faults), report.faults


def test_the_count_needs_no_order(tmp_path, monkeypatch):
    """An order that is no permutation would be trained on, and agreed with, all the same."""
    monkeypatch.setattr(ledger_check, "epoch_order", lambda _seed, _epoch, _count: np.array([0, 1, 2, 3, 3]))
    ranks = [[header(), *(update(step, [(0, min(step - 1, 3), step - 1)]) for step in range(1, 6))]]
    ranks[0][0]["global_batch"] = 1
    assert numbers(check(tmp_path, ranks)) == (1, 1, 0, 0)


@pytest.mark.parametrize("same", [True, False])
def test_without_reshuffling_epochs_have_the_order_of_the_first(tmp_path, monkeypatch, same):
    orders = [[0, 2, 3, 4, 1], [0, 2, 3, 4, 1] if same else [0, 2, 3, 1, 4]]
    answers = map(np.array, orders)
    monkeypatch.setattr(ledger_check, "epoch_order", lambda *_: next(answers))
    samples = list(itertools.chain(*orders))
    rows = [(position // EPOCH, samples[position], position) for position in range(10)]
    ranks = [[header(reshuffle=False), *(update(step, rows[2 * step - 2 : 2 * step]) for step in range(1, 6))]]
    assert numbers(check(tmp_path, ranks)) == (0, 0, 0 if same else 2, 0)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_whether_epochs_are_reshuffled_is_the_headers(tmp_path, reshuffle):
    ranks = attempt(0, STEPS)
    ranks[0][0]["reshuffle"] = reshuffle
    assert check(tmp_path, ranks).is_exact == reshuffle


def test_what_a_kill_lost_is_void_and_layouts_may_change(tmp_path):
    report = check(tmp_path, attempt(0, 5, 2), attempt(3, 4), attempt(3, 6, 2), attempt(6, STEPS))
    assert report.is_exact, report.faults
    assert (report.attempts, report.steps, report.rows) == (4, 7, 14)


def test_what_is_void_stays_so_after_later_attempts(tmp_path):
    """Attempt 3 starts where attempt 1 recorded too, but attempt 2 went back before that."""
    report = check(tmp_path / "gone", attempt(0, 5), attempt(2, 3), attempt(5, STEPS))
    assert (report.lost, report.doubled) == (4, 0)
    assert check(tmp_path / "made again", attempt(0, 5), attempt(4, 6), attempt(2, STEPS)).is_exact


def test_an_attempt_that_made_no_update(tmp_path):
    report = check(tmp_path, attempt(0, 5), attempt(4, 4), saved_step=4)
    assert report.is_exact
    assert report.steps == 4
    report = check(tmp_path / "first", attempt(0, 0, 2))
    assert report.is_exact
    assert (report.steps, report.rows, report.epochs_finished) == (0, 0, 0)


@pytest.mark.parametrize("shift, lost, doubled", [(1, 2, 0), (-1, 2, 2)])
def test_a_resume_a_step_late_or_early(tmp_path, shift, lost, doubled):
    second = [[header(3), *(update(s, [row(2 * (s + shift) - 2), row(2 * (s + shift) - 1)]) for s in (4, 5, 6))]]
    report = check(tmp_path, attempt(0, 3), second)
    assert (report.lost, report.doubled) == (lost, doubled)
    assert not report.is_exact
    assert any("doubled: step 4, " in fault and "as in step 3 " in fault for fault in report.faults) == (shift < 0)


def test_a_torn_last_line_counts_for_nothing(tmp_path):
    ledger = write(tmp_path, attempt(0, 5, 2), attempt(4, STEPS, 2))
    for number in (1, 2):
        path = ledger / f"attempt-000{number}/dp0001.jsonl"
        path.write_text(path.read_text()[:-3])
    report = check_ledger(read_ledger(ledger), saved_step=6)
    assert report.is_exact, report.faults
    assert (report.steps, report.rows, report.is_unfinished) == (6, 12, True)
    assert "one more step is not recorded by all ranks" in report.text()
    # Nothing that a checkpoint contains can have been torn.
    assert numbers(check_ledger(read_ledger(ledger), saved_step=7)) == (1, 0, 0, 1)


def test_one_update_can_be_unfinished_and_no_more(tmp_path):
    ranks = attempt(0, STEPS, 2)
    assert check(tmp_path / "one", [ranks[0], ranks[1][:-1]]).is_exact
    assert not check(tmp_path / "two", [ranks[0], ranks[1][:-2]]).is_exact
    assert not check(tmp_path / "all", ranks[:1]).is_exact
    assert not check(tmp_path / "its only one", attempt(0, 6, 2), attempt(6, STEPS, 2)[:1]).is_exact
    report = check(tmp_path / "not applied", [[*ranks[0][:-1], {"step": STEPS, "skipped": True}], ranks[1][:-1]])
    assert report.is_exact
    assert (report.steps, report.skipped) == (STEPS - 1, 0)


def test_a_file_that_a_kill_left_without_a_header(tmp_path):
    ledger = write(tmp_path, attempt(0, 4, 2), attempt(4, 4, 2), attempt(4, STEPS, 2))
    (ledger / "attempt-0002/dp0000.jsonl").write_text("")
    (ledger / "attempt-0002/dp0001.jsonl").write_text('{"start": 4')
    (ledger / "attempt-0004").mkdir()
    report = check_ledger(read_ledger(ledger))
    assert report.is_exact, report.faults
    assert report.attempts == 4


def test_a_run_that_starts_anew_makes_void_what_was_before_even_of_another_run(tmp_path):
    other = [[header(seed=6), update(1, [(0, 0, 0), (0, 1, 1)])]]
    assert check(tmp_path, other, attempt(0, STEPS)).is_exact


def test_a_ledger_that_does_not_reach_the_checkpoint_or_the_start(tmp_path):
    report = check(tmp_path / "end", attempt(0, 5), saved_step=6)
    assert report.faults == ("the newest checkpoint contains 6 steps, the ledger 5",)
    assert not report.is_exact
    report = check(tmp_path / "begin", attempt(2, STEPS))
    assert report.lost == 4
    assert report.faults[0].startswith("nothing was recorded of the first 2 steps")
    assert "lost: step 2, epoch 0, sample 3 (position 2)" in report.faults
    report = check(tmp_path / "resumed", attempt(0, 3), attempt(5, 5))
    assert (report.steps, report.lost) == (5, 4), "made without a ledger"


def skipping(applied=()):
    """Updates 1 ... 6, of which the third was not applied, and its positions 4 and 5 passed over."""
    lines = attempt(0, STEPS)[0]
    return [[*lines[:3], *applied, {"step": 3, "skipped": True}, {"passed_over": [4, 5]}, *lines[4:]]]


def test_an_update_that_was_not_applied(tmp_path):
    report = check(tmp_path / "before", skipping(), saved_step=STEPS)
    assert report.is_exact, report.faults
    assert (report.steps, report.rows, report.skipped, report.passed_over) == (7, 12, 1, 2)
    assert report.epochs_finished == 2
    assert "1 steps not applied, 2 positions passed over" in report.text()
    assert check(tmp_path / "recorded first", skipping(applied=[attempt(0, 3)[0][3]])).is_exact
    (lines,) = skipping()
    report = check(tmp_path / "not passed over", [[*lines[:4], *lines[5:]]])
    assert numbers(report) == (2, 0, 0, 0)
    assert "lost: step 4, epoch 0, sample 1 (position 4)" in report.faults
    last = [[*attempt(0, 6)[0], {"step": STEPS, "skipped": True}, {"passed_over": [12, 13]}]]
    report = check(tmp_path / "the last", last, saved_step=STEPS)
    assert report.is_exact, report.faults
    assert report.steps == STEPS
    (again,) = attempt(0, 2)
    again += [{"step": 3, "skipped": True}, *(update(s, [row(2 * s - 4), row(2 * s - 3)]) for s in (4, 5))]
    assert check(tmp_path / "tried again", [again]).is_exact


def test_ranks_agree_on_what_was_not_applied(tmp_path):
    ranks = attempt(0, STEPS, 2)
    ranks[0][3] = {"step": 3, "skipped": True}
    report = check(tmp_path, ranks)
    assert report.uneven == 1
    assert "step 3 has 1 rows; by another rank it was not applied" in report.faults


def passing_over(first, last, start=0, until=5, before=2):
    """Updates of which those after ``before`` go on behind positions ``first`` to ``last``."""
    lines = attempt(0, before)[0] if not start else [header(start)]
    skipped = last - first + 1
    for step in range(max(start, before) + 1, until + 1):
        lines.append(update(step, [row(BATCH * (step - 1) + skipped + place) for place in range(BATCH)]))
    return lines


def test_positions_that_were_passed_over(tmp_path):
    lines = passing_over(4, 7)
    report = check(tmp_path / "not said", [lines])
    assert numbers(report) == (4, 0, 0, 0)
    lines.insert(3, {"passed_over": [4, 7]})
    report = check(tmp_path / "said", [lines])
    assert report.is_exact, report.faults
    assert report.passed_over == 4
    lines[3:4] = [{"passed_over": [6, 7]}, {"passed_over": [4, 6]}]
    assert check(tmp_path / "in overlapping parts", [lines]).is_exact
    lines[3:5] = [{"passed_over": [4, 7]}, {"passed_over": [5, 6]}]
    assert check(tmp_path / "twice", [lines]).is_exact
    report = check(tmp_path / "and more lost", [[*lines[:-1], update(5, [row(13)])]])
    assert numbers(report) == (1, 0, 0, 1)
    lines[3:5] = [{"passed_over": [4, 6]}]
    report = check(tmp_path / "but one", [lines])
    assert report.faults == ("lost: step 3, epoch 1, sample 1 (position 7)",)


def test_positions_that_were_passed_over_and_trained_on(tmp_path):
    (lines,) = attempt(0, STEPS)
    lines.insert(3, {"passed_over": [4, 6]})
    report = check(tmp_path, [lines])
    assert report.faults == ("positions 4 to 6 were passed over, but 3 of them were trained on",)
    assert report.passed_over == 0


def test_what_is_passed_over_is_void_with_the_updates_that_were_lost(tmp_path):
    lines = passing_over(4, 7)
    lines.insert(3, {"passed_over": [4, 7]})
    # Before the update after which it was passed over, a resume trains on the positions or passes over them again.
    assert check(tmp_path / "trained on", [lines], attempt(1, STEPS)).is_exact
    again = passing_over(4, 7, start=2)
    assert check(tmp_path / "known to the checkpoint", [lines], [again]).is_exact
    assert check(tmp_path / "not known to it", [lines], attempt(2, STEPS)).is_exact
    later = passing_over(4, 7, start=3)
    assert check(tmp_path / "long before", [lines], [later]).is_exact
    gone = [[header(1), attempt(1, 2)[0][1], *again[1:]]]
    assert numbers(check(tmp_path / "void", [lines], gone)) == (4, 0, 0, 0)


HEADER = json.dumps(header())
UPDATE = json.dumps(update(1, [row(0), row(1)]))


@pytest.mark.parametrize(
    "lines, message",
    [
        (["{}"], r"line 1: '{}' is not a ledger's header, a JSON object with start, data_parallel_rank"),
        ([UPDATE], r"line 1: .* is not a ledger's header"),
        ([json.dumps(header(start=-1))], "line 1: .* is not a ledger's header"),
        ([json.dumps(header(global_batch=0))], "line 1: .* is not a ledger's header"),
        ([json.dumps(header(seed="5"))], "line 1: .* is not a ledger's header"),
        ([json.dumps(header(format=2))], "line 1: format 2, this version reads 1"),
        ([json.dumps(header(rank=1, size=2))], r"line 1: of data-parallel rank 1 of 2, whose file is dp0001\.jsonl"),
        ([HEADER, UPDATE, "not JSON"], "line 3: 'not JSON' is not a ledger's line: a step after 0, either with"),
        ([HEADER, UPDATE, ""], "line 3"),
        ([HEADER, '{"step": 1}'], "line 2"),
        ([HEADER, '{"step": 0, "skipped": true}'], "line 2"),
        ([HEADER, UPDATE.replace('"step": 1', '"step": 0')], "line 2"),
        ([HEADER, '{"step": 1, "skipped": false}'], "line 2"),
        ([HEADER, '{"passed_over": [3, 2]}'], "line 2"),
        ([HEADER, '{"passed_over": [-3, 2]}'], "line 2"),
        ([HEADER, UPDATE.replace("[0, 1]", "[0, 1, 2]")], "line 2"),
        ([HEADER, UPDATE.replace("[0, 1]", "[0, 1.5]")], "line 2"),
        ([HEADER, UPDATE.replace("[0, 1]", "[0, -1]")], "line 2"),
        ([HEADER, UPDATE.replace("[0, 1]", f"[0, {2**63}]")], "line 2"),
        ([HEADER, UPDATE.replace("}", ', "loss": 1}')], "line 2"),
    ],
)
def test_foreign_lines_are_named(tmp_path, lines, message):
    ledger = write(tmp_path, attempt(0, 2))
    path = ledger / "attempt-0001/dp0000.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=f"^{path}, {message}"):
        read_ledger(ledger)


@pytest.mark.parametrize(
    "change", [dict(seed=6), dict(dataset="e"), dict(samples_per_epoch=6), dict(global_batch=4), dict(reshuffle=False)]
)
def test_attempts_of_another_run_are_named(tmp_path, change):
    ledger = write(tmp_path, attempt(0, 2), [[header(2, **change)]])
    with pytest.raises(DataError, match=r"attempt-0002/dp0000.jsonl, line 1: .* is of another run than .*attempt-0001"):
        read_ledger(ledger)


@pytest.mark.parametrize("change", [dict(start=1), dict(size=3), dict(seed=6)])
def test_ranks_of_another_attempt_are_named(tmp_path, change):
    ledger = write(tmp_path, [[header(0, 0, 2)], [header(**{"rank": 1, "size": 2, **change})]])
    with pytest.raises(DataError, match=r"attempt-0001/dp0001.jsonl, line 1: .* is of another attempt than .*dp0000"):
        read_ledger(ledger)


def test_what_is_no_ledger(tmp_path):
    with pytest.raises(DataError, match=r"none: no such directory; a run records .* run.ledger is true"):
        read_ledger(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no attempt-0001/dp0000.jsonl or later with a header"):
        read_ledger(tmp_path)
