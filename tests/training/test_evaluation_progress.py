"""What is said while an evaluation lasts."""

from card_scale.training.evaluation_progress import EvaluationProgress, progress_line


def test_lines():
    assert progress_line(0, 0, 40, 2.0) == "step 0 | evaluating: 0 of 40 batches"
    assert progress_line(300, 10, 40, 20.0) == "step 300 | evaluating: 10 of 40 batches, ETA 1 min 00 s"


def test_batches_are_counted():
    progress = EvaluationProgress(5, 4)
    assert progress.line() == "step 5 | evaluating: 0 of 4 batches"
    progress.advance()
    assert progress.line().startswith("step 5 | evaluating: 1 of 4 batches, ETA ")
