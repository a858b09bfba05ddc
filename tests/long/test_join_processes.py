"""Micro-batches that are computed together, on one, two and four processes."""

import forked
import pytest
from conftest import environment
from systems import build_systems
from test_join import lines_of


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_the_losses_of_one(processes, cache_folder, tmp_path):
    system = build_systems(tmp_path)["headlines"]
    words = ["--epochs=1", "--micro_batch=2", "--join_tokens=100000"]
    alone = lines_of(system.train(tmp_path / "alone", *words))
    command = [f"{system.script}.py", *system.words, *words, f"--out={tmp_path / 'together'}"]
    code, _, errors = forked.run_ranks(command, environment(), processes, tmp_path / "log", 300)
    assert code == 0, errors[-2000:]
    for one, other in zip(lines_of(tmp_path / "together"), alone, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
