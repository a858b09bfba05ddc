"""A saved run of the preference scripts, opened again: it answers rows.

    answer = open_run("results/…", core.single_world("cpu"))
    p = answer(rows)                                    # (rows, classes)

Whether an encoder, what counting says, or both joined: the run's folder knows.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import core
from data import pairs as pair_data
from data.arena import PairRow
from data.style import NAMES
from device import autocast, choose_attention, choose_precision
from evaluation import metrics
from evaluation.blending import blend
from experiments.pair_answers import predict_pairs
from files import content_digest, damage, read_json
from models import features, pairs, pretrained

ANSWERS = "train/weights/best"  # of a partner


class Answer(Protocol):
    """What answers rows."""

    classes: int  # 2 where there are no ties
    precision: str

    def __call__(self, rows: Sequence[PairRow]) -> np.ndarray:
        """p(A, B) (rows, classes)"""

    def both_orders(self, rows: Sequence[PairRow]) -> tuple[np.ndarray, np.ndarray]:
        """p(A, B) and p(B, A), uncalibrated."""


def open_run(
    run: str | Path, world: core.World, weights: str = "best", calibrated: bool = False
) -> Answer:
    """weights: best or final; calibrated: with the temperature that the run fitted on validation.

    run: its folder, or one of saved weights, which answers without what the run is blended with.
    ValueError where there are none that are whole.
    """
    folder, tested = whole_weights(run, weights, calibrated)
    counted = (folder / features.FILE).exists()
    answer = SavedFeatures(folder) if counted else SavedPairs(folder, world)
    if joined := tested.get("blend"):
        answer = Blended(answer, open_run(partner(Path(run), joined), world), joined["weights"])
    return Calibrated(answer, tested["temperature"]) if calibrated else answer


def whole_weights(
    run: str | Path, weights: str = "best", calibrated: bool = False
) -> tuple[Path, dict[str, Any]]:
    """(the folder of a run's saved weights, what was tested with them); as open_run."""
    folder = Path(run)
    if (folder / "train/weights").is_dir():
        folder = folder / "train/weights" / weights
    if problem := damage(folder):
        raise ValueError(f"{folder} is no whole folder of saved weights ({problem})")
    if not any((folder / name).is_file() for name in (pairs.FACTS, features.FILE)):
        script = read_json(Path(run) / "run.json").get("script")
        raise ValueError(f"{run} is no preference run, but one of {script or 'no known script'}")
    tested = read_json(Path(run) / "test/metrics/metrics.json")
    fitted = {
        "--blend: the weights are those": tested.get("blend"),
        "--calibrated: the temperature is that": calibrated,
    }
    for what, wanted in fitted.items():
        if wanted and tested.get("tested_with") != weights:
            raise ValueError(
                f"{what} of the {tested.get('tested_with')} weights, not of the {weights} ones "
                "(--weights)"
            )
    return folder, tested


def partner_facts(run: Path | None, other: Path) -> dict[str, str | None]:
    """Where a run's partner lies, seen from the run's folder so that both can move together, and by
    what it is known there."""
    path = str(other.absolute()) if run is None else os.path.relpath(other, run)
    return {"run": path, "digest": content_digest(other / ANSWERS)}


def partner(run: Path, joined: dict[str, Any]) -> Path:
    """The run that a blend was made with: where it lay, seen from the run (or, of older runs, on
    the disk), or beside it or somewhere above under its name. ValueError where it is not there, or
    has other weights by now."""
    told, digest = Path(joined["run"]), joined.get("digest")
    own = run.absolute()
    above = [folder / told.name for folder in own.parents]
    above = above if digest else above[:2]  # by its name alone: not from far away
    there = [path for path in (own / told, told, *above) if (path / "run.json").is_file()]
    for path in there:
        # older blends have the digest of the whole folder
        if digest in (None, content_digest(path / ANSWERS), content_digest(path)):
            return path
    if there:
        raise ValueError(
            f"{run} is a blend with {told}, but {there[0]} has other weights than those that it "
            "was joined with"
        )
    raise ValueError(
        f"{run} is a blend with {told}, which is not there: put that run's folder where it lay, "
        f"seen from this one, or beside it as {told.name}"
    )


class Blended:
    """Two runs as one, by weights."""

    def __init__(self, own: Answer, other: Answer, weights: Sequence[float]):
        self.own, self.other, self.weights = own, other, weights
        self.classes, self.precision = own.classes, own.precision

    def __call__(self, rows: Sequence[PairRow]) -> np.ndarray:
        return blend([self.own(rows), self.other(rows)], self.weights)

    def both_orders(self, rows: Sequence[PairRow]) -> tuple[np.ndarray, np.ndarray]:
        answers = zip(self.own.both_orders(rows), self.other.both_orders(rows), strict=True)
        p, swapped = (blend(pair, self.weights) for pair in answers)
        return p, swapped


class Calibrated:
    """A run whose logits are divided by a temperature."""

    def __init__(self, answer: Answer, temperature: float):
        self.answer, self.temperature = answer, temperature
        self.classes, self.precision = answer.classes, answer.precision
        self.both_orders = answer.both_orders

    def __call__(self, rows: Sequence[PairRow]) -> np.ndarray:
        p = np.maximum(self.answer(rows), 1e-300)
        return metrics.apply_temperature(np.log(p), self.temperature)


class SavedFeatures:
    """What counting gets."""

    precision = "fp64"

    def __init__(self, folder: Path):
        self.model = features.load(folder)
        self.classes = self.model.classes

    def __call__(self, rows: Sequence[PairRow]) -> np.ndarray:
        return self.model.probabilities(rows)

    def both_orders(self, rows: Sequence[PairRow]) -> tuple[np.ndarray, np.ndarray]:
        p = self(rows)
        return p, metrics.swap_classes(p)  # exactly


class SavedPairs:
    """An encoder with its head."""

    def __init__(self, folder: Path, world: core.World):
        self.facts, self.world = json.loads((folder / pairs.FACTS).read_text()), world
        model_config = pretrained.load_config(str(folder))
        machine, kernels = world.machine, pretrained.kernels_of(model_config)
        device = world.device.type
        precision = self.facts.get("precision", "auto")  # the run's own, for the run's own answers
        self.precision = choose_precision(precision, device, machine, kernels)
        attention = choose_attention("auto", device, self.precision, machine, kernels)
        self.tokenizer = pretrained.load_tokenizer(str(folder), model_config)
        encoder = pretrained.load_encoder(str(folder), attention=attention)
        pooling, columns = (self.facts.get(name) for name in ("pooling", "style_columns"))
        if pooling != "mean":
            pretrained.read_first_token_alone(encoder)
        if columns and columns != list(NAMES):
            raise ValueError(
                f"{folder}: the style features of this version are others: train it again"
            )
        scale = (torch.zeros(len(columns)), torch.ones(len(columns))) if columns else None
        self.classes = len(self.facts.get("classes", metrics.PREFERENCE_CLASSES))  # older runs: 3
        hidden = encoder.config.hidden_size
        self.joint = None
        if self.facts.get("form") == "joint":
            self.joint = pair_data.joint_form(
                self.tokenizer, model_config, self.facts["with_prompt"], both_orders=True
            )
        joint = self.joint is not None
        name = self.facts["head"]
        head = pairs.build_head(name, hidden, classes=self.classes, style=scale, joint=joint)
        self.model = pairs.build_model(encoder, head, pooling or "first")
        pairs.restore_model(self.model, folder)
        self.model.to(world.device).eval()

    def __call__(self, rows: Sequence[PairRow]) -> np.ndarray:
        return self.both_orders(rows)[0]

    def both_orders(self, rows: Sequence[PairRow]) -> tuple[np.ndarray, np.ndarray]:
        facts = self.facts
        shape = (facts["max_length"], facts["with_prompt"], facts["prompt_frac"])
        # answers to JSON lines stand alone on standard output
        quiet = len(rows) == 1 or self.world.rank != 0
        style = bool(facts.get("style_columns"))
        data = pair_data.unlabelled(rows, self.tokenizer, *shape, self.joint, style, quiet=quiet)
        return predict_pairs(self, data, facts["swap"] in ("tta", "both"))

    def autocast(self) -> Any:
        return autocast(self.world.device, self.precision)


def other_run(run: str, facts: dict[str, Any]) -> Path:
    """A run to blend with. ValueError unless it is finished, and trained on the same split: its
    training rows may be test rows here otherwise."""
    folder = Path(run)
    record = require_finished("--blend", folder, facts["classes"])
    for name in ("data_fingerprint", "split_fingerprint"):
        if record.get(name) != facts[name]:
            raise ValueError(
                f"--blend {run}: it was trained on other rows or another split ({name} differs): "
                "its training rows may be test rows here"
            )
    require_partners(folder)
    return folder


def require_partners(run: Path) -> None:
    """ValueError unless open_run will open it, and what it is blended with: said before the hours
    of training after which it is asked."""
    _, tested = whole_weights(run)
    if joined := tested.get("blend"):
        require_partners(partner(run, joined))


def require_finished(option: str, run: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Its run.json; ValueError unless it is a finished run, of these classes."""
    record = read_json(run / "run.json")
    if record.get("status") != "finished":
        raise ValueError(f"{option} {run}: no finished run of the preference scripts")
    known = record.get("classes")  # older runs do not say
    if known is not None and list(known) != list(classes):
        raise ValueError(f"{option} {run}: it was trained on other classes ({', '.join(known)})")
    return record
