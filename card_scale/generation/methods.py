"""The methods of decoding by name, their options, and which model can be decoded by which."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from card_scale.errors import ConfigurationError
from card_scale.generation.autoregressive import Autoregressive
from card_scale.generation.block_decoding import BlockDecoding
from card_scale.generation.decoder import SequenceDecoder
from card_scale.generation.draft_length import DraftLength
from card_scale.generation.masked_diffusion import AncestralSampler, BlockDiffusionSampler
from card_scale.generation.model import InferenceModel
from card_scale.generation.pace import Pace
from card_scale.generation.sampling import Sampling, sequence_keys
from card_scale.generation.self_verified import SelfVerified
from card_scale.generation.strided import Strided
from card_scale.objectives.decoders import METHODS

MOST_DRAFTS = 128
"""A pass of self-verified decoding has up to K masks behind each of K drafts."""

MOST_CANDIDATES = 8


class Drafting(NamedTuple):
    """What self-verified decoding reckons with on a device."""

    input_cost: float
    """Time of one more input of a pass of one sequence, as a share of a pass with one."""
    pass_cost: float
    """Time that further inputs take beyond that, as such a share."""
    candidates: int


OF_DEVICE = MappingProxyType({"cpu": Drafting(0.04, 0.3, 1), "cuda": Drafting(0.003, 0.0, 2)})
"""The CPU's costs are measured (models of 0.5 M to 124 M parameters); a GPU's passes wait for memory."""


@dataclass(frozen=True)
class Options:
    """Options of the methods; see :func:`card_scale.generation.generate`. ConfigurationError outside their ranges."""

    method: str
    drafts: int = 4
    candidates: int | None = None
    copies: int = 24
    leniency: float = 0.0
    tau: float = 0.9
    max_passes: int | None = None
    leftmost: bool = True
    strides: int = 1
    input_cost: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigurationError(f"method is {self.method!r}; valid are {', '.join(METHODS)}")
        if not 1 <= self.drafts <= MOST_DRAFTS:
            raise ConfigurationError(f"drafts (K) is {self.drafts}; valid is from 1 to {MOST_DRAFTS}")
        if not 0 <= self.tau <= 1 and not (self.leftmost and self.tau > 1):
            valid = "at least 0" if self.leftmost else "from 0 to 1, since nothing else would ever be taken"
            raise ConfigurationError(f"tau is {self.tau}; valid is a probability {valid}")
        if not 0 <= self.copies <= MOST_DRAFTS:
            raise ConfigurationError(f"copies is {self.copies}; valid is from 0 to {MOST_DRAFTS}")
        if self.candidates is not None and not 1 <= self.candidates <= MOST_CANDIDATES:
            raise ConfigurationError(f"candidates is {self.candidates}; valid is from 1 to {MOST_CANDIDATES}")
        if not 0 <= self.leniency <= 1:
            raise ConfigurationError(f"leniency is {self.leniency}; valid is from 0 (lossless) to 1 (any draft)")
        if self.strides < 1:
            raise ConfigurationError(f"strides (S) is {self.strides}; valid is at least 1")
        if self.max_passes is not None and self.max_passes < 1:
            raise ConfigurationError(f"max_passes (T_max) is {self.max_passes}; valid is at least 1")
        if self.input_cost is not None and not self.input_cost >= 0:
            raise ConfigurationError(f"input_cost is {self.input_cost}; valid is at least 0")


def create_decoders(
    model: InferenceModel, prompts: list[list[int]], new_tokens: int, options: Options, sampling: Sampling
) -> list[SequenceDecoder]:
    """A decoder for each prompt. Raises ConfigurationError for what the model cannot do."""
    check_method(model, options.method)
    check_lengths(model, prompts, new_tokens)
    if options.method == "armd_strided" and new_tokens % options.strides:
        raise ConfigurationError(f"strides (S) {options.strides} does not divide the {new_tokens} new tokens")
    shape, device = model.shape, model.embedding.weight.device
    create = _creators(options, sampling, device)[options.method]
    return [
        create(prompt or [shape.start_id], (len(prompt) or 1) + new_tokens, shape, key)
        for prompt, key in zip(prompts, sequence_keys(prompts), strict=True)
    ]


def _creators(options: Options, sampling: Sampling, device: torch.device) -> dict[str, Callable[..., SequenceDecoder]]:
    usual = OF_DEVICE.get(device.type, Drafting(0.0, 0.0, 2))
    costs = (usual.input_cost, usual.pass_cost) if options.input_cost is None else (options.input_cost, 0.0)
    draft_length = DraftLength(options.drafts, options.copies, options.candidates or usual.candidates)
    # A block of the paper that nothing is sure of must end all the same.
    block_passes = options.drafts if options.max_passes is None and not options.leftmost else options.max_passes
    steps, seed = options.max_passes, sampling.seed
    return {
        "ar": lambda prompt, limit, shape, _key: Autoregressive(prompt, limit, shape),
        "self_verified": lambda prompt, limit, shape, _key: SelfVerified(
            prompt, limit, shape, draft_length, Pace(*costs)
        ),
        "card": lambda prompt, limit, shape, _key: BlockDecoding(
            prompt,
            limit,
            shape,
            window=options.drafts,
            tau=options.tau,
            max_passes=block_passes,
            leftmost=options.leftmost,
        ),
        "bd3lm": lambda prompt, limit, shape, key: BlockDiffusionSampler(
            prompt, limit, shape, steps=steps, seed=seed, key=key
        ),
        "mdlm": lambda prompt, limit, shape, key: AncestralSampler(
            prompt, limit, shape, steps=steps, seed=seed, key=key
        ),
        "armd_strided": lambda prompt, limit, shape, _key: Strided(prompt, limit, shape, strides=options.strides),
    }


def as_prompts(prompts: Any) -> list[list[int]]:
    """Prompts as lists of integers, out of sequences, arrays or tensors. ConfigurationError for anything else."""
    rows = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    found = []
    for number, row in enumerate(() if isinstance(rows, str) else rows):
        row = row.tolist() if hasattr(row, "tolist") else row
        try:
            found.append([operator.index(token) for token in row])
        except TypeError:
            raise ConfigurationError(f"prompt {number} is {row!r:.60}; valid is a list of token ids") from None
    if isinstance(rows, str):
        raise ConfigurationError("prompts is a text; valid is a list of lists of token ids")
    return found


def check_method(model: InferenceModel, method: str) -> None:
    """Raise ConfigurationError where the model was not trained for a method."""
    if model.decoders is not None and method not in model.decoders:
        raise ConfigurationError(
            f"method {method} does not decode a model trained with objective.name {model.objective}; "
            f"valid for it: {', '.join(model.decoders) or 'none'}"
        )


def check_lengths(model: InferenceModel, prompts: list[list[int]], new_tokens: int) -> None:
    """Raise ConfigurationError for prompts that are too long for the model, or tokens that it does not have."""
    if new_tokens < 1:
        raise ConfigurationError(f"new_tokens is {new_tokens}; valid is at least 1")
    for number, prompt in enumerate(prompts):
        length = len(prompt) or 1
        if length + new_tokens > model.shape.length:
            raise ConfigurationError(
                f"prompt {number} has {length} tokens; with {new_tokens} new ones that is more than the model's length "
                f"{model.shape.length}"
            )
        wrong = [token for token in prompt if not 0 <= token < model.shape.vocabulary or token == model.shape.mask_id]
        if wrong:
            raise ConfigurationError(
                f"prompt {number} holds token {wrong[0]}; valid are 0 to {model.shape.vocabulary - 1} without "
                f"[MASK] ({model.shape.mask_id})"
            )
