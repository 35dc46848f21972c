"""What a training noise makes of a model as a drafter of its own text: likelihood against tokens a pass."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from card_scale.checkpoint import directory as directories
from card_scale.config import Config
from card_scale.errors import CheckpointError, ConfigurationError
from card_scale.generation.load import load
from card_scale.generation.loop import generate
from card_scale.objectives import registry
from card_scale.training.records import evaluations_of, read_metrics

MASKED = "card/validation_nll_masked_"
"""Begin of the key of the loss of a token behind k - 1 masks."""


class Drafter(NamedTuple):
    """A finished run, as a drafter."""

    run: str
    label: str
    """Its objective and the keys that are not the defaults."""
    size: str
    seed: int
    trained_tokens: int
    clean_nll: float
    """Nats a token, exact, left to right."""
    masked_nll: list[float]
    """Of the k-th token behind clean text, after k - 1 masks; empty where it was not trained on masks."""
    greedy: float
    """Tokens a pass of self-verified greedy decoding, drafts kept for every number of right ones, none copied."""
    sampled: float
    """The same at temperature 1."""


def measure(run: Path, prompts: list[list[int]], new_tokens: int, drafts: int, candidates: int) -> Drafter:
    """Measure the last checkpoint of a run. Raises CheckpointError where there is none."""
    latest = directories.find_latest(run / "checkpoints")
    if latest is None:
        raise CheckpointError(f"{run} holds no checkpoint; give run directories")
    model = load(latest[0])
    config = model.config
    last = evaluations_of(read_metrics(run / "metrics.jsonl"))[-1]
    masked = sorted((int(key.removeprefix(MASKED)), value) for key, value in last.items() if key.startswith(MASKED))
    rates = []
    for temperature in (0.0, 1.0):
        found = generate(
            model,
            prompts,
            method="self_verified",
            new_tokens=new_tokens,
            drafts=drafts,
            candidates=candidates,
            copies=0,
            input_cost=0.0,
            temperature=temperature,
        )
        rates.append(sum(len(one.tokens) for one in found) / sum(one.passes for one in found))
    return Drafter(
        run=run.name,
        label=label(config),
        size=f"{config.model.layers} x {config.model.hidden}, {config.data.path}",
        seed=config.run.seed,
        trained_tokens=last["step"] * config.train.global_batch * config.model.length,
        clean_nll=last["validation_nll"],
        masked_nll=[value for _, value in masked],
        greedy=rates[0],
        sampled=rates[1],
    )


def label(config: Config) -> str:
    """The objective's name and those of its keys that are not the default."""
    objective = config.objective
    changed = [
        f"{name}={getattr(objective, name)}"
        for name, field in registry.keys(type(objective)).items()
        if field.default is not dataclasses.MISSING and getattr(objective, name) != field.default
    ]
    return " ".join([objective.name, *changed])


def over_autoregressive(drafters: Sequence[Drafter]) -> list[float | None]:
    """Nats of each over the AR run of the same size, data, seed and tokens; None where there is none."""
    base = {(one.size, one.seed, one.trained_tokens): one.clean_nll for one in drafters if one.label == "ar"}
    found = []
    for one in drafters:
        plain = base.get((one.size, one.seed, one.trained_tokens))
        found.append(None if plain is None else one.clean_nll - plain)
    return found


def table(drafters: Sequence[Drafter]) -> list[dict[str, Any]]:
    """Records with the excess over AR."""
    return [
        one._asdict() | {"over_ar": excess} for one, excess in zip(drafters, over_autoregressive(drafters), strict=True)
    ]


def draw(drafters: Sequence[Drafter], path: Path) -> None:
    """Draw clean loss over AR against tokens a pass, one colour a noise, and join those that none beats."""
    # Imported only here: it takes a second, and no other part of a measurement needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [
        (one, excess)
        for one, excess in zip(drafters, over_autoregressive(drafters), strict=True)
        if excess is not None and one.label != "ar"
    ]
    if not points:
        raise ConfigurationError("no figure to draw: no run stands beside an AR run of its size, data, seed and tokens")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    labels = list(dict.fromkeys(one.label for one, _ in points))
    for number, name in enumerate(labels):
        mine = [(excess, one.greedy) for one, excess in points if one.label == name]
        axes.scatter(*zip(*mine, strict=True), color=f"C{number}", label=name)
    best: list[tuple[float, float]] = []
    for excess, rate in sorted((excess, one.greedy) for one, excess in points):
        if not best or rate > best[-1][1]:
            best.append((excess, rate))
    axes.plot([excess for excess, _ in best], [rate for _, rate in best], color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("clean validation loss over AR, nats per token")
    axes.set_ylabel("tokens a pass, self-verified, greedy")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
