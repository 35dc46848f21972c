"""Who is named when ranks are silent, and that nobody is while there is progress."""

import json
import threading
import time

import pytest

from card_scale.config import WatchdogConfig
from card_scale.training.stragglers import described, memory_fields
from card_scale.training.watchdog import Peer, Watchdog

LIMITS = WatchdogConfig(start=30, data=1, step=2, evaluation=30, save=30)
NOBODY = 2**22 + 1
"""No process has this number."""


class Rank:
    """A rank in a thread of its own, which does what it is told and is then silent."""

    def __init__(self, directory, number: int, ranks: int):
        self.reasons: list[str] = []
        self.ended, self._release = threading.Event(), threading.Event()
        self.places: list[tuple[str, int]] = []
        self.waits_in_collective = False
        self._arguments = (directory, LIMITS, 100, number, [Peer("elsewhere", "none", NOBODY)] * ranks, self._end)

    def _end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.ended.set()

    def run(self) -> None:
        with Watchdog(*self._arguments) as watchdog:
            for place in self.places:
                watchdog.enter(*place)
            # Its innermost frames say ".wait" or do not.
            if self.waits_in_collective:
                self._release.wait()
            while not self._release.is_set():
                time.sleep(0.05)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run)
        thread.start()
        return thread

    def release(self) -> None:
        self._release.set()


def reason_of(ranks: list[Rank], first: int) -> str:
    """Run all ranks until one has ended; return what it said."""
    threads = [rank.start() for rank in ranks]
    try:
        assert ranks[first].ended.wait(30)
    finally:
        for rank in ranks:
            rank.release()
        for thread in threads:
            thread.join()
    return ranks[first].reasons[0]


def test_the_rank_that_has_come_least_far_is_named(tmp_path):
    ranks = [Rank(tmp_path, number, 3) for number in range(3)]
    for rank in ranks:
        rank.places = [("data", 1), ("step", 1), ("data", 2), ("step", 2)]
    ranks[1].places = ranks[1].places[:3]
    assert reason_of(ranks, 1).startswith("rank 1 hangs in the data phase of step 2 for 1 s, limit of 1 s (watchdog.")


def test_of_those_as_far_the_one_that_is_not_waiting_for_the_others(tmp_path):
    ranks = [Rank(tmp_path, number, 2) for number in range(2)]
    for rank in ranks:
        rank.places = [("step", 7)]
    ranks[0].waits_in_collective = True
    assert reason_of(ranks, 0).startswith("rank 1 hangs in the step phase of step 7 for 2 s, limit of 2 s (watchdog.")
    assert list(tmp_path.iterdir()) == [], "who goes on takes its file back"


def test_all_that_wait_are_told_as_such(tmp_path):
    ranks = [Rank(tmp_path, number, 2) for number in range(2)]
    for rank in ranks:
        rank.places, rank.waits_in_collective = [("step", 7)], True
    assert reason_of(ranks, 0) == (
        "all ranks have been silent for 2 s in the step phase of step 7, limit of 2 s (watchdog.step)"
    )


def test_a_rank_without_a_sign_of_life_is_named_with_its_process(tmp_path):
    rank = Rank(tmp_path, 0, 2)
    rank.places = [("step", 3)]
    assert reason_of([rank], 0) == (
        f"rank 1 (process {NOBODY} on elsewhere) gave no sign of life: stopped, gone, or holding the interpreter. "
        "Rank 0 has waited for 2 s in the step phase of step 3, limit of 2 s (watchdog.step)"
    )


def test_progress_keeps_it_quiet_and_a_half_limit_leaves_a_file(tmp_path):
    ended = []
    with Watchdog(tmp_path, LIMITS, 100, 0, [Peer("elsewhere", "none", NOBODY)], ended.append) as watchdog:
        watchdog.enter("data", 1)
        for _ in range(25):
            time.sleep(0.1)
            watchdog.beat()
        assert list(tmp_path.iterdir()) == []
        end = time.monotonic() + 20
        while not (tmp_path / "rank0000.json").exists():  # it gets its name when it is whole
            assert time.monotonic() < end
            time.sleep(0.02)
        told = json.loads((tmp_path / "rank0000.json").read_text())
        watchdog.enter("start", 1)  # which takes it back
        assert (told["phase"], told["step"], told["rank"]) == ("data", 1, 0)
        assert any("test_progress_keeps_it_quiet" in frame for frame in told["stack"])
        while list(tmp_path.iterdir()):
            assert time.monotonic() < end
            watchdog.beat()
            time.sleep(0.02)
    assert ended == []


def test_default_limits_follow_the_collectives():
    assert WatchdogConfig().seconds(600) == {"start": 3600, "data": 150, "step": 300, "evaluation": 3600, "save": 3600}


@pytest.mark.parametrize(
    "lates, probes, batch_ms, ratio, words",
    [
        ([0.1, 0.1], [0.0, 0.0], 0, None, []),
        ([0.1, 0.35, 0.12], [0.0] * 3, 230, None, ["rank 1 has its batch 0.35 s into an update"]),
        ([0.1, 0.15], [0.0] * 2, 50, None, []),
        ([0.0] * 4, [2.0, 2.0, 3.0, 2.1], 0, 1.5, ["the device of rank 2 takes 1.50 times"]),
        ([0.0] * 2, [2.0, 2.2], 0, 1.1, []),
    ],
)
def test_stragglers(lates, probes, batch_ms, ratio, words):
    fields, warnings = described(lates, probes, step_seconds=1.0)
    assert fields["stragglers/batch_ms"] == pytest.approx(batch_ms)
    assert fields.get("stragglers/device_ratio") == (None if ratio is None else pytest.approx(ratio))
    assert len(warnings) == len(words)
    assert all(warning.startswith(word) for warning, word in zip(warnings, words, strict=True))


def test_a_first_update_of_which_a_line_tells_alone_warns_of_no_late_batch():
    fields, warnings = described([0.1, 0.35], [2.0, 3.0], step_seconds=1.0, is_first=True)
    assert fields["stragglers/batch_ms"] == pytest.approx(250)
    assert warnings == ["the device of rank 1 takes 1.50 times as long as the median's"]


def test_the_memory_of_the_rank_that_takes_most_is_recorded():
    assert memory_fields([2.0**30, 3 * 2.0**29, 0.0]) == {"memory/peak_gib": 1.5}
    assert memory_fields([0.0, 0.0]) == {}  # CPUs
