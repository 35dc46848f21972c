import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from card_scale.corpus.hash_set import HashSet
from card_scale.corpus.ngrams import mix

KEYS = st.lists(st.integers(0, 200), max_size=100)


def hashes(keys):
    return mix(np.array(keys, dtype=np.uint64))


@given(KEYS, KEYS)
def test_it_finds_what_it_holds_and_nothing_else(held, asked):
    values = np.unique(hashes(held))
    places, found = HashSet.of(values).find(hashes(asked))
    assert places.tolist() == [place for place, key in enumerate(asked) if key in held]
    assert (values[found] == hashes(asked)[places]).all()


def test_equal_prefixes_do_not_deceive_it():
    values = np.array([2**63, 2**63 + 5], dtype=np.uint64)
    asked = np.array([2**63 + 5, 2**63 + 4, 0, 2**64 - 1], dtype=np.uint64)
    places, found = HashSet.of(values).find(asked)
    assert (places.tolist(), found.tolist()) == ([0], [1])


def test_a_saved_one_is_the_same(tmp_path):
    values = np.unique(hashes(range(0, 1000, 3)))
    HashSet.of(values).save(tmp_path / "set")
    for one, other in zip(
        HashSet.open(tmp_path / "set").find(hashes(range(500))),
        HashSet.of(values).find(hashes(range(500))),
        strict=True,
    ):
        assert (one == other).all()
