"""The loop that all decoders share: plan, pass, choose, take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from card_scale.errors import NumericError
from card_scale.generation.batch_pass import run_pass
from card_scale.generation.cache import SequenceCache
from card_scale.generation.decoder import Choices, SequenceDecoder
from card_scale.generation.methods import Options, as_prompts, create_decoders
from card_scale.generation.model import InferenceModel
from card_scale.generation.sampling import Chooser, Sampling, sequence_keys
from card_scale.generation.stopping import Stopping


class Listener(Protocol):
    """Hears of tokens as they are decided."""

    def __call__(self, prompt: int, tokens: list[int], passes: list[int]) -> None:
        """``tokens`` of the prompt at this index were added, decided in ``passes``."""


@dataclass
class Generation:
    """What was generated for one prompt."""

    tokens: list[int] = field(default_factory=list)
    """New token ids, without the prompt; the stop token, or those that hold the stop string, are the last."""
    commit_passes: list[int] = field(default_factory=list)
    """For each of them the pass, from 1, in which it was decided."""
    passes: int = 0
    """Forward passes that served the prompt."""
    stopped: str | None = None
    """The stop token or string that ended it; None at full length."""


@torch.inference_mode()
def generate(
    model: InferenceModel,
    prompts: list[list[int]],
    *,
    method: str,
    new_tokens: int,
    drafts: int = Options.drafts,
    candidates: int | None = None,
    copies: int = Options.copies,
    leniency: float = 0.0,
    tau: float = Options.tau,
    max_passes: int | None = None,
    leftmost: bool = True,
    strides: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop_tokens: tuple[int, ...] = (),
    stop_strings: tuple[str, ...] = (),
    input_cost: float | None = None,
    listener: Listener | None = None,
) -> list[Generation]:
    """Go on with each prompt by ``new_tokens`` tokens, or up to a stop.

    What a prompt gets depends on the model, the options, the seed, the prompt and the number of equal prompts before
    it, not on the others (but for the rounding of the model's sums, which can turn what is equally likely).

    Args:
        model: from :func:`card_scale.generation.load`.
        prompts: token ids, of any lengths; an empty one begins as a document does, behind an end of document.
        method: ``ar``, ``self_verified`` (the same in fewer passes), ``card``, ``bd3lm``, ``mdlm``, ``armd_strided``.
        new_tokens: to generate.
        drafts: K: tokens that ``self_verified`` drafts at most by masks, or positions of ``card``'s window.
        candidates: tokens that it considers at most for each such place; by default one on a CPU, elsewhere two.
        copies: tokens that ``self_verified`` drafts at most by copying what followed the last ones before; 0 none.
        leniency: ``self_verified`` takes drafts of (1 - leniency) of the best token's probability too; 0 is lossless.
        tau: ``card`` takes a token whose probability exceeds it.
        max_passes: T_max, after which ``card`` takes what is left; steps a block (``bd3lm``) or text (``mdlm``), by
            default one a token.
        leftmost: ``card`` always takes the first masked position and moves its window on; false is the paper's.
        strides: S: stretches of the new text that ``armd_strided`` writes at once; a divisor of ``new_tokens``.
        temperature, top_p, top_k, repetition_penalty, seed: see :class:`card_scale.generation.sampling.Sampling`.
        stop_tokens, stop_strings: end a sequence; a string does where the new text contains it.
        input_cost: time of one more input, as a share of a pass's, by which ``self_verified`` decides how many drafts
            to make, and whether any; 0 always makes ``drafts``, None takes what is usual for the device.
        listener: is told of new tokens as they are decided.

    Raises:
        NumericError: the model's logits are not finite.
        ConfigurationError: for an option outside its range, a method that the model was not trained for, or a prompt
            that with the new tokens is longer than the model's length.
    """
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, seed)
    options = Options(method, drafts, candidates, copies, leniency, tau, max_passes, leftmost, strides, input_cost)
    stopping = Stopping(stop_tokens, stop_strings, model)
    prompts = as_prompts(prompts)
    decoders = create_decoders(model, prompts, new_tokens, options, sampling)
    return run(model, decoders, sequence_keys(prompts), Chooser(sampling, leniency), stopping, listener)


def run(
    model: InferenceModel,
    decoders: list[SequenceDecoder],
    keys: list[int],
    chooser: Chooser,
    stopping: Stopping,
    listener: Listener | None = None,
) -> list[Generation]:
    """Decode all sequences to their ends, those that still run in one batch. ``keys`` are those of their noise."""
    found = [Generation() for _ in decoders]
    cache = None
    if decoders and decoders[0].uses_cache:
        capacity = max(decoder.limit for decoder in decoders) + max(decoder.scratch for decoder in decoders)
        cache = model.new_cache(len(decoders), capacity)
    try:
        _decode(model, decoders, keys, chooser, stopping, listener, cache, found)
    finally:
        if cache is not None:
            model.give_back(cache)
    return found


def _decode(
    model: InferenceModel,
    decoders: list[SequenceDecoder],
    keys: list[int],
    chooser: Chooser,
    stopping: Stopping,
    listener: Listener | None,
    cache: SequenceCache | None,
    found: list[Generation],
) -> None:
    """Pass after pass, until all sequences have ended; ``found`` takes what they generate."""
    active = list(range(len(decoders)))
    while active:
        running = [decoders[index] for index in active]
        counts = _one_pass(model, running, [keys[index] for index in active], chooser, cache)
        if cache is not None:
            cache.commit(counts)
        kept = []
        for row, index in enumerate(active):
            decoders[index].cached += counts[row]
            if not _record(decoders[index], found[index], index, stopping, listener):
                kept.append(row)
        if len(kept) < len(active):
            active = [active[row] for row in kept]
            if cache is not None and kept:
                cache.keep(kept)


def _one_pass(
    model: InferenceModel,
    running: list[SequenceDecoder],
    keys: list[int],
    chooser: Chooser,
    cache: SequenceCache | None,
) -> list[int]:
    """Plan, pass, choose and take; return how many inputs of each sequence enter the cache."""
    for decoder in running:
        decoder.sequences = len(running)
    plans = [decoder.plan() for decoder in running]
    logits, reads = run_pass(model, plans, cache)
    contexts: list[Sequence[int]] | None = None
    if chooser.needs_contexts:
        contexts = [
            [*decoder.tokens, *behind]
            for decoder, plan in zip(running, plans, strict=True)
            for behind in (plan.behind or [[]] * len(plan.read))
        ]
    places = [(key, position) for key, plan in zip(keys, plans, strict=True) for position in plan.predicts]
    normalisers = logits.logsumexp(-1) if running[0].wants_probabilities else None
    plain = logits.clone() if contexts is not None else logits
    checks = [draft for plan in plans for draft in plan.checks or [-1] * len(plan.read)] if chooser.leniency else None
    chosen, others = chooser(logits, places, contexts, checks, running[0].wants_others)
    picked = plain.gather(1, chosen[:, None])[:, 0]
    tokens, probabilities, next_best = chosen.tolist(), list[float](), others.tolist()
    if normalisers is not None:
        picked = (picked - normalisers).exp()
        probabilities = picked.tolist()
    if not all(map(math.isfinite, probabilities or picked.tolist())):
        raise NumericError("the model's logits are not finite: its weights are damaged, or its type cannot hold them")
    counts, begin = [], 0
    for decoder, read in zip(running, reads, strict=True):
        decoder.passes += 1
        rows = slice(begin, begin + read)
        counts.append(decoder.take(Choices(tokens[rows], probabilities[rows], next_best[rows])))
        begin += read
    return counts


def _record(
    decoder: SequenceDecoder, found: Generation, index: int, stopping: Stopping, listener: Listener | None
) -> bool:
    """Take over what a decoder has decided; return whether its sequence has ended."""
    found.passes = decoder.passes
    known = len(found.tokens)
    found.tokens = decoder.tokens[decoder.prompt_length :]
    end, found.stopped = stopping.end(found.tokens, known)
    found.tokens, found.commit_passes = found.tokens[:end], decoder.commit_passes[:end]
    if listener is not None and end > known:
        listener(index, found.tokens[known:], found.commit_passes[known:])
    return found.stopped is not None or len(decoder.tokens) >= decoder.limit
