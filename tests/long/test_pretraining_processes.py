"""Every combination of methods, stopped and on two processes: a minute and a half on two cores.
tests/test_pretraining.py has three of them."""

import pytest
import test_pretraining as pushed
from test_pretraining import METHODS, corpus_file, words

__all__ = ["corpus_file", "words"]
OTHERS = [name for name in METHODS if name not in pushed.FEW]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    return pushed.train_whole(words, tmp_path_factory.mktemp("whole"), OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_every_combination_learns_and_keeps_to_its_budget(name, whole):
    pushed.test_every_combination_learns_and_keeps_to_its_budget(name, whole)


@pytest.mark.parametrize("name", OTHERS)
def test_stopped_and_continued_it_ends_bit_identical(name, words, whole, tmp_path):
    pushed.test_stopped_and_continued_it_ends_bit_identical(name, words, whole, tmp_path)


def test_two_processes_are_the_same_run_as_one(words, whole, tmp_path):
    pushed.assert_two_processes_equal_one(OTHERS, words, whole, tmp_path)
