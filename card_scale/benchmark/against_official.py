"""Our step of block diffusion and the official code's, timed in turns on the same batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from card_scale.benchmark.arms import Arm
from card_scale.benchmark.clock import Clock, clock_of
from card_scale.benchmark.device import gpu_state
from card_scale.benchmark.measurement import TURNS, order
from card_scale.benchmark.official_bd3lm import OfficialStep
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.benchmark.statistics import paired_ratio, summarise
from card_scale.config import Config
from card_scale.cost.parameters import parameter_counts
from card_scale.data.samples import Samples
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.build import build_engine
from card_scale.engine.selection import compiles_layers
from card_scale.model.vocabulary import Vocabulary

WARM_UP = 3
"""Steps of each before any is timed: they compile, and make the optimizers' states."""


def measure(
    repository: Path, config: Config, dims: ParallelDims, vocabulary: int, attention: str | None, *, steps: int
) -> dict[str, Any]:
    """Time at least ``steps`` steps of each, in turns; return a result ready for JSON.

    Args:
        repository: a clone of the official code.
        config: sizes, batch and optimizer; the objective is ``bd3lm``.
        dims: a layout of one rank, whose process groups have formed.
        vocabulary: pieces; tokens are drawn at random.
        attention: kernel of the official model; None for the best that it has on the device.
        steps: counted, rounded up to whole turns.

    Raises ConfigurationError as :class:`OfficialStep` does.
    """
    device, sizes = current_device(), Vocabulary(vocabulary, MASK_ID)
    attention = attention or ("flex" if device.type == "cuda" else "sdpa")
    official = OfficialStep(repository, config, sizes.padded, attention, device)
    kind = config.objective.attention
    ours = ArmRunner(build_engine(config, dims, sizes, kind), Arm("bd3lm", block=kind.block), config)
    ours.install()
    batches, clock, turn = random_batches(config, vocabulary), clock_of(device), TURNS[device.type]
    steps_of: dict[str, Callable[[Samples], object]] = {"card_scale": ours.step, "official": official}
    for one in steps_of.values():
        for number in range(WARM_UP):
            one(batches(number))
    times: dict[str, list[list[float]]] = {name: [] for name in steps_of}
    for number in range(-(-steps // turn.counted)):
        batch = batches(WARM_UP + number)
        for place in order(len(steps_of), number):
            name = list(steps_of)[place]
            for _ in range(turn.lead_in):
                steps_of[name](batch)
            times[name].append(_timed(steps_of[name], batch, clock, turn.counted))
    parameters = {
        "card_scale": parameter_counts(config.model, sizes.padded).total,
        "official": sum(parameter.numel() for parameter in official.model.parameters()),
    }
    backends = {"card_scale": ours.backend, "official": attention}
    return {
        "config": yaml.safe_load(config.to_yaml()),
        "compiled_layers": compiles_layers(config, device.type),
        "gpu_state": gpu_state(device),
        "arms": {
            name: {
                "parameters": parameters[name],
                "attention": backends[name],
                "step_seconds": summarise([seconds for turn in rounds for seconds in turn])._asdict(),
                "samples_seconds": rounds,
            }
            for name, rounds in times.items()
        },
        "ratio": paired_ratio(times["card_scale"], times["official"])._asdict(),
    }


def _timed(step: Callable[[Samples], object], batch: Samples, clock: Clock, count: int) -> list[float]:
    """Return the seconds of each of ``count`` steps in a row."""
    spans = []
    for _ in range(count):
        begin = clock.stamp()
        step(batch)
        spans.append((begin, clock.stamp()))
    clock.wait()
    return [clock.seconds(*span) for span in spans]


def table(result: dict[str, Any]) -> str:
    """Return a result in lines."""
    model, train, ratio = result["config"]["model"], result["config"]["train"], result["ratio"]
    lines = [
        f"block diffusion, {model['layers']} x {model['hidden']}, L {model['length']}, "
        f"block {result['config']['objective']['block']}, {train['global_batch']} sequences a step, "
        f"{train['precision']}{', our layers compiled' if result['compiled_layers'] else ''}"
    ]
    for name, arm in result["arms"].items():
        step = {key: 1000 * seconds for key, seconds in arm["step_seconds"].items()}
        lines.append(
            f"{name:10}  {step['median']:9.1f} ms a step ({step['low']:.1f}-{step['high']:.1f}), "
            f"{arm['parameters']:,} parameters, attention {arm['attention']}"
        )
    lines.append(
        f"card_scale / official: {ratio['median']:.3f} (95 %: {ratio['low']:.3f}-{ratio['high']:.3f}, paired by rounds)"
    )
    return "\n".join(lines)
