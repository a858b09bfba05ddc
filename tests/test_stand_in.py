"""Every script on a GPU that is not there (stand_in.py): nothing on two devices, and no waiting."""

import json
import os
from pathlib import Path

import forked
import pytest

FEW = ["bert", "--epochs=0.15"]
RUNS = {
    **{name: [name] for name in ("preference", "glue", "gpt2", "headlines")},
    "alpaca": ["alpaca", "--join_tokens=16384"],
    "bert": [*FEW, "--label_smoothing=0.1", "--optimizer=muon", "--matrix_lr=2e-3"],
    "fp16": ["gpt2 lm", "--precision=fp16"],
    "selection": [*FEW, "--selection.name=selective_backprop"],
    "sophiag": ["alpaca", "--optimizer=sophiag", "--sophia.every=2", "--sophia.rows=6"],
    "two passes": ["headlines", "--r_drop=2", "--dropout=0.1"],
}
# Sophia's estimate, at every second step, is summed as a step is and looked at for overflow
MORE = {"sophiag": 2}
JOINED = {"alpaca"}  # all micro-batches of a step in one forward pass
SCORING = "with_rows_that_fit"  # batch selection has to read what it ranks by


def observe(
    folder: Path, runs: dict[str, list[str]], seconds: int = 300, **environment: str
) -> dict[str, dict]:
    """What stand_in saw of each run."""
    (folder / "runs.json").write_text(json.dumps(runs))
    words = ["tests/stand_in.py", str(folder / "seen.json"), str(folder), str(folder / "runs.json")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    with open(folder / "log", "w") as log:
        code = forked.Process(words, env, log, log).wait(timeout=seconds)
    said = (folder / "log").read_text()
    assert code == 0, said[-2000:]
    return json.loads((folder / "seen.json").read_text()) | {"said": said}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    return observe(tmp_path_factory.mktemp("stand_in"), RUNS)


@pytest.fixture(scope="module")
def seen_on_xpu(tmp_path_factory) -> dict[str, dict]:
    runs = {"preference": ["preference"], "fp16": ["headlines", "--precision=fp16"]}
    return observe(tmp_path_factory.mktemp("stand_in_xpu"), runs, STAND_IN="xpu")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_evaluates_and_ends(seen, name):
    assert not seen[name]["error"], seen[name]["error"]
    assert len(seen[name]["steps"]) >= 2 and seen[name]["evaluations"] >= 2


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_for_its_two_vectors_and_a_micro_batch_for_nothing(seen, name):
    for waits in seen[name]["steps"]:
        scoring = [number for place, number in waits.items() if SCORING in place]
        assert sum(waits.values()) - sum(scoring) <= 2 + MORE.get(name, 0), waits
        # the ranked losses of each SCORING_ROWS rows, and what all ranks say to them
        assert len(scoring) == (2 if name == "selection" else 0)


@pytest.mark.parametrize("name", RUNS)
def test_batches_are_pinned_and_moved_while_the_one_before_computes(seen, name):
    steps = len(seen[name]["steps"])
    passes = steps if name in JOINED else 2 * steps - 1  # the last batch is one micro-batch
    assert passes <= seen[name]["streams"] <= 2 * passes + 2  # Sophia's estimates have theirs
    # single numbers and places in small vectors, of steps and of evaluations
    assert seen[name]["unpinned"] <= 10 * steps, seen[name]["unpinned"]


def test_a_run_says_what_is_left_of_the_memory_where_a_step_takes_several_passes(seen):
    """Once a run, and not of one whose micro-batches are all computed together."""
    notes = [line for line in seen["said"].splitlines() if "GB used" in line]
    assert 0 < len(notes) <= len(RUNS) - len(JOINED)
    assert all("4.3 of 52 GB used: micro-batches of" in note for note in notes), notes


@pytest.mark.parametrize("name", ["preference", "fp16"])
def test_an_intel_gpu_without_float64_waits_as_little(seen_on_xpu, name):
    run = seen_on_xpu[name]
    assert not run["error"], run["error"]
    assert all(sum(waits.values()) <= 2 for waits in run["steps"]), run["steps"]
    assert run["streams"] >= len(run["steps"])


def test_the_stand_in_refuses_what_a_gpu_refuses(seen, seen_on_xpu):
    for refused in (seen["refused"], seen_on_xpu["refused"]):
        assert all(refused.values()), refused
    assert "fp64 is not supported" in seen_on_xpu["refused"]["float64"]
