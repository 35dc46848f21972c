"""Event files, read back with TensorBoard's own reader."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from card_scale.training.charts import Chart
from card_scale.training.curves import MAY_BE_BOUNDS, TAGS
from card_scale.training.tensorboard import FIRST_COLUMNS, TABLE_ROWS, TensorBoardRecorder, evaluation_table

CONFIG = {
    "data.path": "data/x",
    "model.parameters": 124_000_000,
    "model.tie_embeddings": True,
    "objective.name": "card",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.lr": 3e-4,
}
CHARTS = {
    "learning": {"validation loss": Chart("Margin", ["lm loss validation"] * 3)},
    "card": {"masks": Chart("Multiline", [r"card/mask_ratio$"])},
}
GLOBAL_BATCH = 8


def recorder(directory, *, is_bound=False, **resume):
    return TensorBoardRecorder(
        directory,
        hyperparameters=CONFIG,
        config_text="run:\n  dir: runs/x",
        charts=CHARTS,
        is_bound=is_bound,
        **resume,
    )


def training_record(step, loss=1.0):
    values = dict.fromkeys(TAGS, 0.5) | {"loss": 9.0, "loss_interval": loss, "card/mask_ratio": 0.4}
    del values["validation_nll"], values["validation_perplexity"]
    return values | {"step": step, "samples": step * GLOBAL_BATCH}


def evaluation_record(step, nll=2.0):
    return {
        "step": step,
        "samples": step * GLOBAL_BATCH,
        "validation_nll": nll,
        "validation_perplexity": math.exp(nll),
        "card/validation_nll_noise_0.50": 3.0,
    }


BOUND = {"bound": True, "validation_nll_standard_error": 0.05, "train_nll": 1.9, "ema/validation_nll": 1.8}


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


def texts(accumulator, tag):
    return {
        event.step: event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors(f"{tag}/text_summary")
    }


def test_every_key_has_its_tag_in_one_run(tmp_path):
    writer = recorder(tmp_path / "tensorboard")
    writer.training(training_record(1))
    writer.evaluation(evaluation_record(1))
    writer.close()
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert list(runs) == ["tensorboard"]
    found = read(tmp_path / "tensorboard")
    megatron = {"lm loss", "learning-rate", "grad-norm", "iteration-time", "throughput", "batch-size", "world-size"}
    megatron |= {"lm loss validation", "lm loss validation ppl"}
    ours = {"card/mask_ratio", "card/validation_nll_noise_0.50", "data/epoch", "mfu/causal", "mfu/full"}
    twins = {"lm loss vs samples", "lm loss validation vs samples"}
    assert megatron | ours <= set(found.Tags()["scalars"])
    assert set(found.Tags()["scalars"]) == set(TAGS.values()) | ours | twins
    assert curve(found, "lm loss") == [(1, 1.0)], "the mean of the interval, not the last update's 9.0"
    assert curve(found, "lm loss vs samples") == [(GLOBAL_BATCH, 1.0)]
    assert [tag for tag in found.Tags()["scalars"] if "batch-size" in tag] == ["batch-size"]


def test_bounds_have_tags_of_their_own(tmp_path):
    writer = recorder(tmp_path, is_bound=True)
    writer.training({"step": 1, "samples": 8, "loss_interval": 2.1})
    writer.evaluation(evaluation_record(1) | BOUND)
    writer.close()
    found = read(tmp_path)
    bounds = {"lm loss bound", "lm loss bound vs samples", "lm loss validation bound"}
    bounds |= {"lm loss validation bound vs samples", "lm loss validation ppl bound", "lm loss train samples bound"}
    bounds |= {"ema/validation_nll bound"}
    others = {"card/validation_nll_noise_0.50", "lm loss validation standard error"}
    assert set(found.Tags()["scalars"]) == bounds | others
    assert curve(found, "lm loss validation bound") == [(1, 2.0)]


@pytest.mark.parametrize("stop, saved", [(7, 4), (4, 4), (3, 0), (30, 20)])
def test_one_value_per_step_after_resume(tmp_path, stop, saved):
    """Also over samples, whose numbers TensorBoard takes for steps when it discards what lies after the checkpoint."""
    first = recorder(tmp_path)
    earlier = []
    for step in range(1, stop + 1):
        for record, draw in (
            (training_record(step, loss=1.0), first.training),
            (evaluation_record(step, nll=1.0), first.evaluation),
        ):
            draw(record)
            earlier += [record] if step <= saved else []
    first.close()
    second = recorder(tmp_path, resume_step=saved, earlier=earlier)
    for step in range(saved + 1, 35):
        second.training(training_record(step, loss=2.0))
        second.evaluation(evaluation_record(step, nll=2.0))
    second.close()
    found = read(tmp_path)
    expected = [(step, 1.0 if step <= saved else 2.0) for step in range(1, 35)]
    over_samples = [(step * GLOBAL_BATCH, value) for step, value in expected]
    for tag in ("lm loss", "lm loss validation"):
        assert curve(found, tag) == expected
        assert curve(found, f"{tag} vs samples") == over_samples


def test_a_new_run_in_the_same_directory_forgets_the_old_one(tmp_path):
    first = recorder(tmp_path)
    first.evaluation(evaluation_record(0, nll=1.0))
    first.training(training_record(1))
    first.close()
    second = recorder(tmp_path)
    second.evaluation(evaluation_record(0, nll=2.0))
    second.close()
    found = read(tmp_path)
    assert curve(found, "lm loss validation") == [(0, 2.0)]
    assert curve(found, "lm loss validation vs samples") == [(0, 2.0)]
    assert list(texts(found, "evaluations")) == [0]


def test_points_are_on_disk_without_close(tmp_path):
    writer = recorder(tmp_path)
    writer.training(training_record(1))
    assert curve(read(tmp_path), "lm loss") == [(1, 1.0)]
    writer.close()


def test_the_layout_is_the_charts(tmp_path):
    recorder(tmp_path).close()
    layout = Layout()
    layout.ParseFromString(read(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(CHARTS)
    (margin,), (lines,) = (category.chart for category in layout.category)
    assert (lines.title, list(lines.multiline.tag)) == ("masks", [r"card/mask_ratio$"])
    (series,) = margin.margin.series
    assert {series.value, series.lower, series.upper} == {"lm loss validation"}


def test_hyperparameters_put_first_what_tells_runs_apart(tmp_path):
    recorder(tmp_path).close()
    found = read(tmp_path)
    assert "dir: runs/x" in texts(found, "config")[0]
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(values) == set(CONFIG)
    assert values["optimizer.lr"].number_value == 3e-4
    assert values["optimizer.betas"].string_value == "[0.9, 0.95]"
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    # As TensorBoard sorts them.
    shown = [one.name for one in sorted(experiment.hparam_infos, key=lambda one: (not one.differs, one.name))]
    assert shown[:3] == ["model.parameters", "objective.name", "optimizer.lr"]
    assert set(shown[:3]) <= FIRST_COLUMNS
    columns = [metric.name.tag for metric in experiment.metric_infos]
    assert columns == ["lm loss validation", "lm loss validation bound"], "of any run: TensorBoard takes one run's"


def test_the_table_of_evaluations_goes_on_after_resume(tmp_path):
    first = recorder(tmp_path)
    first.evaluation(evaluation_record(0, nll=8.0))
    first.evaluation(evaluation_record(5, nll=5.5))
    first.close()
    second = recorder(tmp_path, resume_step=2, earlier=[evaluation_record(0, nll=8.0), {"step": 2, "samples": 16}])
    second.evaluation(evaluation_record(5, nll=4.668))
    second.close()
    rows = texts(read(tmp_path), "evaluations")[5].splitlines()
    assert [row.split(" | ")[:3] for row in rows[2:]] == [["5", "40", "4.668"], ["0", "0", "8"]]


def test_the_table_marks_bounds_and_stays_short():
    many = [evaluation_record(step) | BOUND for step in range(3)]
    header, rule, newest, *_ = evaluation_table(many, is_bound=True).splitlines()
    titles, cells = header.split(" | "), newest.split(" | ")
    assert len(titles) == len(cells) == len(rule.split(" | "))
    named = dict(zip(titles, cells, strict=True))
    assert named["validation loss (bound)"] == "≤ 2 ± 0.05"
    assert named["perplexity (bound)"] == "≤ 7.3891"
    assert named["ema/validation_nll (bound)"] == "≤ 1.8"
    assert named["card/validation_nll_noise_0.50"] == "3"
    assert header.count("(bound)") == newest.count("≤") == len(MAY_BE_BOUNDS - {"loss_interval"})


def test_the_table_keeps_the_newest_rows(tmp_path):
    writer = recorder(tmp_path)
    for step in range(TABLE_ROWS + 5):
        writer.evaluation(evaluation_record(step))
    writer.close()
    last = max(found := texts(read(tmp_path), "evaluations"))
    steps = [int(row.split(" | ")[0]) for row in found[last].splitlines()[2:]]
    assert steps == list(range(TABLE_ROWS + 4, 4, -1))


def test_perplexity_is_limited(tmp_path):
    writer = recorder(tmp_path)
    writer.evaluation(evaluation_record(1, nll=40.0))
    writer.close()
    assert curve(read(tmp_path), "lm loss validation ppl") == [(1, pytest.approx(math.exp(20)))]


def test_missing_values_are_left_out_and_unknown_keys_refused(tmp_path):
    writer = recorder(tmp_path)
    writer.training({"step": 1, "samples": 8, "loss_interval": 1.0, "grad_norm": None})
    with pytest.raises(KeyError, match="lozz"):
        writer.training({"step": 2, "samples": 16, "lozz": 1.0})
    writer.close()
    assert set(read(tmp_path).Tags()["scalars"]) == {"lm loss", "lm loss vs samples"}
