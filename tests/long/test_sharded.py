"""A sharded run of the whole model, stopped and continued; tests/ has the one with adapters.

python -m pytest -x tests/long/test_sharded.py
"""

import pytest
import torch
from conftest import run_script
from test_alpaca_sft import QUIET, assert_same_run, sharded, words_of
from tiny_instructions import build_models, write_rows

WAYS = {
    "fp32": [],
    "bf16": ["--precision=bf16"],
    "bf16, checkpointed, clipped": ["--precision=bf16", "--checkpointing", "--max_grad_norm=0.1"],
    "each micro-batch": ["--shard_reduce=micro_batch"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_run_equals_one_process_and_resumes(one_thread, tmp_path, way):
    """FSDP2, two processes. 51 rows in eights: the last step has one micro-batch for two ranks.
    Stopped and continued it ends bit for bit the same."""
    models, rows = build_models(tmp_path / "models"), write_rows(tmp_path / "rows.json")
    words = [*words_of(models, rows, "gpt2", "--sample_tokens=2"), *QUIET, *WAYS[way]]
    alone = [word for word in words if "shard_reduce" not in word]
    run_script("alpaca_sft.py", *alone, f"--out={tmp_path / 'one'}")
    whole = sharded(tmp_path / "whole", *words)
    far = 3e-2 if "bf16" in way else 1e-3
    assert_same_run(whole, tmp_path / "one", "model.safetensors", far)
    cut = sharded(tmp_path / "cut", *words, "--stop_after=4")
    sharded(cut, *words)
    for file in ("test/metrics/predictions.csv", "train/weights/final/model.safetensors"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes()
    step = "train/weights/step_00000004/state.pt"  # as one process writes it
    ours, theirs = (torch.load(p / step, weights_only=True) for p in (cut, tmp_path / "one"))
    shapes = [
        [{k: v.shape for k, v in part.items()} for part in saved["optimizer"]["state"].values()]
        for saved in (ours, theirs)
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 10
