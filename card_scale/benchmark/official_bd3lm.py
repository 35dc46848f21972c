"""A training step of the official block-diffusion code (github.com/kuleshov-group/bd3lms, seen at 1c3e8f4) on our data.

Its model is loaded from a user's clone of that repository. Around it stands the least that its training step does:
its losses over the whole vocabulary in float32, clipping and a fused AdamW. What else the authors' trainer does (the
corruption, their moving average, the framework's hooks) is left out, which favours them.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives.batch import Batch, weighted_loss
from card_scale.objectives.block_diffusion import BlockDiffusionObjective

MODEL_FILE = Path("models") / "dit.py"
CONDITION = 128
"""Width of the embedded noise level, of every model size that the authors publish."""


class OfficialStep:
    """Updates of the official model of our sizes. Its feed-forward network is always four times as wide as a layer."""

    def __init__(self, repository: Path, config: Config, rows: int, attention: str, device: torch.device):
        """Build the model with its own initial weights.

        Args:
            repository: a clone.
            config: sizes, batch and optimizer; the objective is ``bd3lm``.
            rows: of the embedding, the padded vocabulary.
            attention: its ``attn_backend``: ``flex`` (GPU only) or ``sdpa``, with the whole mask.
            device: to train on.

        Raises ConfigurationError for another objective or type of numbers, and where the clone or a library that it
        imports is missing.
        """
        if not isinstance(config.objective, BlockDiffusionObjective):
            raise ConfigurationError(f"objective.name is {config.objective.name}; the official code is of bd3lm")
        # Theirs is bf16 on a GPU and float32 on a CPU, whatever is asked for.
        theirs = "bf16" if device.type == "cuda" else "fp32"
        if config.train.precision != theirs or config.optimizer.ema:
            raise ConfigurationError(
                f"the official model trains in {theirs} here, without a moving average; to compare like with like set "
                f"train.precision={theirs} optimizer.ema=0"
            )
        self.config, self.objective, self.device = config, config.objective, device
        settings = _settings(config, self.objective.block, attention)
        with torch.device(device):
            self.model: nn.Module = _load(repository).DIT(settings, vocab_size=rows)
        mask = self.model.block_diff_mask
        self.model.block_diff_mask = mask.to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=device.type == "cuda",
        )

    def __call__(self, samples: Samples) -> Tensor:
        """Make one update; return the loss, still on the device."""
        batch = self.objective.corrupt(samples.to(self.device), self.config.run.seed)
        normaliser = self.objective.normaliser(batch).float()
        total = torch.zeros((), device=self.device)
        for micro_batch in batch.micro_batches(self.config.train.micro_batch):
            loss = self._loss(micro_batch, normaliser)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _loss(self, batch: Batch, normaliser: Tensor) -> Tensor:
        # Without conditioning on time, as they train: every noise level reads zero.
        noise_level = torch.zeros(len(batch.inputs), device=self.device)
        logits = self.model(batch.inputs, noise_level).float()
        logits[:, :, self.objective.mask_id] += -1e6
        of_targets = (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, batch.targets[:, :, None])[:, :, 0]
        return weighted_loss(-of_targets, batch.weights, normaliser)


def _settings(config: Config, block: int, attention: str) -> dict:
    """Return the part of its configuration that its model reads."""
    model = config.model
    return {
        "block_size": block,
        "algo": {"parameterization": "subs", "cross_attn": True},
        "loader": {"eval_batch_size": config.train.micro_batch},
        "model": {
            "length": model.length,
            "hidden_size": model.hidden,
            "cond_dim": CONDITION,
            "n_heads": model.heads,
            "n_blocks": model.layers,
            "dropout": model.dropout,
            "tie_word_embeddings": model.tie_embeddings,
            "causal_attention": False,
            "adaln": False,
            "attn_backend": attention,
        },
    }


def _load(repository: Path):
    """Return the module of the clone's model file."""
    path = repository / MODEL_FILE
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist; give a clone of https://github.com/kuleshov-group/bd3lms")
    specification = importlib.util.spec_from_file_location("official_bd3lm_dit", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except ImportError as error:
        raise ConfigurationError(f"{path} wants a library that is not installed: {error}; pip install it") from error
    return module
