"""What a classifier without a network gets: TF-IDF and logistic regression, on the same rows.

    python finetune_gpt2.py tfidf --task ag_news --data downloads/ag_news --out results/tfidf
    python report.py compare results/tfidf results/gpt2/…

Words and pairs of words, weighted by TF-IDF with logarithmic counts (Salton & Buckley 1988), then
logistic regression with an L2 penalty, whose strength is chosen on the validation rows.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import console
from data import texts
from data.rows import choose_rows, contrary_labels, count_splits, normalised_text
from evaluation.metrics import classification_metrics
from evaluation.outcomes import RULES, Answers, Course, verdicts_of
from experiments.classification import prediction_lines
from experiments.experiment import Result
from runs.fitted import new_folder, write_fitted_run
from runs.results import last_lines
from settings import Section

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse penalties to choose from


@dataclass
class Config(Section):
    """Settings of the command `tfidf`; those of the rows are named as in training."""

    task: str = "imdb"
    """imdb, ag_news, reviews, or a file or folder of labelled texts"""
    data: str | None = None
    """file or folder with the rows of --task; null: the hub, or the package of the reviews"""
    val_frac: float = 0.1
    """share of the training rows (by a hash) for validation, where the source has no such part"""
    test_frac: float = 0.1
    """share of the rows for the test, where the source has no such part"""
    limit: int | None = None
    """rows in total at most (nested); null: all"""
    train_frac: float = 1.0
    """share of the training rows to use (nested)"""
    out: str | None = None
    """run folder; null: results/tfidf/ and the name of the task"""


def tfidf(config: Config) -> None:
    """Fit, test once, write a run folder. ValueError where a part has no rows."""
    folder = new_folder(config.out or Path("results/tfidf") / Path(config.task).stem)
    rows, classes, notes = texts.load_rows(
        config.task, config.data, config.val_frac, config.test_frac
    )
    rows, facts = choose_rows(rows, texts.data_fingerprint(rows), config.limit, config.train_frac)
    sizes = count_splits(rows, config.task)
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "val", "test")}
    notes += contrary_labels((normalised_text([row.text]), row.label) for row in rows)
    for line in (f"data: {config.task}: {sizes}", *notes):
        console.say(line)
    started = time.perf_counter()
    p, p_val, strength, words = fit(parts, len(classes))
    facts |= {"seconds": round(time.perf_counter() - started, 3)}
    val_labels = np.array([row.label for row in parts["val"]])
    groups = [row.group for row in parts["val"]]
    verdicts = verdicts_of(Course(), Answers(p_val, val_labels, classes, groups))
    labels = [row.label for row in parts["test"]]
    groups = [row.group for row in parts["test"]]
    metrics = classification_metrics(p, np.array(labels), groups, classes)
    metrics |= {"inverse_penalty": strength, "num_features": words}
    facts |= {"verdicts": verdicts, "verdict_rules": RULES}
    result = Result(metrics, prediction_lines(parts["test"], p, classes))
    write_fitted_run(folder, {"model": "tfidf"}, config, facts, result)
    console.say("\n".join([f"finished: {folder}", *last_lines(metrics, verdicts)]))


def fit(
    parts: dict[str, list[texts.TextRow]], classes: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """(test and validation probabilities (rows, classes), inverse penalty, number of features)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    matrices = {
        name: vectorizer.fit_transform(row.text for row in rows)
        if name == "train"
        else vectorizer.transform(row.text for row in rows)
        for name, rows in parts.items()
    }
    labels = {name: [row.label for row in rows] for name, rows in parts.items()}
    if len(set(labels["train"])) < 2:
        raise ValueError("the training rows have one label: nothing can be learnt from them")

    def probabilities(model: LogisticRegression, part: str) -> np.ndarray:
        p = np.zeros((len(parts[part]), classes))  # a class without training rows gets 0
        p[:, model.classes_] = model.predict_proba(matrices[part])
        return p

    tried = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(matrices["train"], labels["train"])
        loss = log_loss(labels["val"], probabilities(model, "val"), labels=range(classes))
        tried.append((loss, strength, model))
    _, strength, model = min(tried, key=lambda each: each[0])
    both = (probabilities(model, part) for part in ("test", "val"))
    return *both, strength, len(vectorizer.vocabulary_)
