"""What a batch's fingerprint tells apart besides other bytes."""

import torch

from card_scale.data.digest import batch_digest


def test_equal_bytes_of_another_type_shape_or_division_are_another_batch():
    tokens = torch.arange(12, dtype=torch.int64)
    divided = [
        [tokens],
        [tokens.view(torch.float64)],
        [tokens.view(3, 4)],
        [tokens.view(4, 3)],
        [tokens[:5], tokens[5:]],
        [tokens[:7], tokens[7:]],
    ]
    assert len({batch_digest(tensors) for tensors in divided}) == len(divided)
    assert batch_digest([tokens.view(3, 4).t()]) == batch_digest([tokens.view(3, 4).t().contiguous()])
