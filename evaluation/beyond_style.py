"""Whether a model's answers say more than the style of the texts: on test rows, as a difference.

    found = beyond_style((style_val, p_val, val_labels), (style, p, labels), groups)
    found["verdict"]                    # more than style, style only, undecided, or nothing learned

Style's answers and both joined are put beside each other; a temperature of the one and the weights
of the others are fitted on validation, and the test rows choose nothing. What the join is better by
is what the model knows beyond style, as far as these rows can tell.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.blending import blend, fit_weights
from evaluation.stats import Ratio, interval

Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # p of style, p of the model (rows, 3), labels
LEARNED = "more than style", "style only", "undecided"
NOTHING = "nothing learned"


def beyond_style(val: Part, test: Part, groups: Sequence[Hashable]) -> dict[str, Any]:
    """Nats a row, `gain` and its interval being log loss of style − log loss of both joined.

    more than style: the interval lies above 0. Nothing learned: it does not, and neither style nor
    both joined are better than a constant, the label shares of the test rows, by their intervals.
    Style only: at most half of what the model is better than a constant by can come from more than
    style. Else undecided: more rows would tell. groups (test rows,): rows that count as one.
    """
    style_val, p_val, val_labels = val
    style, p, labels = test
    weights = fit_weights([style_val, p_val], val_labels)
    losses = {
        "style": _losses([style], fit_weights([style_val], val_labels), labels),
        "alone": _losses([p], fit_weights([p_val], val_labels), labels),
        "joined": _losses([style, p], weights, labels),
    }
    shares = np.bincount(labels, minlength=p.shape[1]) / len(labels)
    constant = -np.log(shares[labels])
    gain = losses["style"] - losses["joined"]
    low, high, *_ = interval(gain, groups, Ratio(kind="plain"))
    if np.ptp(gain) == 0:
        low = high = float(gain[0])  # a weight of 0
    own = float((constant - losses["alone"]).mean())
    learned = any(
        interval(constant - losses[name], groups, Ratio(kind="plain")).low > 0
        for name in ("style", "joined")
    )
    if low > 0:
        verdict = LEARNED[0]
    elif not learned:
        verdict = NOTHING
    else:
        verdict = LEARNED[1] if high <= max(own, 0) / 2 else LEARNED[2]
    found: dict[str, Any] = {
        "verdict": verdict,
        "gain": float(gain.mean()),
        "weights": dict(zip(("style", "model"), map(float, weights), strict=True)),
        "constant": float(constant.mean()),
    }
    if np.isfinite([low, high]).all():
        found["gain_ci95"] = [float(low), float(high)]
    return found | {f"log_loss_{name}": float(each.mean()) for name, each in losses.items()}


def in_words(found: Mapping[str, Any], digits: int = 3) -> str:
    """A sentence on what beyond_style found; "" where it is torn."""
    try:
        verdict, gain = found["verdict"], float(found["gain"])
        style, joined = float(found["log_loss_style"]), float(found["log_loss_joined"])
        interval = found.get("gain_ci95")
        between = f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]" if interval else ""
    except (KeyError, TypeError, ValueError, IndexError):
        return ""
    return (
        f"{verdict}: counting length, layout and signs gets {style:.{digits}f} nats, with the "
        f"model's answers beside it {joined:.{digits}f}: better by {gain:+.{digits}f}{between}"
    )


def _losses(answers: list[np.ndarray], weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(rows,) nats."""
    return -np.log(blend(answers, weights)[np.arange(len(labels)), labels])
