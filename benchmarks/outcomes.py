"""How often the verdict `collapsed` errs, by simulation: docs/outcomes.md has what it printed.

    python -m benchmarks.outcomes                       # the whole table, a minute on one core
    python -m benchmarks.outcomes --draws 500 --rows 300

Each draw has new rows. Of models that know something the rate should be 2 % at most from 300 rows
on, of constant ones 95 % at least.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import numpy as np

from evaluation import outcomes

SHARES = {
    "two classes": [0.5, 0.5],
    "two, 80 : 20": [0.8, 0.2],
    "two, 95 : 5": [0.95, 0.05],
    "three classes": [0.36, 0.36, 0.28],
    "three, skewed": [0.7, 0.2, 0.1],
    "ten classes": [0.1] * 10,
}
ROWS = (100, 300, 1000, 3000)
Model = Callable[[np.random.Generator, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def varied(draw: np.random.Generator, shares: np.ndarray, n: int, spread: float) -> np.ndarray:
    """(n, k) answers around the shares, whose logits vary from row to row by this much."""
    return softmax(np.log(shares) + spread * draw.normal(size=(n, len(shares))))


def dealt(draw: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """(n,) labels, each drawn from its row of p (n, k)."""
    return (draw.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(max=p.shape[1] - 1)


def gain_of(shares: np.ndarray, spread: float) -> float:
    """Nats that such a model, if its answers are true, is better than the best constant."""
    p = varied(np.random.default_rng(0), shares, 20_000, spread)
    mean = p.mean(axis=0)
    return float((p * np.log(p)).sum(axis=1).mean() - (mean * np.log(mean)).sum())


@functools.cache
def spread_for(shares: tuple[float, ...], gain: float) -> float:
    low, high = 0.0, 4.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if gain_of(np.array(shares), middle) < gain else (low, middle)
    return high


def calibrated(gain: float, sharpness: float = 1.0) -> Callable[[np.ndarray], Model]:
    """Labels follow the answers: the model is so many nats better than a constant. sharpness:
    what its logits are multiplied by afterwards; above 1 it is overconfident."""

    def of(shares: np.ndarray) -> Model:
        spread = spread_for(tuple(shares), gain)

        def model(draw: np.random.Generator, shares: np.ndarray, n: int) -> tuple:
            p = varied(draw, shares, n, spread)
            labels = dealt(draw, p)
            return softmax(sharpness * np.log(p)), labels

        return model

    return of


def unrelated(gain: float) -> Callable[[np.ndarray], Model]:
    """Answers as varied as those of `calibrated`, and labels that do not follow them."""

    def of(shares: np.ndarray) -> Model:
        spread = spread_for(tuple(shares), gain)

        def model(draw: np.random.Generator, shares: np.ndarray, n: int) -> tuple:
            labels = dealt(draw, np.tile(shares, (n, 1)))
            return varied(draw, shares, n, spread), labels

        return model

    return of


def constant(kind: str, noise: float = 0.0) -> Callable[[np.ndarray], Model]:
    """One answer to all rows: the shares of 1,000 other rows (prior), all classes alike (uniform),
    or one class with .98 (confident); noise: standard deviation of its logits."""

    def of(shares: np.ndarray) -> Model:
        k = len(shares)

        def model(draw: np.random.Generator, shares: np.ndarray, n: int) -> tuple:
            answer = {
                "prior": (draw.multinomial(1000, shares) + 0.5) / (1000 + 0.5 * k),
                "uniform": np.full(k, 1 / k),
                "confident": np.full(k, 0.02 / (k - 1)),
            }[kind]
            if kind == "confident":
                answer[draw.integers(k)] = 0.98
            labels = dealt(draw, np.tile(shares, (n, 1)))
            return varied(draw, answer, n, noise), labels

        return model

    return of


MODELS: dict[str, tuple[bool, Callable[[np.ndarray], Model]]] = {
    # whether it is a constant, the model
    "calibrated, .02 nats better than a constant": (False, calibrated(0.02)),
    "calibrated, .05 nats better": (False, calibrated(0.05)),
    "as that, overconfident (logits × 6)": (False, calibrated(0.05, 6.0)),
    "constant: training shares": (True, constant("prior")),
    "constant: all classes alike": (True, constant("uniform")),
    "constant: one class with .98": (True, constant("confident")),
    "constant but for noise (sd .1 of the logits)": (True, constant("prior", 0.1)),
    "noise that tells rows apart by .02 nats": (True, unrelated(0.02)),
    "noise that tells rows apart by .1 nats": (True, unrelated(0.1)),
}


def rate(model: Model, shares: np.ndarray, rows: int, draws: int, seed: int = 0) -> float:
    """Share of the draws that are called collapsed."""
    draw = np.random.default_rng(seed)
    called = 0
    for _ in range(draws):
        p, labels = model(draw, shares, rows)
        called += outcomes.collapsed(outcomes.Answers(p, labels)) is not None
    return called / draws


def score_rate(explained: float, related: bool, rows: int, draws: int, seed: int = 0) -> float:
    """As `rate`, of a regression that explains this share of the variance, or varies as much."""
    draw = np.random.default_rng(seed)
    called = 0
    for _ in range(draws):
        x = np.sqrt(explained) * draw.normal(size=rows)
        own = np.sqrt(1 - explained) * draw.normal(size=rows)
        y = x + own if related else draw.normal(size=rows)
        called += outcomes.collapsed(outcomes.Scores(x, y)) is not None
    return called / draws


def table(rows: Sequence[int], draws: int) -> str:
    """Per model and number of rows, the lowest and the highest rate over SHARES."""
    lines = ["| called collapsed (%) | " + " | ".join(f"{n:,} rows" for n in rows) + " |"]
    lines.append("| --- | " + " | ".join("---" for _ in rows) + " |")

    def line(name: str, rates: list[list[float]]) -> str:
        cells = [
            f"{100 * min(each):.1f}" + (f" – {100 * max(each):.1f}" if len(each) > 1 else "")
            for each in rates
        ]
        return f"| {name} | {' | '.join(cells)} |"

    for name, (_, build) in MODELS.items():
        built = [(build(np.array(shares)), np.array(shares)) for shares in SHARES.values()]
        rates = [[rate(model, shares, n, draws) for model, shares in built] for n in rows]
        lines.append(line(name, rates))
    for name, explained, related in (
        ("regression, R² .04 (.02 nats)", 0.0392, True),
        ("regression, R² .1", 0.1, True),
        ("regression, constant", 0.0, False),
        ("regression, noise of R² .04", 0.0392, False),
    ):
        lines.append(line(name, [[score_rate(explained, related, n, draws)] for n in rows]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    arguments = parser.parse_args()
    print(table(arguments.rows, arguments.draws))


if __name__ == "__main__":
    main()
