"""Neighbouring micro-batches in one forward pass: rounding alone changes; never with dropout."""

import json

import numpy as np
import pytest
from systems import build_systems

import core
from dealing import join_neighbours


@pytest.fixture(scope="module")
def systems(tmp_path_factory, one_thread):
    return build_systems(tmp_path_factory.mktemp("join"))


def lines_of(folder) -> list[dict]:
    log = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line for line in log if "train_loss" in line]


def test_neighbours_are_joined_up_to_the_tokens_and_keep_their_rows_and_order():
    lengths = np.array([9, 8, 7, 6, 5, 4, 3, 2])
    mine = [(0, np.array([0, 1])), (2, np.array([4, 5])), (3, np.array([6, 7]))]
    [(first, both), (second, rest)] = join_neighbours(mine, lengths, 36)  # 4 rows of 9
    assert (first, both.tolist()) == (0, [0, 1, 4, 5])
    assert (second, rest.tolist()) == (3, [6, 7])
    assert [index for index, _ in join_neighbours(mine, lengths, 54)] == [0]
    assert join_neighbours(mine, lengths, 35)[0][1].tolist() == [0, 1]  # none fits, each stays
    assert len(join_neighbours(mine, lengths, 1)) == 3
    assert join_neighbours([], lengths, 100) == []


@pytest.mark.parametrize("name", ["headlines", "bert", "alpaca"])
def test_fewer_forward_passes_have_the_same_losses(name, systems, tmp_path, monkeypatch):
    passes = []
    seed = core.seed_everything
    monkeypatch.setattr(core, "seed_everything", lambda *given: (passes.append(1), seed(*given)))
    few = ["--epochs=0.3", "--micro_batch=4", *(["--dropout=0"] if name == "alpaca" else [])]
    apart = lines_of(systems[name].train(tmp_path / "apart", *few))
    alone = len(passes)
    joined = lines_of(systems[name].train(tmp_path / "joined", *few, "--join_tokens=100000"))
    assert alone >= 4 * len(apart) - 3 and len(passes) - alone == len(joined)
    for one, other in zip(joined, apart, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("gpt2 lm", [], "dropout is drawn"),  # of its configuration
        ("preference", ["--dropout=0.1"], "dropout is drawn"),
        ("headlines", ["--dropout=0.1"], "dropout is drawn"),
        ("bert", ["--layer_drop.enabled=true"], "layers are dropped"),
        ("bert", ["--selection.name=selective_backprop"], "batch selection cuts"),
    ],
)
def test_what_draws_for_each_micro_batch_is_refused(name, words, why, systems, tmp_path):
    with pytest.raises(ValueError, match=f"--join_tokens: .*{why}"):
        systems[name].train(tmp_path / "run", *words, "--join_tokens=1000")


def test_memory_that_runs_out_parts_them_before_it_halves_any(systems, tmp_path):
    """The tokens are a part of the state: a run that goes on has them."""
    loader = core.TrainLoader.__new__(core.TrainLoader)
    loader.micro_batch, loader.join_tokens, loader.position = 4, 1500, 3
    loader.config = type("Config", (), {"batch": 16})
    said = [loader.halve() for _ in range(3)]
    assert "750 tokens" in said[0] and "no tokens" in said[2]
    assert (loader.join_tokens, loader.micro_batch) == (0, 4)
    assert "micro-batches of 2" in loader.halve()
    few = ["--epochs=1", "--join_tokens=300"]
    whole = systems["headlines"].train(tmp_path / "whole", *few)
    systems["headlines"].train(tmp_path / "cut", *few, "--stop_after=2")
    cut = systems["headlines"].train(tmp_path / "cut", *few)
    weights = "train/weights/final/model.safetensors"
    assert (whole / weights).read_bytes() == (cut / weights).read_bytes()
