"""The command on the first page, letter for letter, on what a hub's cache holds. torchrun starts
copies (forked.py); tests/long/test_owners_processes.py has it start interpreters."""

import csv
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from conftest import PROJECT, SCRATCH, WORDS
from hub_models import build_hub_model, into_datasets_cache, into_hub_cache

from experiments import preference
from models import pretrained

COMMAND = "torchrun --nproc_per_node=4 run_5_models.py --model electra"


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory, pair_csv) -> Path:
    """A HF_HOME with a small ELECTRA and a few comparisons under their published names."""
    home = tmp_path_factory.mktemp("hub")
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    texts += [" ".join(str(number) for number in range(100))]
    model = build_hub_model("electra", home / "electra", texts, layers=1)
    into_hub_cache(model, pretrained.REGISTRY["electra"], home)
    with open(pair_csv, newline="") as file:
        rows = list(csv.reader(file))[:121]
    with open(home / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    into_datasets_cache(home / "rows.csv", preference.HUB_DATA, home)
    return home


@pytest.fixture
def copies(hub_cache) -> Iterator[dict[str, str]]:
    """What has torchrun start copies, of a process that imported with this hub's cache."""
    name = f"ablate-tests-{os.getpid()}-hub"
    server = forked.start(name, os.getpid(), **of_hub(hub_cache))
    yield {**forked.variables(SCRATCH), forked.ADDRESS: name}
    server.kill()
    server.wait()


def of_hub(home: Path) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_four_processes_train_electra_to_its_test_metrics(hub_cache, copies, tmp_path):
    run(hub_cache, tmp_path, copies)


def run(hub_cache: Path, tmp_path: Path, more: dict[str, str]) -> None:
    assert COMMAND in (PROJECT / "run_5_models.py").read_text()
    assert COMMAND in (PROJECT / "README.md").read_text()
    (tmp_path / "run_5_models.py").symlink_to(PROJECT / "run_5_models.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **of_hub(hub_cache),
        **more,
        **{"ABLATE_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""},
        "PET_MASTER_PORT": str(port),  # torchrun's own, for others may use 29500
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)  # they would lead elsewhere
    done = subprocess.run(
        shlex.split(COMMAND),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 processes (gloo)" in done.stdout
    (out,) = (tmp_path / "results/electra").iterdir()
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("finished", 4)
    metrics = json.loads((out / "test/metrics/metrics.json").read_text())
    assert metrics["n"] > 5 and metrics["log_loss"] > 0 and "accuracy_ci95" in metrics
    assert (out / "train/weights/best/model.safetensors").is_file()
