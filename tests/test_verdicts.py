"""Verdicts of real tiny runs, of all scripts: kept in run.json, said last, and on the page."""

import importlib
import json
import math
import random
from pathlib import Path

import pytest
from conftest import WORDS
from tiny_instructions import build_models, write_rows

from commands import opening
from evaluation import outcomes
from experiments.instructions import InstructionTuning
from experiments.preference import Preference
from reports.folder import load_run
from reports.one_run import page_of_run
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = ["--page=false", "--device=cpu", "--precision=fp32"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.json")


def train(script: str, out: Path, *words: object) -> None:
    module = importlib.import_module(script)
    given = [*map(str, words), *QUIET, f"--out={out}"]
    module.main(*parse_settings(module.Config, given, f"{script}.py"))


def record_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def kinds(out: Path) -> list[str]:
    return [outcomes.kind_of(verdict) for verdict in record_of(out)["verdicts"]]


def tune(out: Path, models, rows, *words: object) -> None:
    """alpaca_sft.py on a tiny model: 24 steps an epoch."""
    small = [f"--model={models['gpt2']}", f"--data={rows}", "--batch=2", "--max_length=128"]
    small += ["--sample_tokens=0", "--baseline=false", "--dropout=0", "--val_frac=0.1"]
    train("alpaca_sft", out, *small, "--test_frac=0.1", *words)


def tones(out: Path) -> list[str]:
    blocks = page_of_run(load_run(out)).blocks
    return [block.tone for block in blocks if hasattr(block, "tone")]


# ----------------------------------------------------------------- worse than frequencies


@pytest.mark.parametrize("mask", ["true", "false"])
def test_instruction_tuning_that_learned_nothing_is_told_so(models, rows, tmp_path, capsys, mask):
    tune(tmp_path, models, rows, "--lr=1e-9", "--min_lr=0", "--epochs=0.2", f"--mask_prompt={mask}")
    assert kinds(tmp_path) == ["token frequencies"]
    said = capsys.readouterr().out
    assert said.index("finished: ") < said.index("verdict: token frequencies: ")
    assert "good" not in tones(tmp_path) and "bad" in tones(tmp_path)
    assert record_of(tmp_path)["verdict_rules"] == outcomes.RULES


def test_headlines_and_fine_tuning_that_learned_nothing_alike(models, tmp_path):
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(300)]
    (tmp_path / "titles.txt").write_text("\n".join(lines))
    small = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--vocab_size=300", "--max_length=24"]
    small += ["--batch=128", "--lr=1e-9", "--matrix_lr=1e-9", "--warmup_frac=0"]
    train("train_headlines", tmp_path / "a", f"--data={tmp_path / 'titles.txt'}", *small)
    assert kinds(tmp_path / "a") == ["token frequencies"]
    (tmp_path / "texts.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{number} {line}"}) + "\n" for number, line in enumerate(lines)
        )
    )
    words = [f"--task={tmp_path / 'texts.jsonl'}", f"--model={models['gpt2']}", "--max_length=32"]
    train(
        "finetune_gpt2",
        tmp_path / "b",
        *words,
        "--lr=1e-9",
        "--min_lr=0",
        "--epochs=1",
        "--batch=32",
    )
    assert kinds(tmp_path / "b") == ["token frequencies"]


def test_a_command_says_that_the_run_it_opens_failed(models, rows, tmp_path, capsys):
    tune(tmp_path, models, rows, "--lr=1e-9", "--min_lr=0", "--epochs=0.2")
    capsys.readouterr()
    for name in (tmp_path, tmp_path / "train/weights/best"):
        opening.open_causal(opening.OpenConfig(str(name), device="cpu"))
        assert "note: " in (said := capsys.readouterr().err) and ": token frequencies: " in said
    opening.open_causal(opening.OpenConfig(str(models["gpt2"]), device="cpu"))
    assert "token frequencies" not in capsys.readouterr().err


# ------------------------------------------------------------------------------ diverged


def spoilt(kind: type, after: int, factor: float, monkeypatch, until: float = math.inf) -> None:
    """From the micro-batch after so many on the training loss is multiplied."""
    loss_sum, calls = kind.loss_sum, []

    def spoil(self, model, batch):
        calls.append(1)
        loss, targets = loss_sum(self, model, batch)
        return (loss * factor if after < len(calls) <= until else loss), targets

    monkeypatch.setattr(kind, "loss_sum", spoil)


def test_a_run_that_diverges_says_so_with_the_loss_that_it_had(models, rows, tmp_path, monkeypatch):
    spoilt(InstructionTuning, 8, math.nan, monkeypatch)
    with pytest.raises(outcomes.Diverged, match="for 5 steps"):
        tune(tmp_path, models, rows, "--micro_batch=2", "--eval_every=3")
    record = record_of(tmp_path)
    assert record["status"] == "failed" and kinds(tmp_path) == ["diverged"]
    assert "last finite training loss was" in record["verdicts"][0]
    assert "last validation loss" in record["verdicts"][0]
    assert "good" not in tones(tmp_path)
    assert load_run(tmp_path).failures == ["diverged"]


def test_a_run_that_diverged_and_then_does_not_is_rid_of_it(models, rows, tmp_path, monkeypatch):
    words = (models, rows, "--micro_batch=2", "--save_every=4", "--epochs=1", "--lr=1e-2")
    with monkeypatch.context() as patch:
        spoilt(InstructionTuning, 8, math.nan, patch)
        with pytest.raises(outcomes.Diverged):
            tune(tmp_path, *words)
    tune(tmp_path, *words)
    assert record_of(tmp_path)["status"] == "finished" and "diverged" not in kinds(tmp_path)


def test_a_validation_loss_that_is_no_number_is_an_end(models, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(InstructionTuning, "evaluate", lambda self, state: {"val_loss": math.nan})
    with pytest.raises(outcomes.Diverged, match="validation loss of step 3"):
        tune(tmp_path, models, rows, "--eval_every=3")
    assert kinds(tmp_path) == ["diverged"]


def test_answers_that_are_no_numbers_are_an_end(tiny_bert, pair_csv, tmp_path, monkeypatch):
    probabilities = Preference.probabilities

    def spoil(self, state, data):
        return tuple(values * math.nan for values in probabilities(self, state, data))

    monkeypatch.setattr(Preference, "probabilities", spoil)
    with pytest.raises(outcomes.Diverged):
        words = [f"--model={tiny_bert}", f"--data={pair_csv}", "--max_length=32", "--epochs=1"]
        train("run_1_distilbert", tmp_path, *words)
    assert kinds(tmp_path) == ["diverged"]


# ----------------------------------------------------------------- spikes, and zero rates


def test_a_spike_is_kept_over_a_stop_and_by_the_finished_run(models, rows, tmp_path, monkeypatch):
    words = (models, rows, "--micro_batch=2", "--epochs=1.5", "--lr=1e-4", "--eval_every=50")
    with monkeypatch.context() as patch:
        spoilt(InstructionTuning, 27, 9.0, patch, until=28)
        tune(tmp_path, *words, "--stop_after=29")
    assert kinds(tmp_path) == ["loss spike"] and record_of(tmp_path)["status"] == "stopped"
    tune(tmp_path, *words)
    assert "loss spike" in kinds(tmp_path) and "caution" in tones(tmp_path)
    assert "at step 28" in " ".join(record_of(tmp_path)["verdicts"])


def test_a_rate_that_is_zero_in_all_steps_is_refused_by_all_scripts(models, rows, tmp_path):
    (tmp_path / "titles.txt").write_text("\n".join(f"{word} film" for word in WORDS * 3))
    with pytest.raises(ValueError, match="the learning rate is 0 in all 1 steps"):
        words = ["--epochs=1", "--batch=500", "--vocab_size=300", "--max_length=24"]
        train("train_headlines", tmp_path / "a", f"--data={tmp_path / 'titles.txt'}", *words)
    with pytest.raises(ValueError, match="the learning rate is 0 in all 1 steps"):
        tune(tmp_path / "b", models, rows, "--batch=500", "--epochs=1", "--warmup_frac=0.1")


def test_a_clock_that_nobody_can_foretell_leads_to_a_verdict(models, rows, tmp_path, monkeypatch):
    build_state = InstructionTuning.build_state

    def unforeseen(self, model):
        state = build_state(self, model)
        state.schedule = lambda fraction: 0.0  # as of a budget of hours that one step takes
        return state

    monkeypatch.setattr(InstructionTuning, "build_state", unforeseen)
    tune(tmp_path, models, rows, "--epochs=0.2")
    assert "zero learning rate" in kinds(tmp_path)


def test_the_rules_of_an_older_run_are_not_praised(models, rows, tmp_path):
    (tmp_path / "test/metrics").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("model: x\n")
    record = {"schema_version": 1, "status": "finished", "verdicts": [], "steps": 9}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "good" not in tones(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(record | {"verdict_rules": outcomes.RULES}))
    assert "good" in tones(tmp_path)
