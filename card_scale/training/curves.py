"""The scalars of a record and their names, for whatever draws them: Megatron-LM's tags, so that runs of both lie in one
chart, and tags of their own for bounds, which no chart may show as losses."""

import math
from collections.abc import Mapping
from types import MappingProxyType

LOSS, VALIDATION = "lm loss", "lm loss validation"

TAGS: Mapping[str, str] = MappingProxyType(
    {
        # training records
        "loss_interval": LOSS,
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
        "validation_nll": VALIDATION,
        "validation_perplexity": "lm loss validation ppl",
        "train_nll": "lm loss train samples",
        "validation_nll_standard_error": "lm loss validation standard error",
    }
)
"""Keys of ``metrics.jsonl`` and their tags. A key with a slash, as in ``card/mask_ratio``, is its own tag."""

MAY_BE_BOUNDS = frozenset(
    {"loss_interval", "validation_nll", "validation_perplexity", "train_nll", "ema/validation_nll"}
)
"""Keys whose values are bounds where the objective's likelihood is one."""

WITHOUT_TAG = frozenset({"step", "samples", "bound", "loss"})
"""Keys that are axes or labels, and the loss of the last update alone, of which ``loss_interval`` is the mean."""

LARGEST_LOG_PERPLEXITY = 20.0


def tag_of(key: str, *, is_bound: bool) -> str:
    """Return the tag of a key of ``metrics.jsonl``; ``is_bound``: the objective's likelihood is a bound.

    Raises KeyError for a key without one: a curve without a name would be lost silently.
    """
    tag = key if "/" in key else TAGS[key]
    return f"{tag} bound" if is_bound and key in MAY_BE_BOUNDS else tag


def scalars(record: Mapping[str, object], *, is_bound: bool) -> dict[str, float]:
    """Return the values of a record by tag, those that are missing left out; the perplexity is limited to exp(20), as
    in Megatron-LM. Raises as :func:`tag_of`."""
    found = {}
    for key, value in record.items():
        if key in WITHOUT_TAG or value is None:
            continue
        number = float(value)  # type: ignore[arg-type]
        if key == "validation_perplexity":
            number = min(number, math.exp(LARGEST_LOG_PERPLEXITY))
        found[tag_of(key, is_bound=is_bound)] = number
    return found
