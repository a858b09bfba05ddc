"""One config gives one result: on 1, 2 or 3 processes, with loader workers, on two machines."""

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, environment, run_script

SCRIPT = "run_2_appendprompt.py"


@pytest.fixture(scope="module")
def lively_bert(tiny_bert, tmp_path_factory) -> Path:
    """tiny_bert with weights ten times as large, so that its first token depends on the text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "lively_bert"
    model = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    with torch.no_grad():
        for matrix in (p for p in model.parameters() if p.ndim == 2):
            matrix *= 10
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(lively_bert, pair_csv, cache_folder) -> list[str]:
    """8 steps with dropout. 156 rows: seven batches of two micro-batches, then one of 2 rows,
    in which all ranks but one are idle."""
    return [
        *("--model", str(lively_bert), "--data", str(pair_csv), "--max_length", "64"),
        *("--batch", "22", "--micro_batch", "11", "--epochs", "1", "--eval_every", "4"),
        *("--lr", "1e-3", "--head_lr", "1e-2"),
    ]


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory) -> Path:
    """The run on one process, without torchrun."""
    folder = tmp_path_factory.mktemp("worlds") / "alone"
    run_script(SCRIPT, *settings, "--out", str(folder))
    return folder


def training_lines(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train_loss" in line]


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "test/metrics/predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_runs(folder: Path, reference: Path) -> None:
    """Equal but for the order of summation."""
    ours, theirs = training_lines(folder), training_lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)
    for line, other in zip(ours, theirs, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4), line["step"]
        assert (line["examples"], line["tokens"]) == (other["examples"], other["tokens"])
    rows, others = predictions(folder), predictions(reference)
    assert [row["id"] for row in rows] == [row["id"] for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in ("p_A", "p_B", "p_tie"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-3)


def test_every_test_row_is_predicted_once(alone):
    ids = [row["id"] for row in predictions(alone)]
    metrics = json.loads((alone / "test/metrics/metrics.json").read_text())
    assert len(ids) == len(set(ids)) == metrics["n"]


def test_the_run_learns_something_so_that_equality_means_something(alone):
    probabilities = [float(row["p_A"]) for row in predictions(alone)]
    assert max(probabilities) - min(probabilities) > 0.05
    assert len({line["train_loss"] for line in training_lines(alone)}) == 8


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["in process", "2 workers"])
def test_two_processes_equal_one(alone, settings, tmp_path, more):
    run_script(SCRIPT, *settings, *more, "--out", str(tmp_path), processes=2)
    assert json.loads((tmp_path / "run.json").read_text())["world_size"] == 2
    assert_equal_runs(tmp_path, alone)


def test_three_processes_for_two_micro_batches_equal_one_and_say_that_one_idles(
    alone, settings, tmp_path
):
    done = run_script(SCRIPT, *settings, "--out", str(tmp_path), processes=3)
    assert "2 micro-batches a step for 3 processes: 1 will idle" in done.stdout
    assert_equal_runs(tmp_path, alone)


def test_no_thread_of_the_process_group_outlives_it():
    """One that does aborts the process now and then, after the run has finished (exit 1)."""
    code = """
import core, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])  # imports torch._dynamo
dist.destroy_process_group()
print([path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")])
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=PROJECT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "gloo" not in done.stdout, done.stdout + done.stderr


def test_two_machines_equal_one(alone, settings, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=ablate-test"),
        *(str(PROJECT / SCRIPT), *settings, "--out", str(tmp_path / "run")),
    ]
    logs = [tmp_path / "agent_0.txt", tmp_path / "agent_1.txt"]
    agents = []
    try:
        for log in logs:
            with open(log, "w") as file:
                agents.append(subprocess.Popen(agent, env=environment(), stdout=file, stderr=file))
        codes = [each.wait(timeout=180) for each in agents]
    finally:
        for each in agents:
            each.terminate()  # its workers end with it
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    assert_equal_runs(tmp_path / "run", alone)
