"""How often the intervals of `report.py noise` hold planted shares: nominal 95 %.

    python -m benchmarks.noise                 # docs/statistics/noise.csv, 2,000 experiments a case
    python -m benchmarks.noise --summary       # the table of docs/statistics.md

Figures are sums of normal effects of starts, orders within starts and masks within orders.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from evaluation.components import components
from files import PROJECT

TABLE = PROJECT / "docs/statistics/noise.csv"
DESIGNS = ((4, 2, 2), (4, 3, 2), (5, 3, 2), (6, 2, 2))
SHARES = (
    *((0.2, 0.5, 0.3), (0.6, 0.2, 0.2), (0.05, 0.9, 0.05), (1 / 3, 1 / 3, 1 / 3)),
    *((0.0, 0.5, 0.5), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)
SOURCES = ("start", "order", "masks")


def one_design(sizes: tuple[int, ...], shares: tuple[float, ...], repeats: int) -> dict:
    """Shares of the experiments whose intervals hold the truth, and their mean widths."""
    draw = np.random.default_rng([*sizes, *(round(100 * share) for share in shares)])
    held, width = np.zeros(len(shares) + 1), np.zeros(len(shares))
    for number in range(repeats):
        values = np.zeros(sizes)
        for level, share in enumerate(shares):
            shape = sizes[: level + 1] + (1,) * (len(sizes) - level - 1)
            values = values + np.sqrt(share) * draw.normal(size=shape)
        found = components(values, seed=number)
        pairs = zip(found.sources, shares, strict=True)
        # 1e-9: a share of 1 is cut there, but for rounding
        held += [
            *(each.low - 1e-9 <= share <= each.high + 1e-9 for each, share in pairs),
            found.low <= 1 <= found.high,
        ]
        width += [each.high - each.low for each in found.sources]
    line: dict = {"design": "x".join(map(str, sizes)), "repeats": repeats}
    for k, name in enumerate(SOURCES):
        line |= {f"{name}_share": f"{shares[k]:.3f}", f"{name}_held": f"{held[k] / repeats:.4f}"}
        line[f"{name}_width"] = f"{width[k] / repeats:.3f}"
    return line | {"deviation_held": f"{held[-1] / repeats:.4f}"}


def summary() -> str:
    with open(TABLE, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for inside in (True, False):
        for design in dict.fromkeys(line["design"] for line in lines):
            held = [
                float(line[f"{name}_held"])
                for line in lines
                for name in SOURCES
                if line["design"] == design
                and (0 < float(line[f"{name}_share"]) < 1) == inside
            ]  # fmt: skip
            rows.append(
                {
                    "starts × orders × masks": design.replace("x", " × "),
                    "true share": "between 0 and 1" if inside else "0 or 1",
                    "held by the interval": f"{min(held):.3f} to {max(held):.3f}",
                }
            )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="experiments a case")
    parser.add_argument("--summary", action="store_true", help="the table of what was measured")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    if arguments.summary:
        print(summary())
        return
    lines = []
    for sizes in DESIGNS:
        for shares in SHARES:
            lines.append(one_design(sizes, shares, arguments.repeats))
            print(lines[-1], file=sys.stderr, flush=True)
    with open(arguments.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
