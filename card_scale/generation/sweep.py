"""Speed and quality of ways to decode one model, each measured in turns with decoding one token a pass."""

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from card_scale.generation import text_metrics
from card_scale.generation.loop import Generation, generate
from card_scale.generation.methods import Options
from card_scale.generation.model import InferenceModel
from card_scale.generation.sampling import Sampling
from card_scale.generation.scoring import Scored, score
from card_scale.objectives.decoders import OPTIONS


@dataclass(frozen=True)
class Setting(Options):
    """A way to decode so many prompts at a time."""

    batch: int = 1

    @property
    def is_sequential(self) -> bool:
        """Whether it decides one token a pass, as what the others are measured against does."""
        if self.method == "armd_strided":
            return self.strides == 1
        return self.method == "ar" or (self.method in ("bd3lm", "mdlm") and self.max_passes is None)

    @property
    def label(self) -> str:
        """Short name, with the options that the method looks at."""
        if self.method == "ar":
            return f"ar, batch {self.batch}"
        parts = [self.method]
        if self.method in ("self_verified", "card"):
            parts.append(f"K {self.drafts}" + ("" if self.copies or self.method == "card" else ", no copies"))
        if self.method == "self_verified" and self.candidates is not None:
            parts.append(f"candidates {self.candidates}")
        if self.leniency:
            parts.append(f"leniency {self.leniency:g}")
        if self.method == "card":
            parts.append(f"tau {self.tau:g}" + ("" if self.leftmost else ", blocks"))
        if self.method == "armd_strided":
            parts.append(f"S {self.strides}")
        if self.max_passes is not None:
            parts.append(f"T {self.max_passes}")
        return ", ".join([*parts, f"batch {self.batch}"])


@dataclass(frozen=True)
class Outcome:
    """What a setting did with all prompts."""

    setting: Setting
    tokens_per_pass: float
    """Of a sequence, the mean over the passes that served it."""
    tokens_per_second: float
    speedup: float
    """Time of one token a pass over this one's at the same batch size, the median of pairs."""
    speedups: list[float]
    agreement: float
    """Share of tokens before the first that one token a pass chooses otherwise."""
    judged_nats: float | None
    """Of a generated token under the judge."""
    distinct_2: float
    repetition_rate: float
    entropy: float

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        judged = None if self.judged_nats is None else math.exp(self.judged_nats)
        return asdict(self) | {"label": self.setting.label, "judged_perplexity": judged}


def grid(
    methods: Sequence[str],
    drafts: Sequence[int],
    taus: Sequence[float],
    max_passes: Sequence[int | None],
    batches: Sequence[int],
    leftmost: Sequence[bool],
    copies: int = Options.copies,
    strides: Sequence[int] = (1,),
    leniencies: Sequence[float] = (0.0,),
    candidates: Sequence[int | None] = (None,),
    baseline: str = "ar",
) -> list[Setting]:
    """All combinations that differ: a method is not varied in what it does not look at.

    ``baseline``, one token a pass, comes first at each batch size.
    """
    found: dict[str, Setting] = {}
    for batch in batches:
        one_a_pass = Setting(baseline, batch=batch)
        found.setdefault(one_a_pass.label, one_a_pass)
        for method in methods:
            options: dict[str, Sequence[Any]] = {
                "drafts": drafts,
                "tau": taus,
                "max_passes": max_passes,
                "leftmost": leftmost,
                "strides": strides,
                "candidates": candidates,
                "leniency": leniencies,
            }
            axes = {name: values for name, values in options.items() if name in OPTIONS[method]}
            for values in itertools.product(*axes.values()):
                setting = Setting(method, batch=batch, copies=copies, **dict(zip(axes, values, strict=True)))
                found.setdefault(setting.label, setting)
    return list(found.values())


def sweep(
    model: InferenceModel,
    prompts: list[list[int]],
    settings: Sequence[Setting],
    *,
    new_tokens: int,
    sampling: Sampling,
    repetitions: int,
    judge: InferenceModel | None = None,
) -> Iterator[Outcome]:
    """Measure each setting. In every repetition it runs right after the first sequential one of its batch size.

    ``sampling`` is that of all; ``judge`` scores what they write, where it is given.
    """
    for setting in settings:
        baseline = next(one for one in settings if one.is_sequential and one.batch == setting.batch)
        warm_up = max(1, min(new_tokens, 8) // setting.strides) * setting.strides
        _run(model, prompts[: setting.batch], setting, warm_up, sampling)
        pairs = []
        for _ in range(repetitions):
            expected, slow = _run(model, prompts, baseline, new_tokens, sampling)
            found, seconds = expected, slow
            if setting.label != baseline.label:
                found, seconds = _run(model, prompts, setting, new_tokens, sampling)
            pairs.append((slow, seconds))
        texts, plain = ([one.tokens for one in each] for each in (found, expected))
        count, passes = sum(map(len, texts)), sum(one.passes for one in found)
        speedups = [slow / seconds for slow, seconds in pairs]
        yield Outcome(
            setting=setting,
            tokens_per_pass=count / passes,
            tokens_per_second=count / statistics.median(seconds for _, seconds in pairs),
            speedup=statistics.median(speedups),
            speedups=speedups,
            agreement=text_metrics.agreement(texts, plain),
            judged_nats=None if judge is None else _judged(judge, prompts, texts),
            distinct_2=text_metrics.distinct(texts, 2),
            repetition_rate=text_metrics.repetition_rate(texts),
            entropy=text_metrics.entropy(texts),
        )


def _run(
    model: InferenceModel, prompts: list[list[int]], setting: Setting, new_tokens: int, sampling: Sampling
) -> tuple[list[Generation], float]:
    """Return (what was generated, seconds)."""
    options = asdict(setting)
    batch = options.pop("batch")
    found: list[Generation] = []
    begin = time.perf_counter()
    for first in range(0, len(prompts), batch):
        found += generate(model, prompts[first : first + batch], new_tokens=new_tokens, **options, **asdict(sampling))
    if model.embedding.weight.is_cuda:
        torch.cuda.synchronize()
    return found, time.perf_counter() - begin


def _judged(judge: InferenceModel, prompts: list[list[int]], texts: list[list[int]]) -> float:
    """Nats of a generated token, behind its prompt."""
    scores = score(judge, [Scored(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
    return -sum(one.log_likelihood for one in scores) / sum(map(len, texts))


def safe_zone(outcomes: Sequence[Outcome], tolerance: float) -> list[bool]:
    """Which settings write text that a judge finds at most ``tolerance`` nats from that of one token a pass,
    without more repetition."""
    base = {one.setting.batch: one for one in reversed(outcomes) if one.setting.is_sequential}
    found = []
    for one in outcomes:
        plain = base[one.setting.batch]
        if one.judged_nats is None or plain.judged_nats is None:
            found.append(one.agreement == 1.0)
            continue
        is_close = abs(one.judged_nats - plain.judged_nats) <= tolerance
        found.append(is_close and one.repetition_rate <= plain.repetition_rate + tolerance)
    return found
