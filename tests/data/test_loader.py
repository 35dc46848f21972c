import os
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from card_scale.data.digest import batch_digest
from card_scale.data.loader import EvaluationBatches, GlobalBatchLoader
from card_scale.data.order import epoch_order
from card_scale.data.stream import PackedStream
from card_scale.errors import ConfigurationError, DataError

LENGTH = 32


@pytest.fixture(scope="module")
def stream(dataset):
    return PackedStream(dataset, "train", 0, LENGTH)


def loader(stream, rank=0, size=1, global_batch=12, micro_batch=2, **options):
    options = {"seed": 9} | options
    return GlobalBatchLoader(
        stream,
        global_batch=global_batch,
        micro_batch=micro_batch,
        data_parallel_rank=rank,
        data_parallel_size=size,
        **options,
    )


def sample_at(position, count, reshuffle=True, seed=9):
    epoch = position // count
    return epoch, int(epoch_order(seed, epoch if reshuffle else 0, count)[position % count])


@given(st.sampled_from([(1, 1), (2, 1), (3, 2), (6, 2), (12, 1)]), st.integers(0, 10**6))
@hypothesis_settings(max_examples=25)
def test_ranks_partition_the_global_batch(stream, layout, step):
    size, micro_batch = layout
    micro_batches = 12 // size // micro_batch
    batches = []
    for rank in range(size):
        with loader(stream, rank, size, micro_batch=micro_batch) as source:
            batches.append(source.rank_batch(step))
    for batch in batches:
        assert [tensor.dtype for tensor in batch.tensors()] == [torch.int64] * 4
        assert batch.tokens.shape == (12 // size, LENGTH + 1)
    # rows are micro-batch major: putting rank beside rank in each micro-batch gives the global batch in order
    ids, epochs, positions = (
        torch.stack([getattr(batch, name).reshape(micro_batches, micro_batch) for batch in batches], dim=1).reshape(-1)
        for name in ("sample_ids", "epochs", "global_positions")
    )
    assert positions.tolist() == list(range(step * 12, step * 12 + 12))
    expected = [sample_at(step * 12 + place, stream.sample_count) for place in range(12)]
    assert list(zip(epochs.tolist(), ids.tolist(), strict=True)) == expected
    for batch in batches:
        assert (batch.tokens.numpy() == stream.samples(batch.sample_ids.numpy())).all()


@pytest.mark.parametrize("reshuffle", [True, False])
def test_true_epochs_also_where_a_batch_straddles_them(stream, reshuffle):
    part = PackedStream(stream._directory, "train", 0, LENGTH, unique_tokens=7 * LENGTH + 1)
    assert part.sample_count == 7
    with loader(part, reshuffle=reshuffle) as source:
        batches = [source.rank_batch(step) for step in range(7)]  # 84 samples, 12 epochs, more than one in a batch
    ids = torch.cat([batch.sample_ids for batch in batches]).reshape(12, 7)
    epochs = torch.cat([batch.epochs for batch in batches]).reshape(12, 7)
    assert (epochs == torch.arange(12)[:, None]).all()
    assert (ids.sort(dim=1).values == torch.arange(7)).all()
    assert len({tuple(row) for row in ids.tolist()}) == (12 if reshuffle else 1)


def test_any_step_can_be_asked_for(stream):
    with loader(stream) as source:
        forward = [source.rank_batch(step) for step in range(60)]
    with loader(stream) as source:
        for step in (59, 3, 4, 5, 3, 0, 41):
            for found, expected in zip(source.rank_batch(step).tensors(), forward[step].tensors(), strict=True):
                assert torch.equal(found, expected)
        with pytest.raises(ValueError, match="-1"):
            source.rank_batch(-1)


def test_another_seed_another_order(stream):
    with loader(stream) as one, loader(stream, seed=10) as other:
        assert not torch.equal(one.rank_batch(0).sample_ids, other.rank_batch(0).sample_ids)


def test_closing_ends_the_thread(stream):
    before = threading.active_count()
    source = loader(stream)
    source.rank_batch(0)
    assert threading.active_count() == before + 1
    source.close()
    assert threading.active_count() == before
    source.close()
    with pytest.raises(RuntimeError):
        source.rank_batch(1)


def test_damage_met_in_the_background_reaches_the_caller(dataset, tmp_path):
    directory = shutil.copytree(dataset, tmp_path / "data")
    stream = PackedStream(directory, "train", 0, LENGTH)
    for shard in stream.manifest.splits["train"].shards[1:]:
        os.truncate(directory / shard.name, 600)
    with loader(stream) as source, pytest.raises(DataError, match=r"train-.*600 bytes"):
        list(map(source.rank_batch, range(stream.sample_count)))


def test_sizes_that_do_not_divide_are_named(stream):
    with pytest.raises(ConfigurationError, match=r"12.*5"):
        loader(stream, micro_batch=5)


@pytest.mark.parametrize("count", [None, 1, 11, 12, 13])
@pytest.mark.parametrize("size, micro_batch", [(1, 12), (2, 3), (4, 1)])
def test_an_evaluation_reads_every_sample_once_in_order(stream, size, micro_batch, count):
    total = stream.sample_count
    expected = np.arange(total) if count is None else 3 + 2 * np.arange(count)
    ranks = [
        EvaluationBatches(
            stream,
            expected,
            global_batch=12,
            micro_batch=micro_batch,
            data_parallel_rank=rank,
            data_parallel_size=size,
        )
        for rank in range(size)
    ]
    assert {len(rank) for rank in ranks} == {-(-len(expected) // 12)}
    places = []
    for number, batches in enumerate(zip(*ranks, strict=True)):
        for batch in batches:
            assert batch.tokens.shape == (12 // size, LENGTH + 1)
            assert (batch.global_positions[~batch.valid] == number * 12).all()
            assert (batch.sample_ids.numpy() == expected[batch.global_positions]).all()
            assert (batch.tokens.numpy() == stream.samples(batch.sample_ids.numpy())).all()
            assert not batch.epochs.any()
            assert batch.batch_size == len(expected)
            places += batch.global_positions[batch.valid].tolist()
        assert sorted(places) == list(range(min(len(expected), 12 * (number + 1))))
    assert len(places) == len(expected)


def test_the_digest_tells_batches_apart(stream):
    with loader(stream) as source:
        batch, other = source.rank_batch(0), source.rank_batch(1)
    digest = batch_digest(batch.tensors())
    assert digest == batch_digest(tensor.clone() for tensor in batch.tensors())
    assert torch.tensor([digest], dtype=torch.int64).item() == digest
    assert digest != batch_digest(other.tensors())
    for number, tensor in enumerate(batch.tensors()):
        changed = [one.clone() for one in batch.tensors()]
        changed[number].view(-1)[-1] += 1
        assert batch_digest(changed) != digest, number
        assert (
            batch_digest([*batch.tensors()[:number], tensor.reshape(1, -1), *batch.tensors()[number + 1 :]]) != digest
        )
    assert np.iinfo(np.int64).min <= digest <= np.iinfo(np.int64).max
