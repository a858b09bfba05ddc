"""Tuning: every arm tries the same values once, and runs its seeds with the best of them."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import console
from files import read_json, write_text
from reports.folder import number
from reports.predictions import direction
from sweeps.ended import has_diverged
from sweeps.plan import Arm, Plan, read_yaml, refuse
from sweeps.running import Runner


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    """Those of a run whose val_loss is finite."""
    lines = (folder / "train/metrics/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if number(line.get("val_loss")) is not None]


def validation_figure(folder: Path, name: str) -> float:
    """A run's val_loss or another figure, of the weights that it is tested with: at the end with
    test_with: final, else at the lowest val_loss. NaN where there is none: what answers alike has
    no correlation."""
    if not (evaluations := evaluations_of(folder)):
        return math.nan
    tested_with = read_yaml(folder / "config.yaml").get("test_with")
    line = (
        evaluations[-1]
        if tested_with == "final"
        else min(evaluations, key=lambda line: line["val_loss"])
    )
    value = number(line.get(name))
    return math.nan if value is None else value


class Figures(NamedTuple):
    """Of an arm's trials that came to an end: the figure of each, NaN where it has none, how many
    diverged, and the names of all that was measured."""

    values: dict[str, float]
    diverged: int
    names: list[str]


def _figures(plan: Plan, arm: Arm, runner: Runner) -> Figures:
    values: dict[str, float] = {}
    names, diverged = [], 0
    for label, run in plan.trials(arm).items():
        if has_diverged(read_json(run.folder / "run.json")):
            values[label] = math.nan
            diverged += 1
        elif run.name not in runner.failed:
            values[label] = validation_figure(run.folder, plan.tune_by)
            names += [name for line in evaluations_of(run.folder) for name in line]
    return Figures(values, diverged, names)


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
    sign = -direction(plan.tune_by.removeprefix("val_"))
    arms = plan.arms if not runner.stopping else []
    found = {arm.label: _figures(plan, arm, runner) for arm in arms}
    names = [name for figures in found.values() for name in figures.names]
    if names and plan.tune_by not in names:
        there = ", ".join(name for name in dict.fromkeys(names) if name != "step")
        raise refuse(f"tune_by {plan.tune_by}: the runs have {there}")
    for arm in arms:
        figures, diverged, _ = found[arm.label]
        finite = {label: value for label, value in figures.items() if math.isfinite(value)}
        if len(figures) < len(plan.trials(arm)) or not finite:
            why = "tuning chose nothing"
            if figures and not finite:
                all_of = len(figures) == diverged
                why = "all its trials diverged" if all_of else f"no trial has a {plan.tune_by}"
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
