"""The strongest simple opponent of an encoder: trees and a logistic regression over what counting
says of two answers.

    model = fit(rows, seed=0)                          # rows of training, with label and group
    p = model.probabilities(rows)                      # (rows, 3) of A, B, tie
    save(model, folder); model = load(folder)

Style (data/style.py) and words: the difference of both answers' TF-IDF in WORD_AXES directions
(latent semantic analysis, Deerwester et al. 1990). Gradient boosting (Friedman 2001) and logistic
regression learn from each row in both orders and answer with the mean of both, so that
exchanging the answers exchanges A and B to the last bit. Both are fitted FOLDS times, each time
without a part of the prompts (cross-fitting); the rows left out choose how many trees, how strong a
penalty and what weight each has, and all fits answer together.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.arena import PairRow
from data.rows import stable_hash
from data.style import NAMES, PAIR, SIDE, TURNS, exchanged, style_features
from evaluation.blending import LEAST, blend, fit_weights
from evaluation.metrics import SWAP, TIE, average_swapped, softmax
from files import write_text

FOLDS = 5
WORD_AXES = 32
MOST_WORDS = 30_000  # of the vocabulary
ROUNDS = (25, 50, 75, 100, 150, 200, 300)  # of boosting, to choose from
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1)  # inverse, to choose from
CLASSES = 3
ROWS_FOR_THREADS = 20_000
PART = 4096  # rows whose words are in memory at a time
FILE = "features.json"


def boosting(rows: int) -> dict[str, Any]:
    """How trees are grown on so many training rows: few rows want small and slow ones."""
    leaves = int(np.clip(rows / 500, 8, 31))
    return {
        "max_iter": ROUNDS[-1],
        "learning_rate": 0.03 if rows < 10_000 else 0.06,
        "max_leaf_nodes": leaves,
        "min_samples_leaf": 60,
        "l2_regularization": 50.0,
        "max_features": 0.1,
        "max_bins": 64,
        "early_stopping": False,
    }


# ------------------------------------------------------------------------------------ words


@dataclass
class Words:
    """TF-IDF of an answer in a few directions."""

    terms: list[str]
    idf: np.ndarray  # (terms,)
    axes: np.ndarray  # (terms, directions)

    @classmethod
    def fit(cls, rows: Sequence[PairRow], seed: int) -> "Words | None":
        """None where the rows have too few words for directions."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            vectorizer = TfidfVectorizer(
                min_df=3, max_features=MOST_WORDS, sublinear_tf=True, dtype=np.float32
            ).fit(_answers(rows))
        except ValueError:  # no word is in three answers
            return None
        words = cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, np.zeros((0, 0)))
        if len(words.terms) <= WORD_AXES or len(rows) <= WORD_AXES:
            return None
        svd = TruncatedSVD(WORD_AXES, random_state=seed).fit(words.differences(rows))
        words.axes = svd.components_.T.astype(np.float64)
        return words

    def differences(self, rows: Sequence[PairRow]) -> Any:
        """(rows, terms) sparse, of A − B."""
        from scipy import sparse
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(vocabulary=self.terms, sublinear_tf=True, dtype=np.float32)
        vectorizer.idf_ = self.idf
        parts = []
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            a = vectorizer.transform([TURNS.join(row.response_a) for row in part])
            parts.append(a - vectorizer.transform([TURNS.join(row.response_b) for row in part]))
        return sparse.vstack(parts, format="csr")


def _answers(rows: Sequence[PairRow]) -> Iterator[str]:
    for row in rows:
        yield TURNS.join(row.response_a)
        yield TURNS.join(row.response_b)


# ------------------------------------------------------------------- two classifiers, as arrays


@dataclass
class Forest:
    """Boosted trees. A node's children are numbered among the nodes of all trees, a leaf is its own
    child; columns: the class that each tree of a round raises."""

    present: np.ndarray  # (classes that the rows had,)
    columns: np.ndarray  # (trees of a round,)
    start: np.ndarray  # (trees of a round,) before the first of them
    roots: np.ndarray  # (rounds, trees of a round)
    feature: np.ndarray  # (nodes,), so are those below
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, seed: int) -> "Forest":
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        classifier = HistGradientBoostingClassifier(**boosting(len(x) // 2), random_state=seed)
        # OpenMP's limit is each thread's own; x has each row in both orders
        with threadpool_limits(1 if len(x) < 2 * ROWS_FOR_THREADS else None, "openmp"):
            return cls.of(classifier.fit(x, labels))

    @classmethod
    def of(cls, classifier: Any) -> "Forest":
        """The arrays of a fitted HistGradientBoostingClassifier, which is written as a pickle
        otherwise."""
        trees = [tree.nodes for one_round in classifier._predictors for tree in one_round]
        offsets = np.cumsum([0, *map(len, trees)])[:-1]
        moved = np.repeat(offsets, [len(nodes) for nodes in trees])
        nodes = np.concatenate(trees)
        leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        present = classifier.classes_.astype(np.int64)
        return cls(
            present=present,
            columns=present if len(present) > 2 else present[1:],  # two classes share a tree
            start=np.ravel(classifier._baseline_prediction).astype(np.float64),
            roots=offsets.reshape(classifier.n_iter_, -1),
            feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
            threshold=nodes["num_threshold"].astype(np.float64),
            left=np.where(leaf, own, nodes["left"] + moved),
            right=np.where(leaf, own, nodes["right"] + moved),
            value=nodes["value"].astype(np.float64),
        )

    def probabilities(self, x: np.ndarray, rounds: Sequence[int]) -> np.ndarray:
        """(len(rounds), rows, classes) after so many rounds, of rows x (rows, features)."""
        roots = self.roots[: max(rounds)].ravel()
        node = np.broadcast_to(roots, (len(x), len(roots)))
        rows = np.arange(len(x))[:, None]
        while True:
            goes_left = x[rows, self.feature[node]] <= self.threshold[node]
            child = np.where(goes_left, self.left[node], self.right[node])
            if (child == node).all():
                break
            node = child
        added = self.value[node].reshape(len(x), -1, len(self.columns))
        sums = np.cumsum(added, axis=1)[:, np.array(rounds) - 1].swapaxes(0, 1)
        scores = _absent((len(rounds), len(x), CLASSES), self.present)
        scores[..., self.columns] += self.start + sums
        return softmax(scores)


def _absent(shape: tuple[int, ...], present: np.ndarray) -> np.ndarray:
    """Scores of 0, and one that no answer comes back from of a class that no row had."""
    scores = np.full(shape, -1000.0)
    scores[..., present] = 0.0
    return scores


@dataclass
class Linear:
    """Multinomial logistic regression over standardised columns."""

    mean: np.ndarray  # (columns,)
    scale: np.ndarray  # (columns,)
    present: np.ndarray
    weight: np.ndarray  # (columns, classes)
    bias: np.ndarray  # (classes,)

    @classmethod
    def fit_all(
        cls, x: np.ndarray, labels: np.ndarray, penalties: Sequence[float]
    ) -> "list[Linear]":
        """One for each penalty."""
        from sklearn.linear_model import LogisticRegression

        z = columns(x)
        mean, scale = z.mean(axis=0), z.std(axis=0) + 1e-6
        z, fitted = standardised(z, mean, scale), []
        model = LogisticRegression(max_iter=300, warm_start=True)
        for penalty in penalties:
            model.set_params(C=penalty).fit(z, labels)
            present = model.classes_.astype(np.int64)
            asked = present if len(present) > 2 else present[1:]
            weight, bias = np.zeros((z.shape[1], CLASSES)), np.zeros(CLASSES)
            weight[:, asked], bias[asked] = model.coef_.T, model.intercept_
            fitted.append(cls(mean, scale, present, weight, bias))
        return fitted

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(rows, classes)"""
        z = standardised(columns(x), self.mean, self.scale)
        # a matrix product rounds by where in the batch a row stands
        scores = (z[:, :, None] * self.weight).sum(axis=1) + self.bias
        return softmax(scores + _absent((CLASSES,), self.present))


def standardised(z: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Within 3 standard deviations."""
    return np.clip((z - mean) / scale, -3, 3)


def columns(x: np.ndarray) -> np.ndarray:
    """What a linear model reads of features: differences and their sizes, sums, the pair's own."""
    a, b, difference, pair, words = parts_of(x.astype(np.float64))
    signed = np.concatenate([difference, words], axis=1)
    return np.concatenate([signed, np.abs(signed), a + b, pair], axis=1)


# ---------------------------------------------------------------------------------- together


@dataclass
class FeatureModel:
    """What answers: words (None: style alone), and the fits of both classifiers."""

    words: Words | None
    forests: list[Forest]
    linears: list[Linear]
    rounds: int
    penalty: float
    weights: list[float]  # of the trees, of the logistic regression
    least: float  # no class gets less
    classes: int  # 2 where there are no ties

    def probabilities(self, rows: Sequence[PairRow]) -> np.ndarray:
        """(rows, classes) of A, B, tie."""
        x = features_of(rows, self.words)
        trees = np.mean([tree_answers(f, x, [self.rounds])[0] for f in self.forests], axis=0)
        linear = np.mean([in_both_orders(f.probabilities, x) for f in self.linears], axis=0)
        p = blend([trees, linear], self.weights)[:, : self.classes]
        return floored(p, self.least)


def fit(
    rows: Sequence[PairRow], seed: int = 0, words: bool = True, classes: int = CLASSES
) -> FeatureModel:
    """Of rows with labels. words=False: style alone. classes: 2 where there are no ties.

    ValueError where nothing can be learnt: rows of one prompt, or ties alone.
    """
    from threadpoolctl import threadpool_limits

    labels, fold = np.array([row.label for row in rows]), folds_of([row.group for row in rows])
    folds = range(fold.max(initial=0) + 1)
    if len(folds) < 2 or any((labels[fold != number] == TIE).all() for number in folds):
        raise ValueError(
            f"{len(rows)} training rows: counting learns from two prompts at least, and from rows "
            "that are no ties"
        )
    vocabulary = Words.fit(rows, seed) if words else None
    x = features_of(rows, vocabulary)
    by_round = np.zeros((len(ROUNDS), len(rows), CLASSES))
    by_penalty = np.zeros((len(PENALTIES), len(rows), CLASSES))

    def fit_fold(number: int) -> tuple[Forest, list[Linear]]:
        """What the other folds teach, which then answers for this one; a Linear a penalty."""
        learns, left_out = fold != number, fold == number
        both = np.concatenate([x[learns], turned(x[learns])])
        both_labels = np.concatenate([labels[learns], np.array(SWAP)[labels[learns]]])
        forest = Forest.fit(both, both_labels, seed)
        linears = Linear.fit_all(both, both_labels, PENALTIES)
        by_round[:, left_out] = tree_answers(forest, x[left_out], ROUNDS)
        for place, linear in enumerate(linears):
            by_penalty[place, left_out] = in_both_orders(linear.probabilities, x[left_out])
        return forest, linears

    # many rows share the cores, few are a fold a core: threads that wait for each other after each
    # of many small loops take twice as long, and much longer where others want the cores too
    few = len(x) < ROWS_FOR_THREADS
    with threadpool_limits(1 if few else None), ThreadPoolExecutor(FOLDS if few else 1) as threads:
        forests, linears = zip(*threads.map(fit_fold, folds), strict=True)
    trees, linear = (int(log_losses(p, labels).argmin()) for p in (by_round, by_penalty))
    weights = fit_weights([by_round[trees], by_penalty[linear]], labels)
    return FeatureModel(
        vocabulary,
        forests,
        [each[linear] for each in linears],
        ROUNDS[trees],
        PENALTIES[linear],
        weights.tolist(),
        1 / (len(rows) + CLASSES),
        classes,
    )


def folds_of(groups: Sequence[str]) -> np.ndarray:
    """(rows,) which of at most FOLDS folds each row is left out in; a group is in one."""
    order = sorted(set(groups), key=lambda group: stable_hash("fold", group))
    place = {group: number % FOLDS for number, group in enumerate(order)}
    return np.array([place[group] for group in groups], dtype=np.int64)


def features_of(rows: Sequence[PairRow], words: Words | None) -> np.ndarray:
    """(rows, features) float32: style, then words."""
    style = style_features(rows)
    if words is None:
        return style
    # a sparse matrix is multiplied row by row: each row is rounded alike wherever it stands
    axes = words.differences(rows) @ words.axes
    return np.concatenate([style, axes.astype(np.float32)], axis=1)


def turned(x: np.ndarray) -> np.ndarray:
    """The features of the same rows with A and B exchanged."""
    style, words = np.split(x, [len(NAMES)], axis=1)
    return np.concatenate([exchanged(style), -words], axis=1)


def parts_of(x: np.ndarray) -> list[np.ndarray]:
    """Those of A, of B, A − B, of the pair, words."""
    return np.split(x, np.cumsum([len(SIDE)] * 3 + [len(PAIR)]), axis=1)


def tree_answers(forest: Forest, x: np.ndarray, rounds: Sequence[int]) -> np.ndarray:
    return in_both_orders(lambda part: forest.probabilities(part, rounds), x)


def in_both_orders(answer: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """The mean of the answers (…, rows, 3) to (A, B) and, exchanged back, to (B, A); few rows at a
    time."""
    parts = [x[start : start + 512] for start in range(0, len(x), 512)]
    answers = [average_swapped(answer(each), answer(turned(each))) for each in parts]
    return np.concatenate(answers, axis=-2)


def floored(p: np.ndarray, least: float) -> np.ndarray:
    p = np.maximum(p, least)
    return p / p.sum(axis=1, keepdims=True)


def log_losses(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(candidates,) of p (candidates, rows, classes)."""
    right = p[:, np.arange(len(labels)), labels]
    return -np.log(np.maximum(right, LEAST)).mean(axis=1)


# ---------------------------------------------------------------------------------- on disk


def save(model: FeatureModel, folder: Path) -> None:
    """features.safetensors and features.json."""
    from safetensors.numpy import save_file

    fits = {"forest": model.forests, "linear": model.linears}
    arrays = {
        f"{kind}.{number}.{name}": np.ascontiguousarray(array)
        for kind, several in fits.items()
        for number, one in enumerate(several)
        for name, array in vars(one).items()
    }
    facts = {
        name: getattr(model, name) for name in ("rounds", "penalty", "weights", "least", "classes")
    }
    facts |= {"columns": list(NAMES), "terms": None}
    if model.words is not None:
        facts["terms"] = model.words.terms
        arrays |= {"words.idf": model.words.idf, "words.axes": model.words.axes}
    save_file(arrays, folder / "features.safetensors")
    write_text(folder / FILE, json.dumps(facts))


def load(folder: Path) -> FeatureModel:
    """What save wrote. ValueError where features were counted otherwise then."""
    from safetensors.numpy import load_file

    facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if facts.pop("columns") != list(NAMES):
        raise ValueError(f"{folder}: the features of this version are others: fit it again")
    arrays, terms = load_file(folder / "features.safetensors"), facts.pop("terms")
    words = terms and Words(terms, arrays["words.idf"], arrays["words.axes"])

    def fits(kind: type, prefix: str) -> list:
        names = [field.name for field in dataclasses.fields(kind)]
        numbers = range(len({name.split(".")[1] for name in arrays if name.startswith(prefix)}))
        return [kind(*(arrays[f"{prefix}.{n}.{name}"] for name in names)) for n in numbers]

    return FeatureModel(words, fits(Forest, "forest"), fits(Linear, "linear"), **facts)
