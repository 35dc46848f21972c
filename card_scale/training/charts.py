"""How TensorBoard groups a run's curves (Custom Scalars): charts of what this run draws, and no others."""

from typing import NamedTuple

from card_scale.config import Config
from card_scale.training.curves import LOSS, tag_of


class Chart(NamedTuple):
    """A chart, in the terms of ``SummaryWriter.add_custom_scalars``."""

    kind: str
    """Multiline, or Margin: (value, lower, upper), which TensorBoard draws with markers and never smoothes."""
    tags: list[str]
    """Of Multiline regular expressions matched at the start, hence the anchors; of Margin whole tags."""


Charts = dict[str, dict[str, Chart]]
"""Group → title → chart."""


def charts(config: Config, *, repeats_data: bool, peak_is_known: bool) -> Charts:
    """Return the groups.

    Args:
        config: of the run.
        repeats_data: whether it goes through its training data more than once.
        peak_is_known: whether its device is a GPU whose peak is known, so that a utilisation is drawn.
    """
    objective = config.objective
    is_bound = not objective.likelihood_is_exact
    mark = " (bound)" if is_bound else ""

    def points(key: str) -> Chart:
        return Chart("Margin", [tag_of(key, is_bound=is_bound)] * 3)

    # TensorBoard draws a chart for each different definition of a title that it finds among the runs it shows, so those
    # that all runs have are defined alike.
    groups = {
        "learning": {
            "loss": _lines(rf"{LOSS}( bound)?$"),
            f"validation loss{mark}": points("validation_nll"),
            "learning rate": _lines(r"learning-rate$"),
            "gradient norm": _lines(r"grad-norm$"),
        },
        objective.name: {title: _lines(*tags) for title, tags in objective.charts.items()},
        "repetition": {},
        "speed": {"tokens per second": _lines(r"tokens-per-sec$"), "seconds per step": _lines(r"iteration-time$")},
        "data": {"epoch": _lines(r"data/epoch$"), "waiting": _lines(r"data/wait")},
    }
    if repeats_data:
        groups["repetition"]["first seen and repeated"] = _lines(r"repetition/loss_(first_seen|repeated)$")
    if config.data.train_samples:
        groups["repetition"] |= {
            f"loss of training samples{mark}": points("train_nll"),
            "gap to validation": points("repetition/gap"),
        }
    if peak_is_known:
        groups["speed"]["model FLOPs utilisation"] = _lines(r"mfu/")
    return {group: titled for group, titled in groups.items() if titled}


def _lines(*tags: str) -> Chart:
    return Chart("Multiline", list(tags))
