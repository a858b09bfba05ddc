"""Each config trains two steps: those beside which the pushed tests have another one with the same
settings. A minute on two cores."""

import pytest
import test_alpaca_sft
import test_arms
from conftest import one_of_each
from test_alpaca_sft import models, rows
from test_arms import gpt2

__all__ = ["gpt2", "models", "rows"]
pytestmark = pytest.mark.usefixtures("one_thread")


def others(configs: list) -> list:
    pushed = one_of_each(configs)
    return [path for path in configs if path not in pushed]


@pytest.mark.parametrize("path,script", test_arms.arms(others(test_arms.CONFIGS)))
def test_arm_trains_two_steps(path, script, tiny, pair_csv, tmp_path):
    test_arms.test_arm_trains_two_steps(path, script, tiny, pair_csv, tmp_path)


@pytest.mark.parametrize("path", others(test_arms.GPT2_CONFIGS), ids=lambda path: path.stem)
def test_gpt2_arm_trains_two_steps(path, gpt2, few_reviews, tmp_path, monkeypatch):
    test_arms.test_gpt2_arm_trains_two_steps(path, gpt2, few_reviews, tmp_path, monkeypatch)


@pytest.mark.parametrize("path", others(test_alpaca_sft.CONFIGS), ids=lambda path: path.stem)
def test_alpaca_arm_trains_two_steps(path, models, rows, tmp_path):
    test_alpaca_sft.test_arm_trains_two_steps(path, models, rows, tmp_path)
