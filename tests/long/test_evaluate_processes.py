"""`evaluate` on two processes says what it says on one, for each kind of run."""

import json

import numpy as np
import pytest
from conftest import run_script
from test_evaluate import MORE, folder, runs, systems, test_rows  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca"])
def test_two_processes_say_what_one_says(name, systems, runs, tmp_path):  # noqa: F811
    run = runs(name)
    data = test_rows(name, systems[name], run, tmp_path)
    found = []
    for processes in (1, 2):
        words = [str(run), f"--data={data}", f"--output={tmp_path / str(processes)}"]
        script = f"{systems[name].script}.py"
        run_script(script, "evaluate", *words, "--device=cpu", processes=processes)
        out = tmp_path / str(processes)
        found.append(json.loads((out / "test/metrics/metrics.json").read_text()))
        assert json.loads((out / "run.json").read_text())["world_size"] == processes
    one, two = found
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, int | float | list):
            np.testing.assert_allclose(two[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
        else:
            assert two[key] == value
