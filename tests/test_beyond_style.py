"""What a model adds to the style of the texts, on answers whose source is planted."""

import numpy as np
import pytest

from evaluation.beyond_style import LEARNED, NOTHING, beyond_style


def answers(evidence: np.ndarray) -> np.ndarray:
    """p (rows, 3) of a model that sees the log odds of A over B, and ties at .1."""
    a = 0.9 / (1 + np.exp(-evidence))
    return np.stack([a, 0.9 - a, np.full(len(a), 0.1)], axis=1)


def planted(rows: int, style: float, content: float, seed: int):
    """(labels, style's evidence, content's evidence) where both decide so strongly."""
    draw = np.random.default_rng(seed)
    seen = style * draw.normal(size=rows), content * draw.normal(size=rows)
    p = answers(seen[0] + seen[1])
    labels = (draw.random((rows, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
    return labels, *seen


def found(style: float, content: float, reads: str, rows: int = 600) -> dict:
    parts = []
    for seed, count in ((1, rows // 2), (2, rows)):
        labels, of_style, of_content = planted(count, style, content, seed)
        noise = np.random.default_rng(seed + 10).normal(size=count)
        evidence = {
            "style": of_style + 0.3 * noise,  # as style does, a little worse
            "content": of_content,
            "both": of_style + of_content,
            "noise": noise,
        }[reads]
        parts.append((answers(of_style), answers(evidence), labels))
    return beyond_style(*parts, range(rows))


@pytest.mark.parametrize(
    "style, content, reads, verdict",
    [
        (3, 0, "style", LEARNED[1]),
        (0, 3, "content", LEARNED[0]),
        (2, 2, "both", LEARNED[0]),
        (2, 2, "content", LEARNED[0]),
        (2, 2, "style", LEARNED[1]),
        (0, 0, "noise", NOTHING),
        (0, 3, "noise", NOTHING),
    ],
)
def test_the_verdict_is_what_was_planted(style, content, reads, verdict):
    result = found(style, content, reads)
    assert result["verdict"] == verdict, result
    low, high = result["gain_ci95"]
    assert low <= result["gain"] <= high
    joined = result["log_loss_style"] - result["log_loss_joined"]
    assert result["gain"] == pytest.approx(joined)


def test_few_rows_decide_nothing():
    assert found(1, 0.7, "both", rows=40)["verdict"] in (LEARNED[2], NOTHING)


def test_it_rarely_finds_more_where_there_is_none():
    wrong = 0
    for seed in range(60):
        parts = []
        for part, count in ((0, 150), (1, 300)):
            labels, of_style, _ = planted(count, 1.5, 0, 100 * seed + part)
            noise = np.random.default_rng(100 * seed + part + 50).normal(size=count)
            parts.append((answers(of_style), answers(of_style + noise), labels))
        wrong += beyond_style(*parts, range(300))["verdict"] == LEARNED[0]
    assert wrong <= 5  # 2.5 % of them on this side: 5 or fewer in 98 of 100 such counts
