"""TensorBoard curves under Megatron-LM's tag names, so that runs of both lie in one chart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

TAGS: Mapping[str, str] = MappingProxyType(
    {
        # training records
        "loss": "lm loss",
        "lr": "learning-rate",
        "grad_norm": "grad-norm",
        "step_seconds": "iteration-time",
        "tflops_per_device": "throughput",
        "tokens_per_second": "tokens-per-sec",
        "mfu_causal": "mfu/causal",
        "mfu_full": "mfu/full",
        "global_batch": "batch-size",
        "world_size": "world-size",
        "epoch": "data/epoch",
        "tokens": "data/tokens_seen",
        # evaluation records
        "validation_nll": "lm loss validation",
        "validation_perplexity": "lm loss validation ppl",
        "train_nll": "lm loss train samples",
        "validation_nll_standard_error": "lm loss validation standard error",
    }
)
"""Keys of ``metrics.jsonl`` and their tags. A key with a slash, as in ``card/mask_ratio``, is its own tag."""

WITHOUT_TAG = frozenset({"step", "samples", "bound"})
"""Keys that are axes or labels, not curves."""

SAMPLE_TWINS = frozenset(
    {"lm loss", "learning-rate", "grad-norm", "batch-size", "lm loss validation", "lm loss validation ppl"}
)
"""Tags that are also drawn over samples, as ``<tag> vs samples``."""

LARGEST_LOG_PERPLEXITY = 20.0

# Tags of a chart are regular expressions matched at the start, hence the anchors.
_LAYOUT = {
    "learning": {
        "loss": ["Multiline", [r"lm loss$", r"lm loss validation$", r"\w+/loss_clean_context$"]],
        "learning rate": ["Multiline", [r"learning-rate$"]],
        "gradient norm": ["Multiline", [r"grad-norm$"]],
    },
    "repetition": {
        "first seen and repeated": ["Multiline", [r"repetition/loss_(first_seen|repeated)$"]],
        "training and validation": ["Multiline", [r"lm loss validation$", r"lm loss train samples$"]],
        "gap": ["Multiline", [r"repetition/gap$"]],
    },
    "speed": {
        "tokens per second": ["Multiline", [r"tokens-per-sec$"]],
        "model FLOPs utilisation": ["Multiline", [r"mfu/"]],
        "seconds per step": ["Multiline", [r"iteration-time$"]],
    },
    "data": {"epoch": ["Multiline", [r"data/epoch$"]], "waiting": ["Multiline", [r"data/wait"]]},
}


class TensorBoardRecorder:
    """Writes records to the event files of a run; used by one rank only.

    Scalars lie in ``directory``, their twins over samples in ``directory/samples``. Two directories because a resumed
    run has TensorBoard forget what was drawn after the checkpoint, which TensorBoard does by step for all tags of a
    directory at once: steps and samples must not meet there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, object],
        config_text: str,
        objective_charts: Mapping[str, Mapping[str, Sequence[str]]],
        resume_step: int | None = None,
        resume_samples: int = 0,
    ) -> None:
        """``config`` maps dotted keys to values (the hyperparameters), ``config_text`` is the resolved YAML.

        ``objective_charts`` are the objective's own, by group and title, as patterns of tags.

        A run that resumes after update ``resume_step``, ``resume_samples`` samples seen, discards what was drawn later;
        one that starts anew (None) discards everything.
        """
        first_step = 0 if resume_step is None else resume_step + 1
        first_sample = 0 if resume_step is None else resume_samples + 1
        self._steps = SummaryWriter(str(directory), purge_step=first_step)
        self._samples = SummaryWriter(str(directory / "samples"), purge_step=first_sample)
        own = {
            group: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
            for group, charts in objective_charts.items()
            if charts
        }
        self._steps.add_custom_scalars(_LAYOUT | own)
        self._steps.add_text("config", f"```yaml\n{config_text}\n```", first_step)
        # SummaryWriter.add_hparams would open a run of its own beside this one.
        experiment, start, self._end = hparams(
            {key: _hyperparameter(value) for key, value in config.items()}, dict.fromkeys(["lm loss validation"])
        )
        self._steps.file_writer.add_summary(experiment, first_step)
        self._steps.file_writer.add_summary(start, first_step)
        self._flush()

    def training(self, record: Mapping[str, object]) -> None:
        """Draw a training record: ``step``, ``samples`` and numbers under keys of :data:`TAGS` or keys with a slash.

        Raises KeyError for another key: a curve without a name would be lost silently.
        """
        self._draw(record)

    def evaluation(self, record: Mapping[str, object]) -> None:
        """Draw an evaluation record, as :meth:`training`; the perplexity is limited to exp(20), as in Megatron-LM."""
        limited = dict(record)
        if "validation_perplexity" in limited:
            limited["validation_perplexity"] = min(limited["validation_perplexity"], math.exp(LARGEST_LOG_PERPLEXITY))
        self._draw(limited)

    def close(self) -> None:
        """Mark the session as ended and close the files."""
        self._steps.file_writer.add_summary(self._end)
        self._steps.close()
        self._samples.close()

    def _draw(self, record: Mapping[str, object]) -> None:
        for key, value in record.items():
            if key in WITHOUT_TAG or value is None:
                continue
            tag = key if "/" in key else TAGS[key]
            self._steps.add_scalar(tag, value, record["step"])
            if tag in SAMPLE_TWINS:
                self._samples.add_scalar(f"{tag} vs samples", value, record["samples"])
        self._flush()

    def _flush(self) -> None:
        # A kill must not take drawn points with it, and somebody may be watching.
        self._steps.flush()
        self._samples.flush()


def _hyperparameter(value: object) -> bool | int | float | str:
    """A value that the hyperparameter table can show."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
