"""200 planted edits are named, and 50 honest runs of all systems and methods pass the audit."""

import random
import shutil

import pytest
from systems import DROPS, METHODS, REFUSED, build_systems
from test_audit import KINDS, MORE, plant, without_seal

from reports.audit import audit_run
from reports.folder import load_run

pytestmark = pytest.mark.usefixtures("one_thread")
EDITS, RUNS = 200, 50


def test_fifty_honest_runs_pass_and_two_hundred_edits_are_named(tmp_path):
    draw = random.Random(0)
    systems = build_systems(tmp_path)
    cells = [
        (name, method)
        for name in systems
        for method in METHODS
        if (name, method) not in REFUSED and method != "RHO-loss"
    ]
    draw.shuffle(cells)
    honest = {}
    for number, (name, method) in enumerate(cells[:RUNS]):
        words = [*METHODS[method], *(DROPS.get(name, []) if method == "R-Drop" else [])]
        if name == "glue":
            words.append("--val_frac=0.3")
        try:
            folder = systems[name].train(tmp_path / f"runs/{number}", *words, f"--seed={number}")
        except ValueError:  # a method that this system refuses
            continue
        audit = audit_run(load_run(folder))
        assert not audit.problems, (name, method, audit.problems)
        honest[name, method] = folder
    assert len(honest) >= 0.8 * RUNS

    runs = {name: system.train(tmp_path / "long" / name, *MORE) for name, system in systems.items()}
    others = {
        name: system.train(tmp_path / "other" / name, *MORE, "--seed=5")
        for name, system in systems.items()
    }
    missed = []
    for number in range(EDITS):
        kind = KINDS[number % len(KINDS)]
        name = draw.choice(["preference", "gpt2"] if kind in ("figure", "interval") else [*runs])
        if kind == "split" and name in ("glue", "bert"):
            continue
        copy = tmp_path / "copy"
        shutil.copytree(runs[name], copy)
        words = plant(kind, copy, others[name], draw)
        if number % 2:
            without_seal(copy)
        problems = audit_run(load_run(copy)).problems
        if not any(word in problem for word in words for problem in problems):
            missed.append((name, kind, words, problems))
        shutil.rmtree(copy)
    assert not missed, missed
