"""What is said while an evaluation lasts."""

import threading

from card_scale.training.evaluation_progress import EvaluationProgress, progress_line


def test_lines():
    assert progress_line(0, 0, 40, 2.0) == "step 0 | evaluating: 0 of 40 batches"
    assert progress_line(300, 10, 40, 20.0) == "step 300 | evaluating: 10 of 40 batches, ETA 1 min 00 s"


def test_a_long_wait_is_told_of_though_no_batch_is_done():
    said, heard = [], threading.Event()

    def say(line):
        said.append(line)
        heard.set()

    with EvaluationProgress(5, 4, speaks=True, say=say, first_seconds=0.01) as progress:
        assert heard.wait(60)
        assert said[0] == "step 5 | evaluating: 0 of 4 batches"
        progress.advance()
        before = len(said)
        while len(said) < before + 2:  # the pauses double, from a hundredth of a second
            heard.clear()
            assert heard.wait(60)
    assert said[-1].startswith("step 5 | evaluating: 1 of 4 batches, ETA ")


def test_a_short_one_and_other_ranks_say_nothing():
    said = []
    for speaks in (True, False):
        with EvaluationProgress(5, 4, speaks=speaks, say=said.append, first_seconds=600):
            pass
    assert said == []
