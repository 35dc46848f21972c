"""What CARD costs over AR per training step, on one model in one process, steps of both taken in turn."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from card_scale.config import Config
from card_scale.data.loader import Batch
from card_scale.data.tokenizer import MASK_ID
from card_scale.environment import environment
from card_scale.model.gpt import Vocabulary, padded_vocabulary
from card_scale.objectives import create_objective
from card_scale.parallel import process_groups
from card_scale.parallel.build import build_engine
from card_scale.training.throughput import flops_of, peak_flops, throughput_fields
from card_scale.training.update import Update

BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Cost:
    """Seconds per step of each objective, pair by pair, and what follows from them."""

    ar_seconds: list[float]
    card_seconds: list[float]
    corruption_seconds: list[float]
    """Corrupting one rank's batch and summing its weights, alone: all that CARD adds to the step."""

    @property
    def ratios(self) -> np.ndarray:
        return np.array(self.card_seconds) / np.array(self.ar_seconds)

    def interval(self) -> tuple[float, float, float]:
        """Return (median, lower, upper) of the paired CARD/AR ratio, with a 95 % bootstrap interval of the median."""
        generator = np.random.default_rng(0)
        draws = generator.choice(self.ratios, (BOOTSTRAP_SAMPLES, len(self.ratios)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        return float(np.median(self.ratios)), float(low), float(high)

    def corruption_share(self) -> float:
        """Return the median corruption time over the median AR step."""
        return statistics.median(self.corruption_seconds) / statistics.median(self.ar_seconds)


def measure(config: Config, vocabulary_size: int, pairs: int, warm_up: int) -> Cost:
    """Time ``pairs`` pairs of one AR and one CARD update on random tokens, after ``warm_up`` untimed pairs.

    The order within a pair alternates, so a drift of the machine's speed favours neither. The process groups must have
    formed.
    """
    vocabulary = Vocabulary(vocabulary_size, MASK_ID)
    objectives = {"ar": create_objective("ar"), "card": create_objective("card", mask_id=MASK_ID)}
    engine = build_engine(config, vocabulary, "causal")
    updates = {name: Update(engine, objective, config) for name, objective in objectives.items()}
    rows = config.train.global_batch // dist.get_world_size(process_groups.data_group())
    seconds: dict[str, list[float]] = {"ar": [], "card": [], "corruption": []}
    for pair in range(warm_up + pairs):
        batch = _random_batch(rows, config.model.length, vocabulary_size, pair)
        order = ("ar", "card") if pair % 2 else ("card", "ar")
        for name in order:
            taken = _timed(lambda name=name, batch=batch: updates[name](batch, config.optimizer.lr))
            if pair >= warm_up:
                seconds[name].append(taken)
        moved = [field.to(updates["card"].device) for field in batch]
        taken = _timed(lambda moved=moved: _corrupt(objectives["card"], moved, config.run.seed))
        if pair >= warm_up:
            seconds["corruption"].append(taken)
    return Cost(seconds["ar"], seconds["card"], seconds["corruption"])


def _corrupt(objective, batch: list[torch.Tensor], seed: int) -> None:
    sample_ids, epochs, tokens = batch
    objective.normaliser(objective.corrupt(tokens, sample_ids, epochs, seed))


def _random_batch(rows: int, length: int, vocabulary_size: int, number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(MASK_ID + 1, vocabulary_size, (rows, length + 1), generator=generator)
    sample_ids = torch.arange(number * rows, (number + 1) * rows)
    return Batch(sample_ids, torch.zeros_like(sample_ids), tokens)


def _timed(action: Callable[[], object]) -> float:
    """Return the seconds until the action's work is done, on the device too."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def utilisation(config: Config, vocabulary_size: int, cost: Cost) -> dict[str, float]:
    """Return tokens per second and, on a GPU, model TFLOP/s per device and MFU of the CARD step."""
    flops = flops_of(config.model, padded_vocabulary(vocabulary_size))
    tokens_per_second = config.train.global_batch * config.model.length / statistics.median(cost.card_seconds)
    fields = {"tokens_per_second": tokens_per_second}
    if torch.cuda.is_available():
        peak = peak_flops(torch.cuda.get_device_name())
        devices = dist.get_world_size()
        fields |= throughput_fields(flops, tokens_per_second=tokens_per_second, devices=devices, peak=peak)
    return fields


def report(config: Config, cost: Cost, used: dict[str, float]) -> str:
    """Return the result in a few lines; ``used`` is :func:`utilisation`'s."""
    median, low, high = cost.interval()
    ar, card = statistics.median(cost.ar_seconds), statistics.median(cost.card_seconds)
    model = config.model
    return (
        f"model {model.layers} x {model.hidden}, length {model.length}, {config.train.global_batch} sequences a step, "
        f"{config.train.precision}, {len(cost.ar_seconds)} pairs\n"
        f"AR step    {ar * 1000:9.2f} ms (median)\n"
        f"CARD step  {card * 1000:9.2f} ms (median)\n"
        f"CARD / AR  {median:9.4f}    (median of pairs; 95 % interval {low:.4f} to {high:.4f})\n"
        f"corruption alone: {cost.corruption_share():.3%} of an AR step\n"
        + "; ".join(f"{name} {value:.4g}" for name, value in used.items())
    )


def as_json(config: Config, cost: Cost, used: dict[str, float]) -> str:
    """Return the result with configuration, hardware, versions, commit and command."""
    median, low, high = cost.interval()
    return json.dumps(
        {
            "card_over_ar": {"median": median, "low": low, "high": high},
            "corruption_share_of_ar_step": cost.corruption_share(),
            **used,
            "seconds": dataclasses.asdict(cost),
            "config": dataclasses.asdict(config),
            "environment": environment(),
        },
        indent=1,
    )
