"""Event files, read back with TensorBoard's own reader."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from card_scale.training.tensorboard import SAMPLE_TWINS, TAGS, TensorBoardRecorder

CONFIG = {"run.dir": "runs/x", "optimizer.lr": 3e-4, "model.tie_embeddings": True, "optimizer.betas": [0.9, 0.95]}
GLOBAL_BATCH = 8


def recorder(directory, **resume):
    return TensorBoardRecorder(
        directory, config=CONFIG, config_text="run:\n  dir: runs/x", objective_charts=CHARTS, **resume
    )


CHARTS = {"card": {"masks": [r"card/mask_ratio$"]}, "without charts": {}}


def training_record(step, loss=1.0):
    values = dict.fromkeys(TAGS, 0.5) | {"loss": loss, "card/mask_ratio": 0.4}
    del values["validation_nll"], values["validation_perplexity"]
    return values | {"step": step, "samples": step * GLOBAL_BATCH}


def evaluation_record(step, nll=2.0):
    return {
        "step": step,
        "samples": step * GLOBAL_BATCH,
        "validation_nll": nll,
        "validation_perplexity": math.exp(nll),
        "card/validation_nll_noise_0.50": 3.0,
        "bound": True,
    }


@pytest.fixture(autouse=True)
def numbered_from_zero(monkeypatch):
    """Event files are read in the order of their names, which end in a number counted over the process: 10 sorts before
    9. Runs that resume are other processes."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def curve(accumulator, tag):
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_every_key_has_its_tag_and_twin(tmp_path):
    writer = recorder(tmp_path)
    writer.training(training_record(1))
    writer.evaluation(evaluation_record(1))
    writer.close()
    steps, samples = read(tmp_path), read(tmp_path / "samples")
    megatron = {"lm loss", "learning-rate", "grad-norm", "iteration-time", "throughput", "batch-size", "world-size"}
    megatron |= {"lm loss validation", "lm loss validation ppl"}
    ours = {"card/mask_ratio", "card/validation_nll_noise_0.50", "data/epoch", "mfu/causal", "mfu/full"}
    assert megatron | ours <= set(steps.Tags()["scalars"])
    assert set(steps.Tags()["scalars"]) == set(TAGS.values()) | ours
    assert set(samples.Tags()["scalars"]) == {f"{tag} vs samples" for tag in SAMPLE_TWINS}
    assert curve(samples, "lm loss vs samples") == [(GLOBAL_BATCH, 1.0)]


@pytest.mark.parametrize("stop, saved", [(7, 4), (4, 4), (3, 0)])
def test_one_value_per_step_after_resume(tmp_path, stop, saved):
    first = recorder(tmp_path)
    for step in range(1, stop + 1):
        first.training(training_record(step, loss=1.0))
        first.evaluation(evaluation_record(step, nll=1.0))
    first.close()
    second = recorder(tmp_path, resume_step=saved, resume_samples=saved * GLOBAL_BATCH)
    for step in range(saved + 1, 10):
        second.training(training_record(step, loss=2.0))
        second.evaluation(evaluation_record(step, nll=2.0))
    second.close()
    steps, samples = read(tmp_path), read(tmp_path / "samples")
    expected = [(step, 1.0 if step <= saved else 2.0) for step in range(1, 10)]
    over_samples = [(step * GLOBAL_BATCH, value) for step, value in expected]
    assert curve(steps, "lm loss") == curve(steps, "lm loss validation") == expected
    assert curve(samples, "lm loss vs samples") == curve(samples, "lm loss validation vs samples") == over_samples


def test_a_new_run_in_the_same_directory_forgets_the_old_one(tmp_path):
    first = recorder(tmp_path)
    first.evaluation(evaluation_record(0, nll=1.0))
    first.training(training_record(1))
    first.close()
    second = recorder(tmp_path)
    second.evaluation(evaluation_record(0, nll=2.0))
    second.close()
    steps, samples = read(tmp_path), read(tmp_path / "samples")
    assert curve(steps, "lm loss validation") == [(0, 2.0)]
    assert curve(samples, "lm loss validation vs samples") == [(0, 2.0)]


def test_points_are_on_disk_without_close(tmp_path):
    writer = recorder(tmp_path)
    writer.training(training_record(1))
    assert curve(read(tmp_path), "lm loss") == [(1, 1.0)]
    writer.close()


def test_layout_names_tags_that_exist(tmp_path):
    recorder(tmp_path).close()
    accumulator = read(tmp_path)
    layout = Layout()
    layout.ParseFromString(accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles == ["learning", "repetition", "speed", "data", "card"]
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[-1].chart}
    assert charts == CHARTS["card"]


def test_hyperparameters_and_config_text(tmp_path):
    recorder(tmp_path).close()
    accumulator = read(tmp_path)
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "dir: runs/x" in text
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(hyperparameters) == set(CONFIG)
    assert hyperparameters["optimizer.lr"].number_value == 3e-4
    assert hyperparameters["optimizer.betas"].string_value == "[0.9, 0.95]"


def test_perplexity_is_limited(tmp_path):
    writer = recorder(tmp_path)
    writer.evaluation(evaluation_record(1, nll=40.0))
    writer.close()
    assert curve(read(tmp_path), "lm loss validation ppl") == [(1, pytest.approx(math.exp(20)))]


def test_missing_values_are_left_out_and_unknown_keys_refused(tmp_path):
    writer = recorder(tmp_path)
    writer.training({"step": 1, "samples": 8, "loss": 1.0, "grad_norm": None})
    with pytest.raises(KeyError, match="lozz"):
        writer.training({"step": 2, "samples": 16, "lozz": 1.0})
    writer.close()
    assert read(tmp_path).Tags()["scalars"] == ["lm loss"]
