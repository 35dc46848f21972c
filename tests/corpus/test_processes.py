import os

import pytest

from card_scale.corpus.processes import process_map
from card_scale.errors import DataError


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    with process_map(workers) as apply:
        assert list(apply(divmod, range(9), [2] * 9)) == [divmod(number, 2) for number in range(9)]


def test_the_death_of_a_worker_is_an_error_with_a_way_on():
    with pytest.raises(DataError, match="fewer workers"), process_map(2) as apply:
        list(apply(os._exit, [3]))
