"""Comparisons that are drawn from real tiny runs: the null is called as often as it may be."""

import numpy as np
import pytest
from conftest import PROJECT

from benchmarks import bank


@pytest.fixture(scope="module")
def runs():
    return bank.Bank(PROJECT / "docs/statistics/bank.npz")


def test_the_null_is_called_in_about_five_percent_of_real_comparisons(runs):
    assert len(runs.runs["base"]) >= 50
    share, _ = bank.shares(runs, "base", "base", 3, False, 300)
    assert share < 0.09  # of 300 draws .05 + 3 standard errors


def test_by_name_makes_architectures_of_one_seed_alike(runs):
    """Pairing saves where parameters start by name, and costs where they start in order."""

    def correlation(a: str, b: str) -> float:
        many = min(len(runs.runs[a]), len(runs.runs[b]))
        return float(np.corrcoef(runs.values(a)[:many], runs.values(b)[:many])[0, 1])

    assert correlation("base", "gelu") > 0.5 > 0.2 > correlation("base_in_order", "gelu_in_order")
    for a, b, saves in (("base", "gelu", True), ("base_in_order", "gelu_in_order", False)):
        apart, together = (bank.shares(runs, a, b, 3, paired, 100)[1] for paired in (False, True))
        assert (together < apart) is saves


def test_losses_are_kept_to_a_fiftieth_of_a_nat():
    losses = np.array([0.0, 12.345, 640.0])
    assert bank.packed(losses) / bank.STEPS_A_NAT == pytest.approx(losses, abs=0.0101)
