"""What PyTorch Lightning costs and what it gets wrong: run 2 beside its twin, run_6_light.py.

bash startup.sh setup --light
python bench.py lightning_twin --repeats 3 --steps 20 --threads 1

Lines of code; a run that is stopped in mid-epoch and continued; the validation of the same
weights on one process and on two; speed in alternating pairs. docs/lightning.md explains them.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks import WARM_UP, Measured, rates_of_run

PROJECT = Path(__file__).resolve().parent.parent
LIGHT, OURS = "run_6_light", "run_2_appendprompt"
REVIEWS = ["--data=reviews", "--lr=1e-4", "--head_lr=1e-3", "--page=false"]
# A few seconds each. Without dropout, so that only the rows can make a difference.
SMALL = [*REVIEWS, "--limit=250", "--batch=16", "--max_length=64", "--epochs=2", "--dropout=0"]


def run(arguments: argparse.Namespace) -> Measured:
    """Prints one finding a line; for the tables of speed it has none."""
    import torch

    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    print(lines_of_code())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = [*SMALL, f"--model={build_small_encoder(folder / 'model')}"]
        for script in (OURS, LIGHT):
            print(describe(stop_and_continue(script, small, folder / script, after=3)))
        total = len(steps_of(folder / f"{LIGHT} whole")[0])
        for line in mended(small, total, folder, after=3):
            print(line)
        print(second_epoch(small, folder / "second"))
        print(describe(stop_and_continue(LIGHT, small, folder / "two", after=3, processes=2)))
        print(describe(fewer_processes(small, folder / "two", folder / "one", after=3)))
        weights = folder / f"{LIGHT} whole/train/weights/last.ckpt"
        print("validation: " + json.dumps(validate(small, weights, folder / "val")))
        print(dropout_in_training(small, folder / "modes"))
        print(speed(arguments, folder / "speed"))
    return Measured()


def build_small_encoder(folder: Path) -> Path:
    """2 layers × 32 with random weights: for what depends on the rows and not on the model."""
    import torch
    from transformers import BertConfig, BertModel

    from models import pretrained

    tokenizer = pretrained.load_tokenizer("minilm")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=64, initializer_range=0.2, **sizes
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------- lines


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    numbers, start_of_statement = set(), True
    skipped = (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING)
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in skipped or token.type == tokenize.ENDMARKER:
                continue
            text = token.type == tokenize.STRING and start_of_statement
            start_of_statement = token.type == tokenize.NEWLINE
            if not text and token.type != tokenize.NEWLINE:
                numbers |= set(range(token.start[0], token.end[0] + 1))
    return len(numbers)


def lines_of_code() -> str:
    import lightning

    package = Path(lightning.__file__).parent
    groups = {f"{name}.py": [PROJECT / f"{name}.py"] for name in (LIGHT, OURS)}
    below = "core device files dealing collating gradients sending saving".split()
    groups["core.py and what it stands on"] = [PROJECT / f"{name}.py" for name in below]
    groups["runs/"] = list((PROJECT / "runs").glob("*.py"))
    groups["lightning's pytorch and fabric"] = [
        path for part in ("pytorch", "fabric") for path in (package / part).rglob("*.py")
    ]
    counts = (f"{name} {sum(map(code_lines, paths)):,}" for name, paths in groups.items())
    return "lines of code: " + "; ".join(counts)


# -------------------------------------------------------------------------- continuing


def train(script: str, words: list[str], out: Path, processes: int = 1) -> None:
    """One run: in this process, or with two as the script's users start them."""
    words = [*words, f"--out={out}"]
    if processes == 1:
        from settings import parse_settings

        module = importlib.import_module(script)
        with contextlib.redirect_stdout(sys.stderr):
            module.main(*parse_settings(module.Config, words, script))
        return
    if script == LIGHT:
        command = [sys.executable, f"{script}.py", *words, f"--devices={processes}"]
        command.append("--strategy=ddp")
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", f"{script}.py", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def steps_of(out: Path) -> tuple[list[float], list[int]]:
    """(loss, tokens) of every step; the tokens of a few steps tell which batches they were."""
    text = (out / "train/metrics/metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "train_loss" in line]
    ends = [0, *(line["tokens"] for line in lines)]
    tokens = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return [line["train_loss"] for line in lines], tokens


def compare(what: str, whole: Path, continued: Path, after: int, epochs: int = 2) -> dict[str, Any]:
    """A run that was continued after step `after` beside one that was never stopped."""
    losses, tokens = steps_of(whole)
    losses_again, tokens_again = steps_of(continued)
    in_epoch = len(losses) // epochs
    rest = tokens_again[after:in_epoch]  # what was left of the first epoch
    place = next((s for s in range(len(tokens)) if tokens[s : s + len(rest)] == rest), None)
    answers = [(out / "test/metrics/predictions.csv").read_bytes() for out in (whole, continued)]
    return {
        "what": what,
        "after": after,
        "in_epoch": in_epoch,
        "first": None if place is None else place + 1,
        "same_rows": tokens_again == tokens,
        "same_losses": losses_again == losses,
        "largest": max(abs(a - b) for a, b in zip(losses, losses_again, strict=True)),
        "same_predictions": answers[0] == answers[1],
    }


@contextlib.contextmanager
def stateful(total_steps: int | None) -> Iterator[None]:
    """run_6_light.py with torchdata's StatefulDataLoader, whose position Lightning saves.

    total_steps: given to the schedule, so that it does not ask Lightning; None: it asks.
    """
    import lightning as L
    from torchdata.stateful_dataloader import StatefulDataLoader

    import run_6_light

    count = contextlib.nullcontext()
    if total_steps is not None:
        count = mock.patch.object(L.Trainer, "estimated_stepping_batches", total_steps)
    with mock.patch.object(run_6_light, "DataLoader", StatefulDataLoader), count:
        yield


def stop_and_continue(
    script: str, words: list[str], out: Path, after: int, processes: int = 1
) -> dict[str, Any]:
    """Train whole; train, stop after some steps and continue with the same command."""
    whole = out.with_name(f"{out.name} whole")
    train(script, words, whole, processes)
    train(script, [*words, f"--stop_after={after}"], out, processes)
    train(script, words, out, processes)
    return compare(f"{script}, {processes} process(es)", whole, out, after)


def mended(words: list[str], total_steps: int, folder: Path, after: int) -> Iterator[str]:
    """What a stateful loader does for a run that is stopped in mid-epoch and continued."""
    with stateful(None):
        result = stop_and_continue(LIGHT, words, folder / "stateful", after)
        yield "StatefulDataLoader: " + describe(result)
    with stateful(total_steps):
        result = stop_and_continue(LIGHT, words, folder / "counted", after)
        yield "StatefulDataLoader, steps counted by hand: " + describe(result)
        result = stop_and_continue(LIGHT, [*words, "--dropout=0.1"], folder / "dropout", after)
        yield "StatefulDataLoader, steps counted by hand, dropout .1: " + describe(result)


def fewer_processes(words: list[str], two: Path, out: Path, after: int) -> dict[str, Any]:
    """Stopped on two processes, continued on one, beside two processes all the way."""
    stopped = out.with_name(f"{out.name} stopped")
    train(LIGHT, [*words, f"--stop_after={after}"], stopped, 2)
    train(LIGHT, [*words, f"--ckpt_path={stopped / 'train/weights/last.ckpt'}"], out)
    lines = (out / "train/metrics/metrics.jsonl").read_text()  # its log begins after the step
    before = (stopped / "train/metrics/metrics.jsonl").read_text()
    (out / "train/metrics/metrics.jsonl").write_text(before + lines)
    return compare(f"{LIGHT}, 2 processes, then 1", two.with_name(f"{two.name} whole"), out, after)


def describe(result: dict[str, Any]) -> str:
    after, end = result["after"], result["in_epoch"]
    if result["same_losses"]:
        return (
            f"{result['what']}, stopped after step {after} of {end}: continued bit for bit, "
            f"{'the same' if result['same_predictions'] else 'OTHER'} test predictions"
        )
    rows = "batches that the run without a stop never saw"
    if result["same_rows"]:
        rows = "the right rows"
    elif result["first"]:
        rows = f"the batches of steps {result['first']} to {result['first'] + end - after - 1}"
    return (
        f"{result['what']}, stopped after step {after} of {end}: steps {after + 1} to {end} ran on "
        f"{rows}; losses differ by up to {result['largest']:.3f}"
    )


def second_epoch(words: list[str], out: Path) -> str:
    """One epoch, then the second from the checkpoint that ended the first: which rows?"""
    answers = {}
    for name, processes in (("1 process", 1), ("2 processes", 2)):
        whole, first, second = (out / f"{name} {part}" for part in ("whole", "first", "second"))
        train(LIGHT, words, whole, processes)
        train(LIGHT, [*words, "--epochs=1"], first, processes)
        saved = f"--ckpt_path={first / 'train/weights/last.ckpt'}"
        train(LIGHT, [*words, saved], second, processes)
        tokens, again = steps_of(whole)[1], steps_of(second)[1]
        again[0] -= sum(steps_of(first)[1])  # the count goes on from the checkpoint's
        half = len(tokens) // 2
        orders = {"the second epoch's": tokens[half:], "the first epoch's again": tokens[:half]}
        answers[name] = next((k for k, order in orders.items() if order == again), "another")
    return "continued between two epochs, the order of the rows is: " + json.dumps(answers)


# -------------------------------------------------------------------------- validation


def open_task(words: list[str], out: Path) -> tuple[Any, Any]:
    """(experiment, module) of run_6_light.py, as it makes them before it trains."""
    import core
    import run_6_light
    import runs
    from settings import parse_settings

    config, _ = parse_settings(run_6_light.Config, [*words, f"--out={out}"], "bench.py")
    world = core.single_world("cpu")
    with contextlib.redirect_stdout(sys.stderr), runs.Run(config, world) as run:
        experiment = run_6_light.Task(config, world, run.folder)
        run.end("stopped", "measured")
        return experiment, experiment.build_module()


def each_row_once(loader: Any) -> Any:
    """The same loader with a sampler that gives each process every n-th row, no row twice."""
    import torch
    from torch.utils.data import DataLoader, Sampler

    class EachRowOnce(Sampler):
        def mine(self) -> range:
            world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
            first = torch.distributed.get_rank() if world > 1 else 0
            return range(first, len(loader.dataset), world)

        def __iter__(self) -> Iterator[int]:
            return iter(self.mine())

        def __len__(self) -> int:
            return len(self.mine())

    parts = {"sampler": EachRowOnce(), "collate_fn": loader.collate_fn}
    return DataLoader(loader.dataset, loader.batch_size, **parts)


def with_torchmetrics(module: Any) -> Any:
    """The same module with sums that torchmetrics adds up over the processes, in place of
    self.log of a mean."""
    import torch
    from torchmetrics import MeanMetric

    import run_6_light

    class Metrics(run_6_light.PairModule):
        def __init__(self) -> None:
            super().__init__(module.config, module.model)
            self.mean = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "accuracy")})

        def validation_step(self, batch: dict, batch_idx: int) -> None:
            loss, logits = self.loss(batch)
            right = (logits.argmax(dim=-1) == batch["labels"]).float()
            self.mean["loss"].update(loss, len(right))
            self.mean["accuracy"].update(right)
            self.log_dict({f"val_{name}": metric for name, metric in self.mean.items()})

    return Metrics()


def validate(words: list[str], weights: Path, out: Path) -> dict[str, dict[str, float]]:
    """val_loss and val_accuracy of the same weights on an odd number of rows: by core, by Lightning
    on one and on two processes, and there with a sampler that deals each row once."""
    import torch

    import run_6_light
    from data.pairs import PairData
    from evaluation import metrics
    from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
    from experiments.preference import predict_pairs

    torch.set_num_threads(1)
    experiment, module = open_task(words, out)
    saved = torch.load(weights, map_location="cpu", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    val, config, world = experiment.val, experiment.config, experiment.world
    odd = val.index[: (len(val.index) - 1) // 2 * 2 + 1]
    val = PairData(val.ids, odd, val.labels, val.pad, val.max_length)
    loader = run_6_light.build_loader(val, config)
    once = each_row_once(loader)

    def by_lightning(loader: Any, devices: int, module: Any = module, **more: Any) -> dict:
        more |= {"strategy": "ddp_fork"} if devices > 1 else {}
        more |= {"devices": devices, "enable_progress_bar": False}
        trainer = run_6_light.build_trainer(config, world, "fp32", **more)
        # a forked process must not compute with threads, for those stayed behind
        one = mock.patch.dict(os.environ, OMP_NUM_THREADS="1")
        with contextlib.redirect_stdout(sys.stderr), one:
            return trainer.validate(module, loader)[0]

    state = SimpleNamespace(model=module.model, world=world, autocast=contextlib.nullcontext)
    p, _ = predict_pairs(state, val, average=False)
    exact = metrics.classification_metrics(
        p, val.labels[odd], range(len(odd)), CLASSES, intervals=False
    )
    own = {"use_distributed_sampler": False}
    return {
        "rows": len(odd),
        "core": {"val_loss": exact["log_loss"], "val_accuracy": exact["accuracy"]},
        "1 process": by_lightning(loader, 1),
        "2 processes": by_lightning(loader, 2),
        "2 processes, each row once": by_lightning(once, 2, **own),
        "2 processes, each row once, torchmetrics": by_lightning(
            once, 2, with_torchmetrics(module), **own
        ),
    }


def dropout_in_training(words: list[str], out: Path) -> str:
    """How many dropouts are on in a step of Lightning, if nobody calls train()."""
    import lightning as L
    from torch import nn

    import run_6_light

    class Look(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, module: L.LightningModule, *_: Any
        ) -> None:
            layers = [m for m in module.modules() if isinstance(m, nn.Dropout)]
            self.counts = sum(layer.training for layer in layers), len(layers)

    experiment, module = open_task([*words, "--warmup_frac=0"], out)
    module.model.encoder.eval()  # as from_pretrained gives it
    look = Look()
    trainer = run_6_light.build_trainer(
        experiment.config,
        experiment.world,
        "fp32",
        callbacks=[look],
        max_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, experiment.train_loader())
    return (
        f"from_pretrained, then fit: dropout is on in {look.counts[0]} of {look.counts[1]} layers"
    )


# ------------------------------------------------------------------------------- speed


def speed(arguments: argparse.Namespace, folder: Path) -> str:
    """Whole runs of both scripts in turns, each in a process of its own, same rows and steps.

    Beside the rate by the clock the processor seconds of the whole command, which other work on
    the machine blurs less.
    """
    limit = f"--limit={(arguments.steps + WARM_UP) * 20}"  # four fifths of them are for training
    words = ["--model=minilm", *REVIEWS, limit, "--batch=16", "--max_length=64", "--epochs=1"]
    figures: dict[str, list[dict[str, float]]] = {OURS: [], LIGHT: []}
    for repeat in range(arguments.repeats):
        for script in (OURS, LIGHT) if repeat % 2 == 0 else (LIGHT, OURS):
            out, before = folder / f"{repeat} {script}", processor_seconds()
            command = [sys.executable, f"{script}.py", *words, f"--out={out}"]
            subprocess.run(command, cwd=PROJECT, capture_output=True, check=True)
            figures[script].append({**rates_of_run(out), "seconds": processor_seconds() - before})
    pairs = list(zip(figures[OURS], figures[LIGHT], strict=True))
    rates = sorted(a["examples_per_second"] / b["examples_per_second"] for a, b in pairs)
    whole = sorted(b["seconds"] / a["seconds"] for a, b in pairs)
    losses = [statistics.mean(each["loss"] for each in figures[script]) for script in figures]
    void = "" if abs(losses[0] - losses[1]) < 0.1 else "VOID, the losses do not agree: "
    return (
        f"speed: {void}{OURS} trains {statistics.median(rates):.2f} times as many rows a second "
        f"({rates[0]:.2f} to {rates[-1]:.2f} in {len(pairs)} pairs); {LIGHT} takes "
        f"{statistics.median(whole):.2f} times the processor seconds for the whole command "
        f"({whole[0]:.2f} to {whole[-1]:.2f}); losses {losses[0]:.3f} and {losses[1]:.3f}"
    )


def processor_seconds() -> float:
    """Of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
