"""Sums of gradients on three and four ranks, where the order of summation shows in last digits."""

import pytest
import torch
from sums import found_by


@pytest.mark.parametrize("size", [3, 4])
def test_many_ranks_have_the_plain_sum_to_the_last_digits(size, tmp_path):
    ranks = found_by(size, str(tmp_path))  # of four the last has no rows
    for rank in ranks:
        for case in ("inside", "memory", "dropped"):
            for found, wanted in zip(rank[case].found, rank[case].wanted, strict=True):
                wanted = torch.zeros_like(found) if wanted is None else wanted
                torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)
        for ours, first in zip(rank["inside"].found, ranks[0]["inside"].found, strict=True):
            assert torch.equal(ours, first)  # all ranks go on from the same weights
