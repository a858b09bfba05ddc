"""run_6_light.py on two processes, beside run 2 (by hand, three minutes).

python -m pytest -x tests/long/test_light_processes.py
"""

import json
import sys

import pytest
from conftest import PROJECT, environment

from benchmarks import lightning_twin
from benchmarks.lightning_twin import LIGHT, OURS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def words(tiny_bert, pair_csv) -> list[str]:
    return [
        *(f"--model={tiny_bert}", f"--data={pair_csv}", "--max_length=64", "--epochs=2"),
        *("--lr=1e-3", "--head_lr=1e-2", "--dropout=0", "--page=false"),
    ]


def test_the_command_of_the_page_finishes(words, tmp_path):
    import subprocess

    command = [sys.executable, f"{LIGHT}.py", *words, "--epochs", "3", "--batch", "32"]
    command += ["--devices", "2", "--strategy", "ddp", "--out", str(tmp_path / "run")]
    subprocess.run(command, cwd=PROJECT, env=environment(), check=True, timeout=300)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "finished" and record["world_size"] == 2
    assert (tmp_path / "run/test/metrics/predictions.csv").exists()


def test_two_processes_repeat_batches_after_a_stop_and_ours_do_not(words, tmp_path):
    light = lightning_twin.stop_and_continue(LIGHT, words, tmp_path / "light", 2, processes=2)
    assert not light["same_losses"] and light["first"] == 1
    one = lightning_twin.fewer_processes(words, tmp_path / "light", tmp_path / "one", 2)
    assert not one["same_rows"]
    ours = lightning_twin.stop_and_continue(OURS, words, tmp_path / "ours", 2, processes=2)
    assert ours["same_losses"] and ours["same_predictions"]


def test_between_epochs_only_the_distributed_order_is_right(words, tmp_path):
    said = lightning_twin.second_epoch(words, tmp_path)
    assert '"1 process": "the first epoch\'s again"' in said
    assert '"2 processes": "the second epoch\'s"' in said
