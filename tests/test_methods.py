"""Every method is open to every script: a cell a method here, all of them in tests/long."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from conftest import PROJECT, WORDS
from systems import DROPS, METHODS, REFUSED, System, build_systems
from tiny_models import build_tiny_llama

from device import Machine, choose_precision
from models import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca", "bert")
# a cell a method, each script several times
CELLS = [(name, NAMES[i % len(NAMES)]) for i, name in enumerate(METHODS)]


@pytest.fixture(scope="session")
def systems(tmp_path_factory, cache_folder) -> dict[str, System]:
    return build_systems(tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="session")
def plain(systems, tmp_path_factory):
    """plain(system, words) → the run without any method, trained once for each words."""
    done: dict[tuple, Path] = {}

    def run(name: str, words: tuple[str, ...] = ()) -> Path:
        if (name, words) not in done:
            folder = tmp_path_factory.mktemp("plain") / "run"
            done[name, words] = systems[name].train(folder, *words)
        return done[name, words]

    return run


def weights_of(folder: Path) -> str:
    """A hash of the final weights."""
    digest = hashlib.sha256()
    for path in sorted((folder / "train/weights/final").glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_cell(method: str, name: str, systems: dict[str, System], plain, out: Path) -> None:
    """The method trains, is finished, and gives other weights; or says why it is refused."""
    drops = tuple(DROPS.get(name, ())) if method == "R-Drop" else ()
    if reason := REFUSED.get((name, method)):
        with pytest.raises((SystemExit, ValueError), match=re.escape(reason)):
            systems[name].train(out, *METHODS[method])
        return
    if method == "RHO-loss":
        return check_rho(systems[name], out)
    systems[name].train(out, *METHODS[method], *drops)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] >= 1
    assert (out / "test/metrics/metrics.json").exists()
    assert weights_of(out) != weights_of(plain(name, drops))


def check_rho(system: System, out: Path) -> None:
    """Of a table of losses as extract_il_losses writes it."""
    import numpy as np

    import core
    from experiments import pretraining
    from methods.batch_selection import IrreducibleLosses

    config = system.parse()[0]
    _, split = pretraining.load_parts(config, core.single_world("cpu"))
    losses = np.random.default_rng(0).normal(4, 0.3, len(split.train))
    IrreducibleLosses(split.train, losses, split.fingerprint).save_part(out / "losses", 0)
    words = ("--selection.name=rho_loss", f"--selection.il_losses={out / 'losses'}")
    system.train(out / "run", *words, "--selection.mega_batch=20")
    assert json.loads((out / "run/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("method, name", CELLS)
def test_a_method_trains_and_changes_the_weights(method, name, systems, plain, tmp_path):
    check_cell(method, name, systems, plain, tmp_path / "run")


def test_the_table_of_the_page_is_that_of_the_cells():
    """docs/methods.md: a row a method, a column a script, open or a number of a reason."""
    lines = (PROJECT / "docs/methods.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) > len(NAMES)]
    assert rows[0][1:] == list(NAMES)
    table = {row[0]: dict(zip(NAMES, row[1:], strict=True)) for row in rows[2:]}
    assert set(table) == set(METHODS)
    for method, cells in table.items():
        for name, cell in cells.items():
            assert (cell == "open") == ((name, method) not in REFUSED), (method, name)


@pytest.mark.parametrize(
    "name, words, reason",
    [
        ("preference", "--freeze=all --optimizer=muon", "none of them is trained here"),
        ("preference", "--freeze=all --layer_decay=0.5", "nothing below the head is trained"),
        ("alpaca", "--freeze=bottom:2 --layer_decay=0.5", "nothing below the head is trained"),
        # its dropout is in frozen parts; a Llama's head, and its blocks, have none
        ("alpaca", "--freeze=bottom:2 --dropout=0.1 --r_drop=1", "needs --dropout above 0"),
        ("gpt2 lm", "--model={llama} --r_drop=1", "needs --dropout above 0"),
    ],
)
def test_what_a_method_would_act_on_must_be_trained(name, words, reason, systems, tmp_path):
    if "llama" in words:
        words = words.format(llama=build_tiny_llama(tmp_path / "llama", [" ".join(WORDS)]))
    with pytest.raises(ValueError, match=reason):
        systems[name].train(tmp_path / "run", *words.split())


@pytest.mark.parametrize(
    "name, words",
    [
        ("alpaca", ["--lr=5e-6", "--schedule=cosine"]),  # whose own --min_lr is 1e-5
        ("bert", ["--lr=1e-3", "--min_lr=2e-3", "--schedule=one-cycle"]),
        ("gpt2", ["--lr=1e-8", "--schedule=linear", "--head_epochs=1"]),
    ],
)
def test_the_peak_of_the_learning_rate_is_its_peak(name, words, systems, tmp_path):
    with pytest.raises(ValueError, match="is above --lr .*: give a lower one, as --min_lr 0"):
        systems[name].train(tmp_path / "run", *words)


def test_a_head_s_dropout_is_enough_for_two_passes_to_differ(systems, tmp_path):
    systems["preference"].train(tmp_path / "run", "--freeze=all", "--r_drop=1")
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_sophia_is_refused_where_auto_means_fp16(systems, tmp_path, monkeypatch):
    """A card without bf16: the curvature would be 2³² times too large, and nothing would learn."""
    old = Machine(cuda=1, cuda_capability=(7, 5))
    assert choose_precision("auto", "cuda", old) == "fp16"
    monkeypatch.setattr(pretrained, "choose_precision", lambda *_: "fp16")
    with pytest.raises(ValueError, match="sophiag's curvature underflows in fp16"):
        systems["glue"].train(tmp_path / "run", "--optimizer=sophiag")
