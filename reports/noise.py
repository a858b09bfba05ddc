"""noise: how much of the spread between runs comes from each source of chance.

sweep.py … --noise; report.py noise results/sweeps/noise
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.components import Component, Components, components
from reports.arms import rows_of, settings_of
from reports.folder import RunFolder, find_runs, number
from reports.plan import plan_of
from reports.predictions import load_predictions
from settings import SEEDS, flatten

WORDS = {
    "seed_init": ("start", "the first weights"),
    "seed_order": ("order", "the order of rows"),
    "seed_masks": ("masks", "dropout and masks"),
}
LITTLE, MOST = 0.1, 0.5  # shares that an interval has to stay below, or above


@dataclass
class Noise:
    """What `report.py noise` says."""

    metric: str
    mean: float
    sizes: tuple[int, ...]
    names: list[str]
    found: Components

    def __str__(self) -> str:
        found, runs = self.found, int(np.prod(self.sizes))
        lines = [
            {
                "source": name_of(name),
                "draws": size,
                "share of the spread": f"{each.share:.2f} [{each.low:.2f}, {each.high:.2f}]",
                "standard deviation": f"{each.variance**0.5:.4g}",
            }
            for name, size, each in zip(self.names, self.sizes, found.sources, strict=True)
        ]
        design = " × ".join(
            f"{size} {name_of(name)}" for name, size in zip(self.names, self.sizes, strict=True)
        )
        head = (
            f"{self.metric} of {runs} runs ({design}, each within the one before): mean "
            f"{self.mean:.4f}; one run with new seeds has a standard deviation of "
            f"{found.deviation:.4g} [{found.low:.4g}, {found.high:.4g}]"
        )
        return "\n".join(
            [head, "", tabulate(lines, headers="keys", disable_numparse=True), "", *self.advice()]
        )

    def advice(self) -> list[str]:
        """What to draw anew in each run, and what makes no difference; in words."""
        said = []
        for name, each in zip(self.names, self.found.sources, strict=True):
            if each.low > MOST:
                said.append(
                    f"average over {name_of(name)}: {long_name(name)} makes at least "
                    f"{each.low:.0%} of the spread"
                )
            elif each.high < LITTLE:
                said.append(
                    f"another {name_of(name)} adds nothing: {long_name(name)} makes at most "
                    f"{each.high:.0%} of the spread"
                )
        unknown = [
            name_of(name)
            for name, each in zip(self.names, self.found.sources, strict=True)
            if not _is_told(each)
        ]
        if unknown:
            said.append(
                f"not told by so few runs: {', '.join(unknown)} (an interval below {LITTLE:.0%} or "
                f"above {MOST:.0%} would tell); more draws of the first sources narrow all of them"
            )
        return said

    def as_json(self) -> dict[str, Any]:
        found = self.found
        return {
            "schema_version": 1,
            **{"metric": self.metric, "mean": self.mean, "runs": int(np.prod(self.sizes))},
            "standard_deviation": found.deviation,
            "standard_deviation_ci95": [found.low, found.high],
            "sources": [
                {
                    **{"name": name, "draws": size, "share": each.share},
                    **{"share_ci95": [each.low, each.high], "variance": each.variance},
                    "degrees_of_freedom": each.freedom,
                }
                for name, size, each in zip(self.names, self.sizes, found.sources, strict=True)
            ],
            "advice": self.advice(),
        }


def _is_told(each: Component) -> bool:
    return each.low > MOST or each.high < LITTLE


def name_of(name: str) -> str:
    return WORDS.get(name, (name,))[0]


def long_name(name: str) -> str:
    return WORDS.get(name, ("", name))[1]


def build_noise(path: str, metric: str | None = None) -> Noise:
    """ValueError where the runs below `path` are no whole nested design."""
    runs = find_runs(path)
    declared = plan_of(runs).content.get("noise")
    names = list(declared) if isinstance(declared, dict) else _varied(runs)
    if not names:
        raise ValueError(f"{path}: no seeds of single sources differ; sweep.py … --noise makes it")
    _require_one_setting(path, runs, names)
    metric = metric or _primary(runs)
    cells: dict[tuple, float] = {}
    places: dict[tuple, RunFolder] = {}
    for run in runs:
        settings = flatten(run.config)
        value = number(run.metrics.get(metric))
        if value is None:
            there = ", ".join(n for n, v in run.metrics.items() if number(v) is not None)
            why = f"it has {there}" if there else f"{run.status}, {run.exit_reason}"
            raise ValueError(f"{run.path} has no {metric}: {why}")
        cell = tuple(settings.get(name) for name in names)
        if (other := places.setdefault(cell, run)) is not run:
            raise ValueError(
                f"{other.path} and {run.path} have the same seeds of all sources: which one counts?"
            )
        cells[cell] = float(value)
    sizes = _sizes(list(cells), names)
    order = sorted(cells, key=lambda cell: [str(each).zfill(12) for each in cell])
    values = np.array([cells[cell] for cell in order]).reshape(sizes)
    try:
        found = components(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Noise(metric, float(values.mean()), sizes, names, found)


def _require_one_setting(path: str, runs: Sequence[RunFolder], names: Sequence[str]) -> None:
    """ValueError where something else than these seeds would be taken for noise."""
    settings = {
        repr(sorted((n, v) for n, v in settings_of(run).items() if n not in names)) for run in runs
    }
    if len(settings) > 1:
        raise ValueError(
            f"{path}: these are runs of {len(settings)} settings; what settings do is no noise: "
            "give the folder of one design"
        )
    if len({rows_of(run).get("data_fingerprint", "") for run in runs} - {""}) > 1:
        raise ValueError(f"{path}: the data changed between these runs, which is no noise")


def _varied(runs: Sequence[RunFolder]) -> list[str]:
    settings = [flatten(run.config) for run in runs]
    return [name for name in SEEDS if len({str(each.get(name)) for each in settings}) > 1]


def _primary(runs: Sequence[RunFolder]) -> str:
    declared = {run.metrics.get("primary") for run in runs} - {None}
    if len(declared) == 1:
        return str(declared.pop())
    rows = load_predictions(runs[0])
    if rows is None:
        raise ValueError(f"{runs[0].path}: no primary metric is known; name one with --metric")
    return rows.primary


def _sizes(cells: Sequence[tuple], names: Sequence[str]) -> tuple[int, ...]:
    """Draws at each source; ValueError where units differ in how many they have."""
    sizes = []
    for depth in range(len(names)):
        units: dict[tuple, set] = {}
        for cell in cells:
            units.setdefault(cell[:depth], set()).add(cell[depth])
        counts = {len(draws) for draws in units.values()}
        if len(counts) > 1:
            raise ValueError(
                f"the design is not whole: {names[depth]} has {min(counts)} to {max(counts)} draws "
                "in one unit; the sweep's command makes what is missing"
            )
        sizes.append(counts.pop())
    return tuple(sizes)
