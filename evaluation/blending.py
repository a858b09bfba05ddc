"""Several models' answers to the same rows as one: weights that other rows have chosen.

    weights = fit_weights([p_features_val, p_encoder_val], val_labels)
    p = blend([p_features, p_encoder], weights)          # (rows, classes)

softmax(Σ w·log p): a logarithmic opinion pool (Genest & Zidek 1986, section 3.2), in which one
model alone is a temperature. Every class has the same weight, so that exchanging two classes in
all of the answers exchanges them in the blend, exactly.
"""

from collections.abc import Sequence

import numpy as np

LEAST = 1e-12  # a probability of 0 would be a veto


def fit_weights(answers: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """(models,) weights, none below 0, with the lowest log loss on these rows.

    answers: probabilities (rows, classes) of each model; labels (rows,). Their loss is summed and
    half the squared distance from equal weights added, which rows without a best weight are in
    need of and many rows outweigh. The rows should have trained none of the models.
    """
    from scipy.optimize import minimize
    from scipy.special import softmax

    logs, rows = _logs(answers), np.arange(len(labels))
    equal = np.full(len(logs), 1 / len(logs))
    right = logs[:, rows, labels]  # (models, rows)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        joined = np.tensordot(weights, logs, 1)
        p = softmax(joined, axis=1)
        expected = np.einsum("rc,mrc->mr", p, logs)
        away = weights - equal
        value = -np.log(np.maximum(p[rows, labels], 1e-300)).sum() + away @ away / 2
        return value, (expected - right).sum(axis=1) + away

    bounds = [(0.0, 20.0)] * len(logs)
    return minimize(loss, equal, jac=True, bounds=bounds, method="L-BFGS-B").x


def blend(answers: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Probabilities (rows, classes)."""
    joined = sum(weight * logs for weight, logs in zip(weights, _logs(answers), strict=True))
    p = np.exp(joined - joined.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _logs(answers: Sequence[np.ndarray]) -> np.ndarray:
    return np.log(np.maximum(np.stack([np.asarray(p, dtype=np.float64) for p in answers]), LEAST))
