"""All items of the check on a CPU, and on a GPU that is not there that it computes as the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_a_cpu_passes():
    command = [sys.executable, "-m", "benchmarks.check", "--device=cpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    *lines, verdict = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not verdict["failed"], done.stdout
    left_out = {line["item"] for line in lines if line["ok"] is None}
    assert left_out <= {"out_of_memory", "waits", "speed", "compiled", "overlap"}


def test_five_experiments_compute_on_a_stand_in_what_they_compute_on_the_cpu(tmp_path):
    words = ["benchmarks/check.py", "--look=equals_cpu", "--device=cuda"]
    command = [sys.executable, "tests/stand_in.py", str(tmp_path / "seen.json"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] and max(found["apart_at_most"].values()) < 1e-4, done.stdout[-2000:]
