"""Faults on purpose: ``CARD_FAULT`` makes a rank fail at a named point, to rehearse what a run survives.

    CARD_FAULT="rank=1,at=checkpoint.written,action=kill,step=4"

Several, divided by semicolons, may be set. Without the variable a point costs one look into the environment.
"""

import errno
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from card_scale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "CARD_FAULT"

POINTS = {
    "start": "the process groups have formed, the engine has not been built",
    "data.batch": "before a batch is read, in a thread of its own",
    "data.read": "before each document is read from a shard; of no update",
    "step.begin": "before an update's batch is asked for",
    "step.forward": "before each micro-batch's forward pass",
    "step.backward": "before each micro-batch's backward pass",
    "step.update": "gradients are made, the optimizer has not been called",
    "step.end": "after an update",
    "evaluation": "before an evaluation",
    "checkpoint.begin": "the temporary directory is there, nothing written",
    "checkpoint.file": "one of this rank's files is written, but has not got its name",
    "checkpoint.written": "this rank has written all of its files",
    "checkpoint.manifest": "the manifest is written, the directory has not got its name",
    "checkpoint.named": "the directory has its name, the pointer is still the former one's",
    "checkpoint.pointed": "the pointer is set, nothing has been pruned",
    "checkpoint.pruned": "what is pruned has lost its name, but is still there",
    "metrics": "before a line of metrics.jsonl is written",
}
"""Places that a process passes, by name."""

VALUES = {
    "loss": "the loss of a micro-batch, on the last pipeline stage, and with it the gradients",
    "gradient": "the gradient that a micro-batch's backward pass gives to this rank's stage",
}
"""Values that may be spoilt, by name."""

SPOILT = {"nan": float("nan"), "infinity": float("inf"), "spike": 1000.0}
"""Actions on a value, and by what each multiplies it."""

_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}
ACTIONS = (*_SIGNALS, "exception", *_ERRORS, "sleep")
"""Actions at a place."""


class Fault(NamedTuple):
    """One entry of the variable."""

    rank: int | None
    """None for every one."""
    at: str
    action: str
    steps: range | None
    """Updates, counted from 1, at which it happens; None for any, and for places that no update leads to."""
    seconds: float

    def meets(self, place: str, step: int | None) -> bool:
        """Whether it is this rank's, at this place and update."""
        return (
            self.at == place
            and (self.rank is None or self.rank == int(os.environ.get("RANK", "0")))
            and (self.steps is None or (step is not None and step in self.steps))
        )


def check() -> None:
    """Raise ConfigurationError where the variable is set to what is no fault."""
    parse(os.environ.get(VARIABLE, ""))


def reach(place: str, step: int | None = None) -> None:
    """Say that the process has come to a place, of update ``step`` counted from 1. Fails there if it is told to."""
    if text := os.environ.get(VARIABLE):
        for fault in parse(text):
            if fault.meets(place, step):
                _act(fault)


def spoil(value: str, tensor: "Tensor", step: int | None) -> "Tensor":
    """Return the loss, or what a stage hands on; multiplied, or with its gradient multiplied, if it is told to be."""
    for fault in parse(os.environ.get(VARIABLE, "")):
        if fault.meets(value, step):
            factor = SPOILT[fault.action]
            if value == "loss":
                tensor = tensor * factor
            elif tensor.requires_grad:
                tensor = tensor.clone()
                tensor.register_hook(lambda gradient, factor=factor: gradient * factor)
    return tensor


def parse(text: str) -> list[Fault]:
    """Return the faults that the variable's text names.

    Raises ConfigurationError, naming the variable and what would be valid, for anything else.
    """
    return [_parse(entry.strip()) for entry in text.split(";") if entry.strip()]


def _parse(entry: str) -> Fault:
    valid = "rank=NUMBER or all,at=POINT,action=ACTION[,step=N or N-M][,seconds=S]"
    held = dict(pair.strip().partition("=")[::2] for pair in entry.split(","))
    if unknown := held.keys() - {"rank", "at", "action", "step", "seconds"}:
        raise ConfigurationError(f"{VARIABLE}: {', '.join(sorted(unknown))} in {entry!r}; valid is {valid}")
    at, action = held.get("at", ""), held.get("action", "")
    places = POINTS | VALUES
    if at not in places:
        raise ConfigurationError(f"{VARIABLE}: at={at} in {entry!r}; valid are {', '.join(places)}")
    actions = tuple(SPOILT) if at in VALUES else ACTIONS
    if action not in actions:
        raise ConfigurationError(f"{VARIABLE}: action={action} at {at}; valid are {', '.join(actions)}")
    rank, first_last = held.get("rank", ""), held.get("step", "").split("-")
    try:
        steps = None if "step" not in held else range(int(first_last[0]), int(first_last[-1]) + 1)
        return Fault(None if rank == "all" else int(rank), at, action, steps, float(held.get("seconds", 1.0)))
    except ValueError:
        raise ConfigurationError(f"{VARIABLE}: {entry!r} is no such entry; valid is {valid}") from None


def _act(fault: Fault) -> None:
    print(f"fault on purpose ({VARIABLE}) at {fault.at}: {fault.action}", file=sys.stderr, flush=True)
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
    elif fault.action in _ERRORS:
        number = _ERRORS[fault.action]
        raise OSError(number, os.strerror(number))
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    else:
        raise RuntimeError(f"fault on purpose at {fault.at}")
