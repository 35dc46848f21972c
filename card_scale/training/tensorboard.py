"""TensorBoard's view of a run: one directory, so one run; curves, charts, tables and hyperparameters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from card_scale.training.charts import Charts
from card_scale.training.curves import MAY_BE_BOUNDS, VALIDATION, scalars, tag_of
from card_scale.training.records import evaluations_of

OVER_SAMPLES = ("loss_interval", "validation_nll")
"""Keys that are also drawn over samples, as ``<tag> vs samples``: runs whose batches differ are compared so."""

FIRST_COLUMNS = frozenset({"model.parameters", "objective.name", "optimizer.lr", "train.global_batch", "train.steps"})
"""Hyperparameters that tell runs apart, first in the table of runs."""

TABLE_ROWS = 20
"""Evaluations in the table, the newest so many: it is written anew with each."""


class TensorBoardRecorder:
    """Writes records to the event files of a run; used by one rank only."""

    def __init__(
        self,
        directory: Path,
        *,
        hyperparameters: Mapping[str, object],
        config_text: str,
        charts: Charts,
        is_bound: bool,
        resume_step: int | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Begin to write.

        Args:
            directory: of the event files.
            hyperparameters: what the table of runs shows.
            config_text: the resolved configuration, YAML.
            charts: how curves are grouped.
            is_bound: whether the objective's likelihood is a bound: its losses have tags and a column of their own.
            resume_step: the update that a run goes on from, which discards what was drawn later; None of one that
                starts anew, which discards everything.
            earlier: the records up to there.
        """
        self._is_bound = is_bound
        self._evaluations = evaluations_of(earlier)[-TABLE_ROWS:]
        first_step = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=first_step)
        # TensorBoard discards by the number on the axis, whatever it counts: what lay over samples is drawn again.
        for record in earlier:
            if record["samples"] >= first_step:
                self._draw_over_samples(record)
        self._writer.add_custom_scalars(
            {group: {title: list(chart) for title, chart in titled.items()} for group, titled in charts.items()}
        )
        self._writer.add_text("config", f"```yaml\n{config_text}\n```", first_step)
        # Both columns in every run: TensorBoard takes those of one run for the table of all.
        columns = dict.fromkeys((VALIDATION, tag_of("validation_nll", is_bound=True)))
        # SummaryWriter.add_hparams would open a run of its own beside this one.
        shown = {key: _hyperparameter(value) for key, value in hyperparameters.items()}
        experiment, start, self._end = hparams(shown, columns)
        _put_first(FIRST_COLUMNS, experiment)
        self._writer.file_writer.add_summary(experiment, first_step)
        self._writer.file_writer.add_summary(start, first_step)
        self._writer.flush()

    def training(self, record: Mapping[str, Any]) -> None:
        """Draw a training record. Raises as :func:`card_scale.training.curves.tag_of`."""
        self._draw(record)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Draw an evaluation record, as :meth:`training`, and add it to the table of evaluations."""
        self._evaluations = [*self._evaluations, record][-TABLE_ROWS:]
        # The smoothing that TensorBoard draws by default bends a curve of few points; a table says what they are.
        self._writer.add_text(
            "evaluations", evaluation_table(self._evaluations, is_bound=self._is_bound), record["step"]
        )
        self._draw(record)

    def close(self) -> None:
        """Mark the session as ended and close the files."""
        self._writer.file_writer.add_summary(self._end)
        self._writer.close()

    def _draw(self, record: Mapping[str, Any]) -> None:
        for tag, value in scalars(record, is_bound=self._is_bound).items():
            self._writer.add_scalar(tag, value, record["step"])
        self._draw_over_samples(record)
        # A kill must not take drawn points with it, and somebody may be watching.
        self._writer.flush()

    def _draw_over_samples(self, record: Mapping[str, Any]) -> None:
        twins = {key: record.get(key) for key in OVER_SAMPLES}
        for tag, value in scalars(twins, is_bound=self._is_bound).items():
            self._writer.add_scalar(f"{tag} vs samples", value, record["samples"])


def evaluation_table(evaluations: Sequence[Mapping[str, Any]], *, is_bound: bool) -> str:
    """Return evaluation records as a table in Markdown, the newest first; what is a bound says so."""
    seen = dict.fromkeys(key for record in evaluations for key in record)
    titles = {"step": "step", "samples": "samples", "validation_nll": "validation loss"}
    titles |= {"validation_perplexity": "perplexity"}
    titles |= {key: key for key in seen if key not in {*titles, "bound", "validation_nll_standard_error"}}

    def cell(record: Mapping[str, Any], key: str) -> str:
        value = record.get(key)
        if value is None or key in ("step", "samples"):
            return "" if value is None else str(value)
        error = record.get("validation_nll_standard_error") if key == "validation_nll" else None
        relation = "≤ " if is_bound and key in MAY_BE_BOUNDS else ""
        return f"{relation}{value:.5g}" + (f" ± {error:.2g}" if error is not None else "")

    marks = {key: " (bound)" if is_bound and key in MAY_BE_BOUNDS else "" for key in titles}
    rows = [[f"{title}{marks[key]}" for key, title in titles.items()], ["---"] * len(titles)]
    rows += [[cell(record, key) for key in titles] for record in reversed(evaluations)]
    return "\n".join(" | ".join(row) for row in rows)


def _put_first(names: frozenset[str], experiment: Summary) -> None:
    """Have the table show these hyperparameters first: those that are said to differ between runs, each by its name
    (tensorboard 2.21, which sorts whatever the order in the file)."""
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in names
    plugin.content = content.SerializeToString()


def _hyperparameter(value: object) -> bool | int | float | str:
    """A value that the hyperparameter table can show."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
