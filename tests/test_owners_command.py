"""The command on the first page, letter for letter, on what a hub's cache holds."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, WORDS
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
    model = build_hub_model("electra", home / "electra", texts)
    into_hub_cache(model, pretrained.REGISTRY["electra"], home)
    into_datasets_cache(pair_csv, preference.HUB_DATA, home)
    return home


def test_four_processes_train_electra_to_its_test_metrics(hub_cache, tmp_path):
    assert COMMAND in (PROJECT / "run_5_models.py").read_text()
    assert COMMAND in (PROJECT / "README.md").read_text()
    (tmp_path / "run_5_models.py").symlink_to(PROJECT / "run_5_models.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **{"HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
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
