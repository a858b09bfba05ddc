"""sweep.py --noise with real trainings, from the command line to the report."""

import sys

import forked
import pytest
import yaml
from conftest import SCRATCH, environment
from systems import build_systems

import sweep


def test_a_sweep_trains_the_design_and_reports_it(tmp_path, monkeypatch, capfd):
    system = build_systems(tmp_path / "systems")["preference"]
    config = tmp_path / "one.yaml"
    settings = dict(word.removeprefix("--").split("=", 1) for word in system.words)
    config.write_text(yaml.safe_dump({k: yaml.safe_load(v) for k, v in settings.items()}))
    monkeypatch.setattr(sys, "executable", forked.variables(SCRATCH)["PYTHON_EXEC"])
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "noise"
    words = [f"{system.script}.py", f"--config={config}", f"--out={out}"]
    assert sweep.main([*words, "--noise", "seed_init=2", "seed_order=2"]) == 0
    said = capfd.readouterr().out
    assert "4 runs (2 start × 2 order" in said, said
    assert yaml.safe_load((out / "sweep.yaml").read_text())["noise"] == {
        "seed_init": 2,
        "seed_order": 2,
    }
    with pytest.raises(SystemExit, match="one experiment"):
        sweep.main([*words, "--noise", "--grid", "lr=1,2"])
