"""Records of a run that repeats its data: first-seen and repeated loss, the likelihood of training samples, the gap."""

from tests.end_to_end.test_train import records, train
from tests.layouts.processes import run_ranks

LENGTH = 24


def test_a_run_over_several_epochs(config_file, tmp_path):
    # 20 samples in batches of 8: the third update's batch holds the last four of the first epoch.
    overrides = [f"data.unique_tokens={20 * LENGTH + 1}", "data.train_samples=20", "train.eval_every=6"]
    assert run_ranks(train, 1, [str(config_file), *overrides, "parallel.zero=0"], deadline=90) == [0]
    updates, evaluations = records(tmp_path / "run")
    training = {record["step"]: record for record in updates}
    has = {
        step: {name for name in ("first_seen", "repeated") if f"repetition/loss_{name}" in record}
        for step, record in training.items()
    }
    both = {"first_seen", "repeated"}
    assert has == {1: {"first_seen"}, 2: {"first_seen"}, 3: both, 4: {"repeated"}, 5: {"repeated"}, 6: {"repeated"}}
    # CARD scores every position, so the mean over both groups is the unweighted loss.
    mean = sum(training[3][f"repetition/loss_{name}"] for name in both) / 2
    assert abs(mean - training[3]["card/loss_unweighted"]) < 1e-6
    for record in evaluations:
        assert record["repetition/gap"] == record["validation_nll"] - record["train_nll"]
    assert evaluations[-1]["train_nll"] < evaluations[0]["train_nll"]
