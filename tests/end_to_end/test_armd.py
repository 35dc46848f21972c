"""An ARMD run as a user starts it: records, a stop while tokens begin to move, another layout, strides, text."""

import pytest

from card_scale.errors import ExitCode
from card_scale.generation import load
from card_scale.generation.perplexity import dataset_perplexity
from card_scale.objectives.armd import ArmdObjective
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_generation import tool  # noqa: F401 - fixture
from tests.end_to_end.test_train import assert_same_trajectory, records, train, train_and_stop_after_three_steps
from tests.layouts.processes import run_ranks

ARMD = ["objective.name=armd", "objective.permuted=8", "objective.ar_steps=2", "objective.permute_steps=5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    """An uninterrupted run on two data-parallel ranks; returns (configuration, run directory)."""
    root = tmp_path_factory.mktemp("armd")
    path = write_config(root, dataset)
    assert run_ranks(train, 2, [str(path), *ARMD], deadline=120) == [0] * 2
    return path, root / "run"


def test_a_run_records_exact_and_any_order_likelihood_apart(trained):
    training, evaluations = records(trained[1])
    for evaluation in evaluations:
        assert "bound" not in evaluation
        assert "validation_nll_standard_error" not in evaluation
        for key in ("armd/any_order_nll", "armd/permuted_nll"):
            assert 0 < evaluation[f"{key}_standard_error"] < evaluation[key]
    # Updates 0 and 1 are left to right; then 1, 3 and 5 tokens move, and 8 in the last.
    shares = [record["armd/out_of_place"] for record in training]
    assert shares[:2] == [0.0, 0.0]
    assert 0 < shares[2] < shares[5] < 1


def test_a_stop_while_tokens_begin_to_move_and_another_layout(trained, tmp_path):
    path, whole = trained
    arguments = [str(path), f"run.dir={tmp_path / 'run'}", *ARMD]
    assert run_ranks(train_and_stop_after_three_steps, 2, arguments, deadline=90) == [ExitCode.STOPPED] * 2
    layout = ["parallel.pipeline=2", "parallel.zero=null", "parallel.engine=fsdp2", "model.attention_backend=dense"]
    assert run_ranks(train, 2, [*arguments, *layout], deadline=90) == [0] * 2
    assert_same_trajectory(tmp_path / "run", whole)


def test_its_checkpoint_scores_writes_and_is_no_llama(trained, dataset, tool, tmp_path):  # noqa: F811
    _, evaluations = records(trained[1])
    checkpoint = trained[1] / "checkpoints/iter_0000006"
    model = load(checkpoint)
    result = list(dataset_perplexity(model, dataset, "validation", samples=5, batch=5, draws=1))[-1]
    assert result.nats_per_token == pytest.approx(evaluations[-1]["validation_nll"], rel=1e-5)
    code, text, words = tool("generate", checkpoint, "--prompt", "a", "--tokens", 12, "--strides", 3, "--through-end")
    assert code == 0
    assert "12 tokens in 6 passes, 2.00 a pass" in words
    assert text
    for option, message in (("--strides", "strides (S) 5 does not divide"), ("--compile", "without compilation only")):
        code, _, words = tool("generate", checkpoint, option, *(["5"] if option == "--strides" else []), "--tokens", 12)
        assert code == 3
        assert message in words
    code, _, words = tool("generate", checkpoint, "--method", "ar", "--tokens", 4)
    assert (code, "method ar does not decode a model trained with objective.name armd" in words) == (3, True)
    code, _, words = tool("checkpoint", "export", checkpoint, tmp_path / "exported")
    assert code == 5
    assert "objective.name armd" in words
    assert not (tmp_path / "exported").exists()
    # Its sweep is measured against one token a pass of its own.
    arguments = ["--data", dataset, "--strides", 2, 1, "--tokens", 8, "--prompts", 2, "--repetitions", 1]
    code, text, _ = tool("decode_sweep", checkpoint, *arguments)
    assert code == 0
    assert [line.split(",")[:2] for line in text.splitlines()[1:3]] == [
        ["armd_strided", " S 1"],
        ["armd_strided", " S 2"],
    ]


def test_strides_are_fine_tuned_from_its_weights(trained, tmp_path):
    path, run = trained
    options = ["objective.name=armd", "objective.permuted=0", "objective.strides=[1,2,4]", "train.steps=4"]
    begin = f"run.init_from={run / 'checkpoints/iter_0000006'}"
    assert run_ranks(train, 1, [str(path), f"run.dir={tmp_path / 'run'}", *options, begin], deadline=90) == [0]
    training, evaluations = records(tmp_path / "run")
    before = records(run)[1][-1]
    assert evaluations[0]["validation_nll"] == pytest.approx(before["validation_nll"], rel=1e-4)
    assert {"armd/stride_2_nll", "armd/stride_4_nll"} <= set(evaluations[-1])
    assert "armd/permuted_nll" not in evaluations[-1]
    # The strides of the four updates under the run's seed, 1234.
    strides = [ArmdObjective(permuted=0, strides=(1, 2, 4)).stride(update, 1234) for update in range(4)]
    assert [record["armd/out_of_place"] > 0 for record in training] == [stride > 1 for stride in strides]
    assert len(set(strides)) > 1
