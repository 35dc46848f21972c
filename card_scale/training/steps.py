"""How many updates a run makes, and when something is due: pure arithmetic, without torch for plans of many runs."""

from fractions import Fraction

from card_scale.config import Config
from card_scale.errors import ConfigurationError

MANY_EPOCHS = 1000.0
"""Beyond all that is studied: more often a small dataset taken for a large one."""

MOST_TOKENS = 2**53
"""Of a run: beyond it float64 does not count tokens exactly."""


def total_steps(config: Config, samples_per_epoch: int) -> int:
    """Return the updates to make.

    ``data.epochs`` counts whole batches within the budget: the last part is dropped. It is the decimal number that was
    written, not the nearest float64: 0.29 epochs of 100 samples are 29 samples.

    Raises:
        ConfigurationError: less than one batch, more than MOST_TOKENS, or ``train.steps`` says otherwise.
    """
    steps, epochs = config.train.steps, config.data.epochs
    if epochs is None:
        assert steps is not None  # Config.check
        return steps
    # The shortest decimal that reads as this float is what a person wrote.
    samples = int(Fraction(repr(epochs)) * samples_per_epoch)
    if samples * config.model.length > MOST_TOKENS:
        tokens = epochs * samples_per_epoch * config.model.length
        raise ConfigurationError(
            f"data.epochs {epochs:g} of {samples_per_epoch} samples of {config.model.length} tokens are {tokens:.3g} "
            "tokens; a run has at most 2^53"
        )
    from_epochs = samples // config.train.global_batch
    if from_epochs == 0:
        raise ConfigurationError(
            f"data.epochs {epochs} of {samples_per_epoch} samples are less than one train.global_batch of "
            f"{config.train.global_batch}"
        )
    if steps is not None and steps != from_epochs:
        raise ConfigurationError(
            f"train.steps is {steps}, but data.epochs {epochs} of {samples_per_epoch} samples in batches of "
            f"{config.train.global_batch} are {from_epochs} steps; give one of the two, or make them equal"
        )
    return from_epochs


def warnings(config: Config, steps: int, samples_per_epoch: int | None = None) -> list[str]:
    """Return what is probably not meant by a run of so many updates, a line each; of epochs with a dataset."""
    lines = []
    optimizer = config.optimizer
    if optimizer.warmup_steps >= steps:
        lines.append(
            f"warning: optimizer.warmup_steps {optimizer.warmup_steps} is not below the run's {steps} steps: the "
            f"learning rate never reaches optimizer.lr {optimizer.lr:g}"
        )
    epochs = steps * config.train.global_batch / samples_per_epoch if samples_per_epoch is not None else 0.0
    if epochs > MANY_EPOCHS:
        lines.append(f"warning: {epochs:,.0f} epochs: the dataset, or data.unique_tokens, is small")
    return lines


def times_due(after: int, every: int, total_steps: int) -> int:
    """Return how many updates later than ``after`` something is due after (see :func:`is_due`); ``after`` is at most
    ``total_steps``."""
    regular = total_steps // every - after // every if every else 0
    at_the_end = after < total_steps and (every == 0 or total_steps % every != 0)
    return regular + at_the_end


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether what happens ``every`` so many updates (0: only at the end) happens after update ``step``."""
    return step == total_steps or (every > 0 and step % every == 0)
