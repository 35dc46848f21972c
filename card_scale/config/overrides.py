"""Overrides of the command line: ``group.key=value``, or Megatron-LM's long options."""

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

from card_scale.config import strict_yaml
from card_scale.errors import CommandLineError, ConfigurationError

MEGATRON_ALIASES = {
    "tensor-model-parallel-size": "parallel.tensor",
    "pipeline-model-parallel-size": "parallel.pipeline",
    "sequence-parallel": "parallel.sequence",
    "deepspeed-config": "parallel.deepspeed",
    "num-layers": "model.layers",
    "hidden-size": "model.hidden",
    "num-attention-heads": "model.heads",
    "ffn-hidden-size": "model.ffn",
    "seq-length": "model.length",
    "hidden-dropout": "model.dropout",
    "micro-batch-size": "train.micro_batch",
    "global-batch-size": "train.global_batch",
    "train-iters": "train.steps",
    "log-interval": "train.log_every",
    "eval-interval": "train.eval_every",
    "save-interval": "train.save_every",
    "bf16": "train.precision",
    "lr": "optimizer.lr",
    "min-lr": "optimizer.min_lr",
    "lr-decay-style": "optimizer.schedule",
    "lr-warmup-iters": "optimizer.warmup_steps",
    "weight-decay": "optimizer.weight_decay",
    "adam-eps": "optimizer.eps",
    "clip-grad": "optimizer.clip",
    "seed": "run.seed",
    "save": "run.dir",
    "data-path": "data.path",
}
"""Megatron-LM's long options and the keys they set."""

_MEGATRON_FLAGS = {"sequence-parallel": True, "bf16": "bf16"}
"""Options without a value, and the value that they set."""


def parse_overrides(arguments: list[str], options: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """Return (dotted key, YAML value) for each override.

    Raises CommandLineError for what is no override; ``options`` are a command's own, which may have been meant.
    """
    pairs = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            name, has_value, text = argument.lstrip("-").partition("=")
            name = name.replace("_", "-")
            if name not in MEGATRON_ALIASES or not argument.startswith("--"):
                raise CommandLineError(f"unknown option {argument}{_nearest_option(name, options)}")
            if name in _MEGATRON_FLAGS and not has_value:
                pairs.append((MEGATRON_ALIASES[name], _MEGATRON_FLAGS[name]))
                continue
            if not has_value:
                if not rest:
                    raise CommandLineError(f"option {argument} needs a value")
                text = rest.pop(0)
            key = MEGATRON_ALIASES[name]
        else:
            key, equals, text = argument.partition("=")
            if not equals:
                raise CommandLineError(f"{argument!r} is not of the form group.key=value")
        try:
            value = strict_yaml.load(text)
        except yaml.YAMLError:
            raise ConfigurationError(f"override {key}={text!r} is not a YAML value") from None
        pairs.append((key, value.lower() if key == "optimizer.schedule" and isinstance(value, str) else value))
    return pairs


def _nearest_option(name: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [*options, *MEGATRON_ALIASES], n=1, cutoff=0.6)
    return f"; did you mean --{near[0]}?" if near else "; --help lists the options and where the keys are"


def nearest(name: str, valid: Any) -> str:
    """Return a hint with the nearest valid name, or with all of them where none is near."""
    near = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; valid: {', '.join(sorted(valid))}"
