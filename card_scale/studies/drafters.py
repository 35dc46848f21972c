"""What a training noise makes of a model as a drafter of its own text: likelihood against tokens a pass."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from card_scale import charts
from card_scale.checkpoint import directory as directories
from card_scale.config import Config
from card_scale.errors import CheckpointError, ConfigurationError, DataError
from card_scale.generation.decoder import Choices, SequenceDecoder
from card_scale.generation.draft_length import DraftLength
from card_scale.generation.load import load
from card_scale.generation.loop import Generation, generate
from card_scale.generation.loop import run as decode
from card_scale.generation.model import InferenceModel
from card_scale.generation.pace import Pace
from card_scale.generation.sampling import Chooser, Sampling
from card_scale.generation.self_verified import SelfVerified
from card_scale.generation.shape import DecoderShape
from card_scale.generation.stopping import Stopping
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
    on_text: float
    """The same where the held-out text decides what comes, not the model: one text for all runs, while a model that has
    learnt less writes what is easier to guess."""


class _OnText(SelfVerified):
    """Checks drafts by a given text."""

    def __init__(self, text: list[int], prompt_tokens: int, shape: DecoderShape, draft_length: DraftLength):
        super().__init__(text[:prompt_tokens], len(text), shape, draft_length, Pace(0.0))
        self.text = [*text, shape.start_id]

    def take(self, choices: Choices) -> int:
        ends = [len(self.tokens) + ending.right + (ending.other is not None) for ending in self.endings]
        decided = [self.text[min(end, self.limit)] for end in ends]
        return super().take(choices._replace(tokens=decided + choices.tokens[len(ends) :]))


def measure(run: Path, texts: list[list[int]], prompt_tokens: int, drafts: int, candidates: int) -> Drafter:
    """Measure the last checkpoint of a run on texts of one length, which begin with the prompts.

    Raises CheckpointError where there is none, DataError without an evaluation.
    """
    latest = directories.find_latest(run / "checkpoints")
    if latest is None:
        raise CheckpointError(f"{run} holds no checkpoint; give run directories")
    model = load(latest[0])
    config = model.config
    evaluations = evaluations_of(read_metrics(run / "metrics.jsonl"))
    if not evaluations:
        raise DataError(f"{run / 'metrics.jsonl'} holds no evaluation; give runs with train.eval_every above 0")
    last = evaluations[-1]
    masked = sorted((int(key.removeprefix(MASKED)), value) for key, value in last.items() if key.startswith(MASKED))
    prompts = [text[:prompt_tokens] for text in texts]
    written = [
        generate(
            model,
            prompts,
            method="self_verified",
            new_tokens=len(texts[0]) - prompt_tokens,
            drafts=drafts,
            candidates=candidates,
            copies=0,
            input_cost=0.0,
            temperature=temperature,
        )
        for temperature in (0.0, 1.0)
    ]
    return Drafter(
        run=run.name,
        label=label(config),
        size=f"{config.model.layers} x {config.model.hidden}, {config.data.path}",
        seed=config.run.seed,
        trained_tokens=last["step"] * config.train.global_batch * config.model.length,
        clean_nll=last["validation_nll"],
        masked_nll=[value for _, value in masked],
        greedy=_tokens_per_pass(written[0]),
        sampled=_tokens_per_pass(written[1]),
        on_text=tokens_per_pass_on(texts, model, prompt_tokens, drafts, candidates),
    )


@torch.inference_mode()
def tokens_per_pass_on(
    texts: list[list[int]], model: InferenceModel, prompt_tokens: int, drafts: int, candidates: int
) -> float:
    """Tokens a pass with all drafts checked by the texts themselves, behind their first ``prompt_tokens``."""
    draft_length = DraftLength(drafts, 0, candidates)
    readers: list[SequenceDecoder] = [_OnText(text, prompt_tokens, model.shape, draft_length) for text in texts]
    keys = list(range(len(texts)))
    return _tokens_per_pass(decode(model, readers, keys, Chooser(Sampling()), Stopping((), (), model)))


def _tokens_per_pass(found: list[Generation]) -> float:
    return sum(len(one.tokens) for one in found) / sum(one.passes for one in found)


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
    """Draw clean loss over AR against tokens a pass on held-out text, a panel for each size and dataset, seeds as dots
    about their mean, and join the means that none beats. Raises ConfigurationError where no run stands beside AR."""
    points = [
        (one, excess)
        for one, excess in zip(drafters, over_autoregressive(drafters), strict=True)
        if excess is not None and one.label != "ar"
    ]
    if not points:
        raise ConfigurationError("no figure to draw: no run stands beside an AR run of its size, data, seed and tokens")
    labels = list(dict.fromkeys(one.label for one, _ in points))
    sizes = list(dict.fromkeys(one.size for one, _ in points))
    figure, panels = charts.new_axes(len(sizes), columns=2)
    for axes, size in zip(panels, sizes, strict=False):
        means: list[tuple[float, float, str]] = []
        for name in labels:
            mine = [(excess, one.on_text) for one, excess in points if (one.label, one.size) == (name, size)]
            if not mine:
                continue
            number = labels.index(name)
            style = {"color": charts.colour(number), "marker": charts.marker(number)}
            mean = tuple(statistics.fmean(values) for values in zip(*mine, strict=True))
            means.append((mean[0], mean[1], name))
            if len(mine) > 1:
                axes.scatter(*zip(*mine, strict=True), s=8, alpha=0.5, **style)
            axes.scatter(*mean, s=40, **style, label=name)
        best = charts.front(means, lambda mean: (mean[0], -mean[1]))
        axes.plot([one[0] for one in best], [one[1] for one in best], color=charts.MUTED, linewidth=1, zorder=0)
        axes.set(title=size, xlabel="clean loss over AR, nats per token", ylabel="tokens a pass on held-out text")
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    charts.save(figure, path)
