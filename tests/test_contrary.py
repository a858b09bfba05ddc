"""Copies of an example with contrary labels are counted, whichever loader reads them."""

import csv

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

import core
import eval_bert
import finetune_gpt2
import run_5_models
from data.glue import TASKS
from data.rows import contrary_labels
from device import Machine
from experiments import preference
from experiments.classification import Classification
from experiments.glue import FineTuning
from settings import parse_settings

FOUND = "note: 2 examples occur more than once, 1 of them with contrary labels"


@pytest.fixture
def world():
    return core.World(torch.device("cpu"), Machine())


def write(path, header, rows, delimiter=",") -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def test_no_model_is_right_more_often_than_said():
    contents = [i % 7 for i in range(40)]
    labels = [(i * i) % 3 for i in range(40)]
    (line,) = contrary_labels(zip(contents, labels, strict=True))
    wrong = int(line.removesuffix(" of the rows at least").rsplit(" ", 1)[1])
    inputs = [[content] for content in contents]
    fitted = RandomForestClassifier(bootstrap=False, random_state=0).fit(inputs, labels)
    assert 0 < wrong == sum(fitted.predict(inputs) != labels)
    assert contrary_labels([("a", 1), ("a", 1), ("b", 0)]) == []


def test_votes(tmp_path, world, capsys):
    rows = [(f"prompt {i}", f"one {i}", f"other {i}", "AB"[i % 2]) for i in range(60)]
    rows += [("Prompt  0", "other 0", "one 0", "A")]  # sides exchanged: 0 preferred "one 0"
    rows += [("prompt 2", "other 2", "one 2", "B")]  # sides exchanged, and the same verdict
    data = write(tmp_path / "a.csv", ("prompt", "response_a", "response_b", "winner"), rows)
    config, _ = parse_settings(run_5_models.Config, [f"--data={data}"], "run_5_models.py")
    preference.load_rows(config, world, None)
    assert (
        f"{FOUND}: a model that answers copies alike is wrong on 1 of the rows at least"
        in capsys.readouterr().out
    )


def test_sentences(tmp_path, world, capsys):
    rows = [(f"a sentence {i}", i % 2) for i in range(40)]
    folder = tmp_path / "SST-2"
    folder.mkdir()
    copies = [("A sentence  0", 1), ("a sentence 0", 1), ("a sentence 2", 0)]
    write(folder / "train.tsv", ("sentence", "label"), [*rows, *copies], "\t")
    write(folder / "dev.tsv", ("sentence", "label"), rows[:0] + [("another", 1)], "\t")
    words = [f"--data={tmp_path}", "--suite=sst2", "--model=minilm"]
    # the experiment goes on to load a model: here it only reads its rows
    tuning = object.__new__(FineTuning)
    tuning.config, _ = parse_settings(eval_bert.Config, words, "eval_bert.py")
    tuning.task, tuning.world = TASKS["sst2"], world
    tuning.load_rows()
    assert (
        f"{FOUND}: a model that answers copies alike is wrong on 1 of the rows at least"
        in capsys.readouterr().out
    )


def test_texts(tmp_path, world, capsys):
    rows = [(f"a text {i}", ("good", "bad")[i % 2]) for i in range(60)]
    copies = [("A text  0", "bad"), ("a text 2", "good")]
    path = write(tmp_path / "texts.csv", ("text", "label"), [*rows, *copies])
    tuning = object.__new__(Classification)
    tuning.config, _ = parse_settings(finetune_gpt2.Config, [f"--task={path}"], "finetune_gpt2.py")
    tuning.world = world
    tuning.load_rows()
    assert (
        f"{FOUND}: a model that answers copies alike is wrong on 1 of the rows at least"
        in capsys.readouterr().out
    )
