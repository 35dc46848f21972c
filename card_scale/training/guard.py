"""The numerics guard: an update whose loss or gradient norm is not finite, or spikes, is not applied on any rank.

The decision is made on the device before the update, by the same arithmetic on the same numbers on every rank. The host
learns of it where it waits for the device anyway.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from card_scale.config import GuardConfig
from card_scale.distributed import process_groups
from card_scale.errors import CardScaleError, ExitCode, NumericError

STATE = "guard"
"""Key of a checkpoint's state."""


class RollBack(CardScaleError):
    """The run is to go on from its last checkpoint, with other batches."""

    exit_code = ExitCode.NUMERIC

    def __init__(self, step: int, reason: str):
        """``step``: the last update whose batch is to be passed over."""
        super().__init__(reason)
        self.step = step


class Refusals(NamedTuple):
    """What the host is told."""

    total: int
    """Updates of the run that were not applied."""
    steps: tuple[int, ...]
    """Those since the host was last told, counted from 1."""
    not_finite: int
    """How many of these were no spikes."""
    longest_row: int
    """Of updates not applied, one directly after the other, that ends since then."""
    reason: str
    """What was wrong with the last of them; under ``raise``, where what follows one is not applied, with the first."""


class Guard:
    """Judges updates. Its methods are called by all ranks for the same updates."""

    def __init__(self, config: GuardConfig, device: torch.device):
        self.config = config
        self._refused = torch.zeros((), dtype=torch.bool, device=device)
        """Whether any update was, since the command was started."""
        self._window = torch.zeros(config.window, 2, dtype=torch.float64, device=device)
        self._filled = torch.zeros((), dtype=torch.int64, device=device)
        """Updates that the window has seen: how many of its rows hold something, and which comes next."""
        self._untold: list[tuple[int, Tensor]] = []
        """(step, float64 [4]: whether refused, whether not finite, loss, norm), on the device."""
        self._total = self._row = 0
        """As far as the host has been told."""

    def judge(self, step: int, local_loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Return 1 where update ``step`` is not to be applied, else 0: float32 scalar, on the device. Collective.

        Args:
            step: counted from 1.
            local_loss: this rank's part of the loss; zero but on the last pipeline stage.
            gradient_norm: global, before clipping.
        """
        device = self._refused.device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        norm, loss = gradient_norm.to(device, torch.float64), local_loss.double()
        ruined = ~(loss.isfinite() & norm.isfinite())
        # One collective: tensor-parallel ranks hold the same loss and all ranks the same norm, so that one counts.
        mine = (loss if process_groups.tensor_rank() == 0 else zero, norm if dist.get_rank() == 0 else zero)
        facts = torch.stack((*mine, ruined.double()))
        dist.all_reduce(facts)
        seen = facts[:2]
        not_finite = (facts[2] > 0) | ~seen.isfinite().all()
        bad = not_finite
        if self.config.spike:
            bad = bad | self._is_spike(seen)
        if self.config.policy == "raise":
            # Until the host ends the run, nothing is built upon a gap.
            bad = bad | self._refused
            self._refused = bad
        if self.config.spike:
            place = (self._filled % self.config.window)[None]
            kept = torch.where(bad, self._window.index_select(0, place), seen[None])
            self._window.index_copy_(0, place, kept)
            self._filled = self._filled + ~bad
        self._untold.append((step, torch.cat((torch.stack((bad, not_finite)).double(), seen))))
        return bad.float()

    def newest(self) -> tuple[Tensor, Tensor]:
        """Return (whether it was refused, 0 or 1, and the global loss) of the update that was judged last: float64
        scalars, views of what stays on the device. To be asked before a look."""
        verdict = self._untold[-1][1]
        return verdict[0], verdict[2]

    def _is_spike(self, seen: Tensor) -> Tensor:
        """Whether loss or norm is far above its mean over a window that is at least half full."""
        size = self.config.window
        held = (torch.arange(size, device=seen.device) < self._filled)[:, None].double()
        count = held.sum().clamp(min=1.0)
        mean = (self._window * held).sum(0) / count
        deviation = (((self._window - mean).square() * held).sum(0) / count).sqrt()
        return (self._filled >= (size + 1) // 2) & (seen > mean + self.config.spike * deviation).any()

    def look(self) -> Refusals:
        """Return what has happened since the last look. Waits for the device."""
        verdicts = torch.stack([verdict for _, verdict in self._untold]).tolist() if self._untold else []
        steps = [step for step, _ in self._untold]
        self._untold.clear()
        refused = []
        longest_row = 0
        for step, (bad, not_finite, loss, norm) in zip(steps, verdicts, strict=True):
            self._row = self._row + 1 if bad else 0
            longest_row = max(longest_row, self._row)
            if bad:
                refused.append((step, not_finite, f"step {step}: {_what_is_wrong(loss, norm)}"))
        self._total += len(refused)
        return Refusals(
            self._total,
            tuple(step for step, _, _ in refused),
            sum(bool(not_finite) for _, not_finite, _ in refused),
            longest_row,
            refused[0 if self.config.policy == "raise" else -1][2] if refused else "",
        )

    def check(self, step: int) -> Refusals:
        """Look after update ``step`` and do what the policy says; return what was found, if training goes on.

        Raises:
            NumericError: the run is to end.
            RollBack: it is to go on from its last checkpoint.
        """
        found = self.look()
        if not found.steps:
            return found
        if self.config.policy == "raise":
            raise NumericError(
                f"{found.reason}; the update was not applied. Lower optimizer.lr or look at the data of this step, or "
                "let training go on (guard.policy)"
            )
        if found.longest_row > self.config.patience:
            reason = f"{found.reason}; {found.longest_row} updates in a row were not applied"
            if self.config.policy == "rollback":
                raise RollBack(step, reason)
            raise NumericError(f"{reason}, guard.patience allows {self.config.patience}. Lower optimizer.lr")
        return found

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run that resumes decides alike. To be asked after a look."""
        assert not self._untold
        held: dict[str, Any] = {"refused": self._total, "row": self._row}
        if self.config.spike:
            filled = int(self._filled)
            held |= {"filled": filled, "window": self._window[: min(filled, self.config.window)].tolist()}
        return {STATE: held}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state; a window of another size begins anew."""
        held = state.get(STATE)
        if held is None:
            return
        self._total, self._row = held["refused"], held["row"]
        window = held.get("window", [])
        if self.config.spike and window and len(window) == min(held["filled"], self.config.window):
            self._window[: len(window)] = torch.tensor(window, dtype=torch.float64)
            self._filled.fill_(held["filled"])


def _what_is_wrong(loss: float, norm: float) -> str:
    values = {"the loss": loss, "the gradient norm": norm}
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    return " and ".join(f"{name} is {value:g}" for name, value in (wrong or values).items())


def applied_updates(state: Mapping[str, Any], step: int) -> int:
    """Return how many of a checkpoint's ``step`` updates were applied: what its optimizer has counted."""
    held = state.get(STATE)
    return step if held is None else step - held["refused"]
