"""Which sample stands where: permutations and cursor arithmetic as pure functions of a seed.

Nothing here keeps state, so a resume, another layout or another number of workers cannot change what is trained.
The permutations sort raw Philox words instead of calling ``Generator.permutation``: numpy promises that a bit
generator's raw stream and ``SeedSequence`` never change (NEP 19) and does not promise it of the methods on top.
"""

import numpy as np

from card_scale.errors import ConfigurationError

_SAMPLES = 0  # first word of the spawn key: keeps the sample orders and the document order of one seed independent
_DOCUMENTS = 1


def _permutation(seed: int, key: tuple[int, ...], count: int) -> np.ndarray:
    if seed < 0 or count < 0:
        raise ValueError(f"seed and count must not be negative, got seed {seed}, count {count}")
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)
    return np.argsort(words, kind="stable")  # stable, so that equal words too sort alike on every platform


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the samples in one epoch.

    Args:
        seed: the run's seed, at least 0.
        epoch: counts from 0.
        count: number of samples.

    Returns:
        int64 [count], a permutation of ``range(count)``; the sample id at each place of the epoch.

    Raises:
        ValueError: a negative argument.
    """
    return _permutation(seed, (_SAMPLES, epoch), count)


def document_order(seed: int, count: int) -> np.ndarray:
    """The order in which ``count`` documents are concatenated to the training stream: int64 [count], a permutation."""
    return _permutation(seed, (_DOCUMENTS,), count)


def evenly_spread(count: int, total: int) -> np.ndarray:
    """The first sample of each of ``count`` equal stretches of ``total`` samples, int64 [count].

    Raises ValueError unless 0 <= count <= total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count must be from 0 to {total}, got {count}")
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def evaluated_samples(split: str, count: int | None, total: int) -> np.ndarray:
    """Which of a split's ``total`` samples an evaluation of ``count`` of them (None: all) reads: int64 [N], ascending.

    Of training samples the first, so that runs which repeat more or less of a stream are evaluated on the same ones; of
    others an even spread, since they stand in the order of the corpus, whose begin may be of a few sources.
    """
    count = total if count is None else min(count, total)
    return np.arange(count, dtype=np.int64) if split == "train" else evenly_spread(count, total)


def locate(positions: np.ndarray, sample_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and place in the epoch of global positions (samples consumed before them, counted over all ranks).

    Args:
        positions: int64 [N], at least 0.
        sample_count: samples in one epoch, at least 1.

    Returns:
        epochs and places, int64 [N] each.
    """
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), sample_count)
    return epochs, places


def rank_places(global_batch: int, micro_batch: int, data_parallel_rank: int, data_parallel_size: int) -> np.ndarray:
    """The places of a global batch that one data-parallel rank trains on.

    Micro-batch m of rank r holds the places ``[(m * size + r) * micro_batch, ... + micro_batch)``, so the m-th
    micro-batches of all ranks together are a contiguous piece of the global batch whatever the data-parallel size is.

    Returns:
        int64 [global_batch / data_parallel_size], micro-batch major.

    Raises:
        ConfigurationError: the sizes do not divide, naming them; or a rank outside the size.
    """
    if min(global_batch, micro_batch, data_parallel_size) < 1:
        raise ConfigurationError(
            f"train.global_batch ({global_batch}), train.micro_batch ({micro_batch}) and the data-parallel size "
            f"({data_parallel_size}) must be at least 1"
        )
    if not 0 <= data_parallel_rank < data_parallel_size:
        raise ConfigurationError(
            f"data-parallel rank {data_parallel_rank} is outside the data-parallel size {data_parallel_size}"
        )
    if global_batch % (micro_batch * data_parallel_size):
        raise ConfigurationError(
            f"train.global_batch ({global_batch}) must be a multiple of train.micro_batch ({micro_batch}) x "
            f"data-parallel size ({data_parallel_size}) = {micro_batch * data_parallel_size}"
        )
    places = np.arange(global_batch, dtype=np.int64).reshape(-1, data_parallel_size, micro_batch)
    return places[:, data_parallel_rank].reshape(-1)
