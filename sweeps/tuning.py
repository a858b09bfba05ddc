"""Tuning: every arm tries the same values once, and runs its seeds with the best of them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

import console
from files import read_json, write_text
from sweeps.ended import has_diverged
from sweeps.plan import Plan, read_yaml, refuse
from sweeps.running import Runner

LOWER_IS_BETTER = re.compile("loss|perplexity|nats|bits")


def validation_figure(folder: Path, name: str) -> float:
    """A run's val_loss or another figure, of the weights that it is tested with: at the end with
    test_with: final, else at the lowest val_loss. NaN when no evaluation was finite."""
    lines = (folder / "train/metrics/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [line for line in map(json.loads, lines) if line.get("val_loss") is not None]
    if not evaluations:
        return math.nan
    tested_with = read_yaml(folder / "config.yaml").get("test_with")
    line = (
        evaluations[-1]
        if tested_with == "final"
        else min(evaluations, key=lambda line: line["val_loss"])
    )
    if name not in line:
        raise refuse(f"tune_by {name}: the runs have {', '.join(n for n in line if n != 'step')}")
    return line[name]


def tune(plan: Plan, runner: Runner) -> dict[str, dict[str, Any]]:
    """Every arm tries the same values; returns what each arm then runs with, by label.

    A value with which training diverges has lost. An arm with a trial that failed for another
    reason is left out: with fewer trials than the others it would not be compared fairly.
    """
    if not any(arm.tune for arm in plan.arms):
        return {arm.label: {} for arm in plan.arms}
    later = sum(len(arm.seeds) for arm in plan.arms)
    runner.run([run for arm in plan.arms for run in plan.trials(arm).values()], later)
    chosen: dict[str, dict[str, Any]] = {}
    record: dict[str, dict] = {}
    sign = 1 if LOWER_IS_BETTER.search(plan.tune_by) else -1
    for arm in plan.arms if not runner.stopping else []:
        figures: dict[str, float] = {}
        for label, run in plan.trials(arm).items():
            if has_diverged(read_json(run.folder / "run.json")):
                figures[label] = math.nan
            elif run.name not in runner.failed:
                figures[label] = validation_figure(run.folder, plan.tune_by)
        finite = {label: value for label, value in figures.items() if math.isfinite(value)}
        if len(figures) < len(plan.trials(arm)) or not finite:
            why = "all its trials diverged" if figures and not finite else "tuning chose nothing"
            runner.failed[arm.label] = f"its seeds were not run: {why}"
            continue
        best = min(finite, key=lambda label: sign * finite[label])
        chosen[arm.label] = {name: plan.trials(arm)[best].settings[name] for name in arm.tune}
        record[arm.label] = {"chosen": chosen[arm.label], plan.tune_by: figures}
        tried = ", ".join(f"{label} {value:.4f}" for label, value in figures.items())
        word = "lowest" if sign > 0 else "highest"
        console.say(f"tuned {arm.label}: {best}, the {word} {plan.tune_by} of {tried}")
    if record:
        # the same by each process of the sweep
        write_text(plan.out / "tuned.yaml", yaml.safe_dump(record, sort_keys=False), shared=True)
    return chosen
