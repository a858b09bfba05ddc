"""train_headlines.py --compile: titles of every length through layers compiled once."""

import json
from pathlib import Path

import pytest
import torch

import train_headlines
from settings import parse_settings


def losses(folder: Path, r_drop: float, *words: str) -> list[float]:
    settings = ["--data=reviews", "--limit=600", "--vocab_size=512", "--n_layer=2", "--n_head=2"]
    settings += [
        "--n_embd=48",
        "--batch=32",
        "--epochs=1",
        "--dropout=0.1",
        f"--r_drop={r_drop}",
        "--lr=1e-3",
    ]
    settings += ["--page=false", "--machine_log=false", f"--out={folder}", *words]
    config, _ = parse_settings(train_headlines.Config, settings, "train_headlines.py")
    train_headlines.main(config, True)
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line["train_loss"] for line in lines if "train_loss" in line]


@pytest.mark.parametrize("r_drop", [0, 1])
def test_compiled_layers_give_the_same_losses_and_are_not_compiled_anew(tmp_path, r_drop):
    eager = losses(tmp_path / "eager", r_drop)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = losses(tmp_path / "compiled", r_drop, "--compile")
    # also with dropout: compiled or not, the masks are the same
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), atol=2e-3, rtol=1e-3)
    # the layer for training and not, the losses, and one more where two sizes happen to be equal
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert len(eager) == 17
