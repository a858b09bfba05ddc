"""Twenty kills of real processes, and one before every operation on a disk (by hand, 20 minutes).

python -m pytest -x tests/long/test_kills.py
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from test_resume import (
    assert_same_results,
    copies_before_each_operation,
    has_reached,
    is_writing,
    launch,
    record,
    train_here,
    training_steps,
)
from tiny_models import bert_config

from files import damage

STEPS = 240


@pytest.fixture(scope="module")
def settings(tiny_bert, pair_csv, cache_folder, tmp_path_factory) -> list[str]:
    """4 layers × 128, with checkpoints of 10 MB, nearly always one being written."""
    from transformers import AutoTokenizer, BertModel

    folder = tmp_path_factory.mktemp("models") / "small_bert"
    torch.manual_seed(0)
    config = bert_config(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return [
        *("--model", str(folder), "--data", str(pair_csv), "--max_length", "64"),
        *("--batch", "16", "--epochs", "24", "--save_every", "2", "--eval_every", "5"),
        *("--keep_every", "50", "--lr", "3e-4", "--swap", "augment"),
    ]


@pytest.mark.parametrize(("processes", "kills"), [(1, 8), (2, 6), (4, 6)])
def test_killed_and_continued_ends_bit_identical(settings, tmp_path, processes, kills):
    """Moments: in the start (without a step yet), between two writes, inside a write."""
    whole, folder, draw = tmp_path / "whole", tmp_path / "run", random.Random(processes)
    with launch(whole, *settings, processes=processes) as run:
        run.wait(timeout=600)
    # which loader workers there are must not matter either
    workers = ["--workers", "1"] if processes == 2 else []
    for number in range(kills):
        done = training_steps(folder)[-1] if (folder / "run.json").exists() else 0
        after = done + draw.randint(1, 2 * (STEPS - done) // (kills - number + 1))
        with launch(folder, *settings, *workers, processes=processes) as run:
            if number % 4 == 3:
                time.sleep(draw.uniform(0, 8))
            elif number % 4 == 2:
                run.wait_until(has_reached(folder, after))
                time.sleep(draw.uniform(0, 0.2))
            else:
                run.pause_while(is_writing(folder, after=after))
    assert record(folder)["status"] == "running"
    with launch(folder, *settings, *workers, processes=processes) as run:
        run.wait(timeout=600)
    assert_same_results(folder, whole)


def test_signals_at_random_moments_of_two_processes(settings, tmp_path):
    """To torchrun, to one rank alone, in evaluations and writes as they come."""
    whole, folder, draw = tmp_path / "whole", tmp_path / "run", random.Random(5)
    with launch(whole, *settings, processes=2) as run:
        run.wait(timeout=600)
    for after in (30, 80, 130, 180):
        with launch(folder, *settings, processes=2) as run:
            run.wait_until(has_reached(folder, after))
            time.sleep(draw.uniform(0, 0.3))
            if draw.random() < 0.5:
                run.process.send_signal(signal.SIGTERM)
            else:
                os.kill(run.rank(1), signal.SIGUSR1)
            run.wait(expect=None, timeout=60)
        assert record(folder)["status"] == "stopped"
    with launch(folder, *settings, processes=2) as run:
        run.wait(timeout=600)
    assert_same_results(folder, whole)


def test_killed_before_every_operation_of_a_run(settings, tmp_path):
    """From the first file on, on one process; 160 places or more."""
    torch.set_num_threads(1)
    short = [*settings, "--epochs", "1.5", "--save_every", "4"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train_here(*short, "--out", str(whole))
    copies = copies_before_each_operation(folder, short, tmp_path / "copies", range(0, STEPS))
    assert_same_results(folder, whole)
    assert len(copies) > 100
    for each in copies:
        train_here_unless_finished(short, each)
        assert_same_results(each, whole)
        assert not [path for path in (each / "train/weights").iterdir() if damage(path)]
        shutil.rmtree(each)


def train_here_unless_finished(settings: list[str], folder: Path) -> None:
    try:
        train_here(*settings, "--out", str(folder))
    except SystemExit as end:
        assert end.code == 0
