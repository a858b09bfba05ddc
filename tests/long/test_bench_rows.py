"""Comparisons of bench.py as commands: own processes, torchrun, every file that it writes."""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT, environment


@pytest.mark.parametrize("name", ["preference", "processes", "frozen", "tokenising"])
def test_a_quick_comparison_is_measured_and_shown(name, tiny_bert, pair_csv, tmp_path):
    names = {"output": "bench.json", "markdown": "bench.md", "picture": "bench.png"}
    files = {kind: tmp_path / file for kind, file in names.items()}
    words = [name, "--quick", "--threads=1", f"--model={tiny_bert}", f"--data={pair_csv}"]
    words += [f"--{kind}={path}" for kind, path in files.items()]
    command = [sys.executable, str(PROJECT / "bench.py"), *words]
    done = subprocess.run(
        command, env=environment(ABLATE_CACHE=str(tmp_path)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "in 1 pairs" in done.stdout and "VOID" not in done.stdout
    (measured,) = json.loads(files["output"].read_text()).values()
    assert len(measured["lines"]) == 1 + (name == "frozen")
    assert f"`python bench.py {name} --quick" in files["markdown"].read_text()
    assert files["picture"].stat().st_size > 1000
