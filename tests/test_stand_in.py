"""Every script on a GPU that is not there (stand_in.py): nothing on two devices, and no waiting."""

import json
import os
from pathlib import Path

import forked
import pytest

SYSTEMS = ["preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca", "bert"]
# fp16 reads its loss scale once more; Sophia's estimate, at every second step, is summed as a step
# is and looked at for overflow; batch selection reads the losses that it ranks by
RUNS = {
    **{name: [name] for name in SYSTEMS},
    "fp16": ["glue", "--precision=fp16"],
    "sophiag": ["gpt2 lm", "--optimizer=sophiag", "--sophia.every=2", "--sophia.rows=6"],
    "selection": ["alpaca", "--selection.name=selective_backprop", "--mask_prompt=true"],
    "two passes": ["headlines", "--r_drop=2", "--dropout=0.1", "--sequences=windows"],
    "smoothing": ["bert", "--label_smoothing=0.1", "--optimizer=muon", "--matrix_lr=2e-3"],
}
MORE = {"fp16": 1, "sophiag": 2}


def observe(folder: Path, runs: dict[str, list[str]], **environment: str) -> dict[str, dict]:
    """What stand_in saw of each run."""
    (folder / "runs.json").write_text(json.dumps(runs))
    words = ["tests/stand_in.py", str(folder / "seen.json"), str(folder), str(folder / "runs.json")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    with open(folder / "log", "w") as log:
        code = forked.Process(words, env, log, log).wait(timeout=300)
    assert code == 0, (folder / "log").read_text()[-2000:]
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    return observe(tmp_path_factory.mktemp("stand_in"), RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_evaluates_and_ends(seen, name):
    assert not seen[name]["error"], seen[name]["error"]
    assert len(seen[name]["steps"]) >= 2 and seen[name]["evaluations"] >= 2


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_for_its_two_vectors_and_a_micro_batch_for_nothing(seen, name):
    first, *steps = seen[name]["steps"]  # the first one makes moments
    for waits in steps:
        scoring = sum(count for place, count in waits.items() if "score" in place)
        assert sum(waits.values()) - scoring <= 2 + MORE.get(name, 0), waits
        assert (scoring > 0) == (name == "selection")


@pytest.mark.parametrize("name", RUNS)
def test_batches_are_pinned_and_moved_while_the_one_before_computes(seen, name):
    assert seen[name]["streams"] >= len(seen[name]["steps"])
    assert seen[name]["unpinned"] <= 60, seen[name]["unpinned"]
