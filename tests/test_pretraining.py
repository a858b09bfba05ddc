"""pretrain_bert.py: methods that compose, on one process and two, cut off and continued."""

import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import PROJECT, WORDS, run_script
from safetensors.torch import load_file
from test_sampler import Rows, one_of, plain

import core
import eval_bert
import files
import pretrain_bert
import runs
from commands import calibrate, download, extract, validate
from commands.validate import open_pretraining
from data import corpora
from device import Machine
from evaluation import outcomes
from experiments import experiment, pretraining
from files import write_folder
from methods import curvature
from methods.batch_selection import IrreducibleLosses
from methods.clock import RTX_3090, BudgetClock, Costs, price
from models import bert
from settings import parse_settings

# every pair of methods is in one of these
METHODS = {
    "plain": [],
    "stacking, lion": ["stacking.enabled=true", "optimizer=lion"],
    "layer drop, sophia": ["layer_drop.enabled=true", "optimizer=sophiag"],
    "selective backprop, stacking, sophia": [
        *("selection.name=selective_backprop", "stacking.enabled=true", "optimizer=sophiag")
    ],
    "selective backprop, layer drop, lion": [
        *("selection.name=selective_backprop", "layer_drop.enabled=true", "optimizer=lion")
    ],
    "rho, layer drop, adamw": ["selection.name=rho_loss", "layer_drop.enabled=true"],
    "rho, stacking, sophia": [
        *("selection.name=rho_loss", "stacking.enabled=true", "optimizer=sophiag")
    ],
}
# Each method once; all combinations, in these tests: tests/long/test_pretraining_processes.py
SUMMED = ["selective backprop, stacking, sophia", "rho, layer drop, adamw"]
FEW = ["plain", *SUMMED]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory) -> Path:
    """300 documents of short sentences."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(60, 200))) for _ in range(300)]
    path = tmp_path_factory.mktemp("corpus") / "documents.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="module")
def words(corpus_file, cache_folder, tmp_path_factory) -> list[str]:
    """Settings of a run of about 12 updates of 8 rows of 16 tokens, and its table of losses."""
    settings = [
        *(f"data={corpus_file}", "model=bert-tiny", "vocab_size=200", "max_length=16", "lr=2e-3"),
        *("batch=8", "micro_batch=4", "budget_unit=flops", "validation.fraction=0.2"),
        *("validation.truncate_to=150", "stacking.initial_layers=1", "sophia.every=4"),
        *("sophia.rows=8", "selection.mega_batch=20", "selection.history=200", "page=false"),
        *("stacking.fractions=[0.2,0.4]", "save_every=1000", "layer_drop.gamma=20"),
    ]
    config = parse(settings + ["budget=1"])
    corpus, split = pretraining.load_parts(config, core.single_world("cpu"))
    folder = tmp_path_factory.mktemp("losses") / "table"
    losses = np.random.default_rng(0).normal(4, 0.3, len(split.train))
    IrreducibleLosses(split.train, losses, split.fingerprint).save_part(folder, 0)
    model = bert.build_masked_lm("bert-tiny", corpus.vocab_size, 0, 16)
    costs = pretraining.build_clock(config, model, 1).costs
    budget = 12 * 8 * costs.of("train", 4)
    return [*settings, f"selection.il_losses={folder}", f"budget={budget}"]


METHOD_OF = {  # the settings that count with a method, by their beginning
    "stacking.": "stacking.enabled=true",
    "layer_drop.": "layer_drop.enabled=true",
    "sophia.": "optimizer=sophiag",
    "selection.mega_batch": "selection.name=rho_loss",
    "selection.il_losses": "selection.name=rho_loss",
    "selection.history": "selection.name=selective_backprop",
}


def parse(words: list[str]) -> pretraining.Config:
    words = only_what_counts(words)
    return parse_settings(pretrain_bert.Config, words, "pretrain_bert.py", pretraining.ALIASES)[0]


def only_what_counts(words: list[str]) -> list[str]:
    """Without the settings of methods that are off."""
    off = tuple(name for name, method in METHOD_OF.items() if method not in words)
    return [word for word in words if ".enabled=" in word or not word.startswith(off)]


def train(words: list[str], out: Path, *more: str) -> Path:
    pretrain_bert.main(parse([*words, *more, f"out={out}"]), True)
    return out


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "test/metrics/metrics.json").read_text())


def losses_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line["train_loss"] for line in lines if "train_loss" in line]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "train/weights/final/model.safetensors")


def test_mask_frac_is_that_of_the_training_rows_alone(words, tmp_path):
    config = parse([*words, "mask_frac=0.5", f"out={tmp_path}"])
    with core.distributed(config) as world:
        task = pretraining.Pretraining(config, world)
        shares = [
            (data.collate(np.arange(100), epoch)["labels"] != core.IGNORE_INDEX).float().mean()
            for data, epoch in ((task.train, 0), (task.val, None))
        ]
        model = task.build_state(task.load_model()).model
    assert shares == pytest.approx([8 / 16, 2 / 16])
    plain = pretraining.build_clock(parse(words), model, 1).costs.of("train", 4)
    assert pretraining.build_clock(config, model, 1).costs.of("train", 4) > plain


def test_the_embedded_default_uses_bf16_where_the_cpu_has_instructions_for_it(monkeypatch):
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    for has, precision in ((True, "bf16"), (False, "auto")):
        world = core.World(torch.device("cpu"), Machine(cpu_bf16=has))
        config = experiment.or_embedded(pretraining.Config(), False, world, **pretraining.EMBEDDED)
        assert (config.model, config.data, config.precision) == ("bert-tiny", "reviews", precision)
        same = experiment.or_embedded(config, True, world, **pretraining.EMBEDDED)
        assert same is config


# ------------------------------------------------------------- composition, worlds, resuming


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> dict[str, Path]:
    """Combinations, trained without interruption by one process."""
    return train_whole(words, tmp_path_factory.mktemp("whole"), FEW)


def train_whole(words: list[str], top: Path, names: list[str]) -> dict[str, Path]:
    with_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs_of = {
        name: train(words, top / str(number), *METHODS[name]) for number, name in enumerate(names)
    }
    torch.set_num_threads(with_threads)
    return runs_of


@pytest.mark.parametrize("name", FEW)
def test_every_combination_learns_and_keeps_to_its_budget(name, whole):
    folder = whole[name]
    metrics = metrics_of(folder)
    assert 0.6 < metrics["budget_fraction"] <= 1
    assert metrics["val_loss"] < losses_of(folder)[0] - 0.02
    work = metrics["work"]
    assert ("forward" in work) == ("selection.name" in " ".join(METHODS[name]))
    assert ("curvature" in work) == ("optimizer=sophiag" in METHODS[name])
    if "stacking.enabled=true" in METHODS[name]:
        assert set(work["train"]) == {"1", "2", "4"}
    elif "layer_drop.enabled=true" in METHODS[name]:
        assert len(work["train"]) > 2
    else:
        assert set(work["train"]) == {"4"}


@pytest.mark.parametrize("name", FEW)
def test_stopped_and_continued_it_ends_bit_identical(name, words, whole, tmp_path):
    torch.set_num_threads(1)
    for steps in ("1", "3", "2"):
        train(words, tmp_path / "run", *METHODS[name], f"stop_after={steps}")
        if (tmp_path / "run/test").exists():
            break
    else:
        train(words, tmp_path / "run", *METHODS[name])
    for key, tensor in weights_of(whole[name]).items():
        assert torch.equal(tensor, weights_of(tmp_path / "run")[key]), key
    assert losses_of(tmp_path / "run") == losses_of(whole[name])
    assert metrics_of(tmp_path / "run") == metrics_of(whole[name])


def test_a_signal_within_scoring_or_curvature_loses_nothing(words, whole, tmp_path, monkeypatch):
    """The signal comes at the n-th time that the run looks for one, wherever that is."""
    torch.set_num_threads(1)
    name = "selective backprop, stacking, sophia"

    def run_with_signal_at(count: int) -> None:
        looked = [0]
        original = runs.Run.resume

        def resume(run: runs.Run, state: core.State, experiment) -> None:
            original(run, state, experiment)
            asked = run.world.stop_requested

            def stop_requested() -> bool:
                looked[0] += 1
                if looked[0] == count:
                    run.world.signal = "SIGTERM"
                return asked()

            run.world.stop_requested = stop_requested

        with monkeypatch.context() as patched:
            patched.setattr(runs.Run, "resume", resume)
            train(words, tmp_path / "run", *METHODS[name])

    for count in (2, 5, 9, 14, 23):
        run_with_signal_at(count)
        assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "stopped"
    train(words, tmp_path / "run", *METHODS[name])
    assert losses_of(tmp_path / "run") == losses_of(whole[name])
    for key, tensor in weights_of(whole[name]).items():
        assert torch.equal(tensor, weights_of(tmp_path / "run")[key]), key


def _both_ranks(rank: int, words: list[str], folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, 2)
    for number, name in enumerate(names):
        config = parse([*words, *METHODS[name], f"out={folder}/{number}"])
        with runs.Run(config, world) as run:
            task = pretraining.Pretraining(config, world)
            state = task.build_state(task.load_model())
            run.resume(state, task)
            while not run.done(state):
                run.after_step(state, pretrain_bert.update(state, task))
            run.finish(state, task)
    dist.destroy_process_group()


def test_two_processes_are_the_same_run_as_one(words, whole, tmp_path):
    assert_two_processes_equal_one(SUMMED, words, whole, tmp_path)


def assert_two_processes_equal_one(names: list[str], words, whole, tmp_path) -> None:
    forked.spawn(_both_ranks, (words, str(tmp_path), names), nprocs=2)
    for number, name in enumerate(names):
        one, two = whole[name], tmp_path / str(number)
        assert metrics_of(two)["work"] == metrics_of(one)["work"], name
        assert losses_of(two) == pytest.approx(losses_of(one), abs=2e-4), name
        assert metrics_of(two)["val_loss"] == pytest.approx(metrics_of(one)["val_loss"], abs=2e-4)


# ------------------------------------------------------------------------ Sophia's curvature


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_the_curvature_are_those_of_a_new_loader(size, workers):
    data, config = Rows(103), pretraining.Config(batch=16, micro_batch=4, workers=workers)
    for rank in range(size):
        kept = curvature.SeekingLoader(data, config, one_of(size, rank))
        for position in (0, 4, 8, 3, 30):  # back, too: a signal cut one off; 7 an epoch
            found = []
            for loader in (kept, core.TrainLoader(data, config, one_of(size, rank))):
                loader.micro_batch = 4
                loader.seek(position)
                works = [loader.next()]
                loader.halve()  # out of memory: the same batch again
                works.append(loader.next())
                found.append([(plain(work), work.sizes) for work in works])
                assert loader.position == position + 1
            assert found[0] == found[1]


def test_estimates_of_the_curvature_share_one_order_of_the_rows(words, tmp_path, monkeypatch):
    made = []
    original = core.StepSampler.__init__

    def __init__(self, data, *rest) -> None:
        made.append(data)
        original(self, data, *rest)

    monkeypatch.setattr(core.StepSampler, "__init__", __init__)
    out = train(words, tmp_path / "run", "optimizer=sophiag", "sophia.every=2")
    assert metrics_of(out)["work"]["curvature"]["4"] >= 3 * 8
    assert len(made) == 2  # of the rows to train on, and of those of the curvature


# ------------------------------------------------------------------ budget, figures, folders


def test_layer_drop_is_charged_the_depths_that_ran(words, tmp_path):
    more = ["layer_drop.enabled=true", "micro_batch=1", "dry_run=true", f"out={tmp_path}"]
    config = parse([*words, *more])
    ran: dict[int, int] = {}
    with core.distributed(config) as world:
        task = pretraining.Pretraining(config, world)
        state, original = task.build_state(task.load_model()), task.losses

        def losses(model, batch, layers):
            ran[len(layers)] = ran.get(len(layers), 0) + len(batch["labels"])
            return original(model, batch, layers)

        task.losses = losses
        while not state.clock.done:
            pretrain_bert.update(state, task)
    assert state.clock.counts["train"] == ran and len(ran) > 2


def test_a_dry_run_is_charged_its_steps_alone(words, tmp_path, monkeypatch, capsys):
    original = pretraining.Pretraining.build_state

    def build_state(task: pretraining.Pretraining, model: torch.nn.Module) -> core.State:
        state = original(task, model)
        task.step_started -= 3600  # as if compiling had taken an hour
        return state

    monkeypatch.setattr(pretraining.Pretraining, "build_state", build_state)
    train(words, tmp_path / "run", "budget_unit=hours", "budget=1", "dry_run=true")
    steps = re.search(r"steps ([\d,]+) ", capsys.readouterr().out).group(1)
    assert int(steps.replace(",", "")) > 100


def test_free_work_buys_updates_and_charged_work_costs_them(words, tmp_path):
    torch.set_num_threads(1)
    more = ["selection.name=rho_loss"]
    charged = metrics_of(train(words, tmp_path / "charged", *more))["updates"]
    free = metrics_of(train(words, tmp_path / "free", *more, "selection.charge_forward=false"))
    assert free["updates"] == 12 and charged < 8


def test_the_final_weights_open_with_transformers_and_have_that_loss(words, whole):
    world = core.single_world("cpu")
    folder = whole["selective backprop, stacking, sophia"]
    found = validate.validate(str(folder), world)
    assert found["val_loss"] == pytest.approx(metrics_of(folder)["val_loss"], abs=1e-4)
    assert found["unigram_entropy"] == metrics_of(folder)["unigram_entropy"]
    tested = metrics_of(folder)
    assert tested["primary"] == "loss" and tested["num_targets"] > 0
    for metrics in (tested, found):  # of so few groups
        assert "degrees of freedom" in metrics["no_interval"]["val_loss"]


def test_a_model_that_knows_frequencies_alone_or_never_moved_is_told_so(words, tmp_path):
    folder = train(words, tmp_path / "stuck", "lr=1e-9")
    (verdict,) = json.loads((folder / "run.json").read_text())["verdicts"]
    assert outcomes.kind_of(verdict) == "token frequencies"
    found = validate.validate(str(folder), core.single_world("cpu"))
    assert outcomes.kind_of(found["verdict"]) == "token frequencies"
    # how many steps fit into hours nobody knows: here it is one, at the rate of the first
    folder = train(words, tmp_path / "short", "budget_unit=hours", "budget=1e-9")
    verdicts = json.loads((folder / "run.json").read_text())["verdicts"]
    assert outcomes.failures(verdicts) == ["zero learning rate", "token frequencies"]
    with pytest.raises(ValueError, match="the learning rate is 0 in all 1 steps"):
        train(words, tmp_path / "known", "budget_unit=steps", "budget=1")


@pytest.mark.parametrize("word", ["--weights=best", "eval.checkpoint=smallest"])
def test_validation_reads_the_weights_that_were_asked_for(word, whole, tmp_path, capsys):
    run = shutil.copytree(whole["plain"], tmp_path / "run")
    settings = [f"--model={run}", "--suite=mlm", "--device=cpu"]
    found = []
    for words in (settings, [*settings, word]):
        eval_bert.main(*parse_settings(eval_bert.Config, words, "eval_bert", eval_bert.ALIASES))
        said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
        found.append(json.loads((run / "mlm/test/metrics/metrics.json").read_text()))
        assert said["weights"] == found[-1]["weights"]
        # what is read next is no trained model
        model = bert.build_masked_lm("bert-tiny", 200, 0, 16)
        shutil.rmtree(run / "train/weights/best")
        write_folder(run / "train/weights/best", lambda to, m=model: bert.save_model(m, to))
    assert [each["weights"] for each in found] == ["final", "best"]
    assert found[0]["val_loss"] == pytest.approx(metrics_of(run)["val_loss"], abs=1e-4)
    assert found[1]["val_loss"] > found[0]["val_loss"] + 0.02


def test_rows_of_predictions_sum_to_the_loss(whole):
    import pandas

    folder = whole["plain"]
    rows = pandas.read_csv(folder / "test/metrics/predictions.csv")
    assert rows.loss_sum.sum() / rows.num_targets.sum() == pytest.approx(
        metrics_of(folder)["val_loss"], rel=1e-6
    )
    assert (rows.num_chars >= rows.num_targets).all() and rows.group.nunique() > 1


def test_budget_units(words):
    config = parse(words)
    model = bert.build_masked_lm("bert-tiny", 200, 0, 16)
    steps = pretraining.build_clock(dataclasses.replace(config, budget=None), model, 10)
    assert steps.total_steps == 10
    with pytest.raises(ValueError, match="price bert-c5 at length 128"):
        pretraining.build_clock(dataclasses.replace(config, budget_unit="rst_hours"), model, 10)
    hours = pretraining.build_clock(dataclasses.replace(config, budget_unit="hours"), model, 10)
    hours.measure("train", 3601 * config.budget)
    assert hours.done


def test_a_budget_of_the_wall_clock_ends(words, tmp_path):
    out = train(words, tmp_path / "run", "budget_unit=hours", f"budget={1 / 3600}")
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and metrics_of(out)["updates"] >= 1
    assert metrics_of(out)["budget_fraction"] <= 1.001


def test_evaluations_at_shares_of_the_budget(words, tmp_path):
    budget = float(words[-1].partition("=")[2])
    out = train(words, tmp_path / "run", f"validate_every={budget / 4}")
    lines = map(json.loads, (out / "train/metrics/metrics.jsonl").read_text().splitlines())
    fractions = [line["budget_fraction"] for line in lines if "val_loss" in line]
    assert len(fractions) in (4, 5)
    for expected, found in zip((0.25, 0.5, 0.75, 1.0), fractions, strict=False):
        assert expected - 1e-6 <= found + 1 / 12 and found < expected + 1 / 12 + 1e-6


# ---------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def il(words, tmp_path_factory) -> Path:
    return train(words, tmp_path_factory.mktemp("il") / "run", "validation.il_model=True")


def test_irreducible_losses_are_extracted_continued_and_used(il, words, tmp_path):
    config = extract.ExtractConfig(run_folder=str(il), device="cpu", part_rows=100)
    extract.extract_il_losses(config)
    parts = sorted((il / "il_losses").glob("part_*"))
    assert len(parts) > 2
    world = core.single_world("cpu")
    _, corpus, split, model = open_pretraining(il, world)
    table = IrreducibleLosses.load(il / "il_losses", split.fingerprint)
    assert np.array_equal(table.ids, np.sort(split.train))
    shutil.rmtree(parts[-1])  # interrupted
    extract.extract_il_losses(config)
    again = IrreducibleLosses.load(il / "il_losses", split.fingerprint)
    assert np.array_equal(again.ids, table.ids)
    assert again.losses == pytest.approx(table.losses, abs=1e-5)
    used = train(words, tmp_path / "rho", f"train.rho_loss.il_losses_path={il / 'il_losses'}")
    assert "forward" in metrics_of(used)["work"]
    with pytest.raises(ValueError, match="another split"):
        train(
            words,
            tmp_path / "foreign",
            f"train.rho_loss.il_losses_path={il / 'il_losses'}",
            "validation.seed=5",
        )
    plain = extract.ExtractConfig(run_folder=str(used), device="cpu")
    with pytest.raises(ValueError, match="il_model=True"):
        extract.extract_il_losses(plain)
    for part in (il / "il_losses").glob("part_*"):  # as if --fresh had trained it once more
        facts = json.loads((part / "manifest.json").read_text())
        (part / "manifest.json").write_text(json.dumps(facts | {"weights": "others"}))
    with pytest.raises(ValueError, match="holds the losses of another model"):
        extract.extract_il_losses(config)
    shutil.rmtree(il / "il_losses")


@pytest.mark.parametrize("kind", ["deleted", "torn"])
def test_what_is_extracted_again_replaces_no_good_part(kind, il, tmp_path, capsys):
    _, _, split, _ = open_pretraining(il, core.single_world("cpu"))
    table = tmp_path / "table"
    config = extract.ExtractConfig(
        str(il), str(table), part_rows=-(-len(split.train) // 5), device="cpu"
    )
    extract.extract_il_losses(config)
    before = IrreducibleLosses.load(table, split.fingerprint)
    kept = {n: (table / f"part_{n:06d}/losses.npz").read_bytes() for n in (0, 1, 3, 4)}
    if kind == "deleted":
        shutil.rmtree(table / "part_000002")
    else:
        file = table / "part_000002/losses.npz"
        file.write_bytes(file.read_bytes()[:-9])
    capsys.readouterr()
    extract.extract_il_losses(config)
    said = capsys.readouterr().out
    again = IrreducibleLosses.load(table, split.fingerprint)
    assert np.array_equal(again.ids, before.ids) and np.array_equal(again.ids, np.sort(split.train))
    assert again.losses == pytest.approx(before.losses, abs=1e-5)
    assert f"{len(again):,} irreducible losses" in said
    assert ("part_000002 is damaged" in said) == (kind == "torn")
    for number, contents in kept.items():
        assert (table / f"part_{number:06d}/losses.npz").read_bytes() == contents


def test_calibrate_times_the_kernels_that_training_uses(words, tmp_path, monkeypatch):
    kernels, modules = [], []
    original = bert.masked_lm_losses

    def masked_lm_losses(model, *rest):
        kernels.append(model.config._attn_implementation)
        modules.append({type(module) for module in model.modules()})
        return original(model, *rest)

    monkeypatch.setattr(bert, "masked_lm_losses", masked_lm_losses)
    train(words, tmp_path / "run", "model=hf-bert-mini", "dry_run=true")
    trained = kernels[-1], modules[-1]
    config = calibrate.CalibrateConfig("hf-bert-mini", str(tmp_path / "costs.json"))
    config.max_length, config.vocab_size, config.batch = 16, 200, 8
    config.micro_batch, config.repeats, config.device = 4, 1, "cpu"
    calibrate.calibrate(config)
    assert (kernels[-1], modules[-1]) == trained


def test_calibrate_writes_prices_that_a_clock_takes(tmp_path, words):
    table = tmp_path / "costs.json"
    config = calibrate.CalibrateConfig(
        model="bert-tiny", output=str(table), max_length=16, vocab_size=200, batch=8
    )
    config.micro_batch, config.repeats, config.device = 4, 2, "cpu"
    calibrate.calibrate(config)
    costs = Costs.load(table)
    assert costs.of("train", 4) > costs.of("forward", 4) > 0
    more = ["budget_unit=rst_hours", f"budget_table={table}"]
    budget = 5 * 8 * costs.of("train", 4) / 3600
    out = train(words, tmp_path / "run", *more, f"budget={budget}")
    assert metrics_of(out)["updates"] == 5
    # and a finished run can be priced anew
    assert price(metrics_of(out)["work"], costs) == pytest.approx(3600 * budget)


def test_download_takes_its_word(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(download.downloads, "download_c4_subset", lambda out: asked.append(out))
    parsed, _ = parse_settings(download.DownloadConfig, ["c4-subset"], "download")
    download.download(parsed)
    assert asked == [None]
    with pytest.raises(ValueError, match="expected c4-subset or il_losses"):
        download.download(download.DownloadConfig(what="c5"))


# ----------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("name=il_model budget=6", {"out": "results/bert/il_model", "budget": 6.0}),
        ("train.stacking.enabled=True", {"stacking.enabled": True}),
        ("arch.layer_drop.enabled=True", {"layer_drop.enabled": True}),
        ("train.validation_set.il_model=True", {"validation.il_model": True}),
        ("train.validation_set.fraction=0.2", {"validation.fraction": 0.2}),
        ("train.track_forward_pass_only=false", {"selection.charge_forward": False}),
        ("train.sophia.free_updates=True", {"sophia.charge": False}),
        ("impl.mixed_precision_target_dtype=bfloat16", {"precision": "bf16"}),
        ("impl.validate_every_hours=3", {"validate_every": 3.0}),
        ("train/optim=lion", {"optimizer": "lion"}),
        ("optim.name=sophiag", {"optimizer": "sophiag"}),
        ("data=minipile", {"data": "minipile"}),
        (
            "train.rho_loss.il_losses_path=x train.rho_loss.mega_batch_size=3072",
            {"selection.name": "rho_loss", "selection.il_losses": "x"},
        ),
    ],
)
def test_the_published_words_are_understood(line, expected):
    config = parse(line.split())
    for name, value in expected.items():
        found = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(ValueError, match="enable one of them"):
        parse(["stacking.enabled=True", "layer_drop.enabled=True"])
    with pytest.raises(ValueError, match="extract_il_losses"):
        parse(["selection.name=rho_loss"])
    with pytest.raises(ValueError, match="underflows in fp16"):
        parse(["optimizer=sophiag", "precision=fp16"])
    with pytest.raises(SystemExit, match="did you mean"):
        parse(["train.staking.enabled=True"])


def test_the_published_budget_gives_the_published_number_of_updates():
    clock = BudgetClock(6, "rst_hours", RTX_3090)
    while not clock.done:
        clock.charge("train", 16, 1536)
        clock.settle()
    assert clock.steps == 7989


def test_the_script_runs_under_torchrun_and_is_finished_afterwards(words, tmp_path):
    out = tmp_path / "run"
    settings = [word if word.startswith("--") else f"--{word}" for word in only_what_counts(words)]
    settings = [word for word in settings if not word.startswith("--page")]
    done = run_script("pretrain_bert.py", *settings, "--out", str(out), processes=2)
    assert "finished:" in done.stdout
    assert json.loads((out / "run.json").read_text())["script"] == "pretrain_bert.py"
    again = run_script("pretrain_bert.py", *settings, "--out", str(out))
    assert "is finished" in again.stdout


@pytest.mark.parametrize("path", sorted((PROJECT / "configs/bert").glob("*/*.yaml")), ids=str)
def test_every_published_run_has_a_config_that_parses(path):
    config = parse([f"--config={path}"])
    assert config.model == "bert-c5" and config.batch == 1536 and config.max_length == 128
    given = yaml.safe_load(path.read_text())
    pinned = {"precision", "max_grad_norm"}
    assert pinned | ({"betas", "eps"} if config.optimizer == "adamw" else set()) <= given.keys()
    assert config.max_grad_norm == 0.5
    RTX_3090.require(config.model, config.max_length)
    command = next(
        line for line in path.read_text().splitlines() if "pretrain_bert.py --con" in line
    )
    assert f"configs/bert/{path.parent.name}/" in command


@pytest.mark.parametrize("method", ["selective_backprop", "rho_loss"])
def test_workers_make_what_is_scored_chosen_and_evaluated(method, words, tmp_path, monkeypatch):
    """Batch selection, Sophia's rows and evaluations too: the same run to the last bit."""
    here, collate = [], corpora.MlmData.collate

    def noted(self, rows, epoch):
        here.append(os.getpid())
        return collate(self, rows, epoch)

    monkeypatch.setattr(corpora.MlmData, "collate", noted)
    more = [f"selection.name={method}", "optimizer=sophiag", "sophia.every=2"]
    alone = train(words, tmp_path / "alone", *more)
    assert here
    here.clear()
    ahead = train(words, tmp_path / "ahead", *more, "workers=2")
    assert len(here) <= 2  # what is asked before the first step, of a batch or two
    assert losses_of(ahead) == losses_of(alone)
    wanted = weights_of(alone)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights_of(ahead).items())
    assert metrics_of(ahead)["loss"] == metrics_of(alone)["loss"]
