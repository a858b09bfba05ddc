"""What check.py looks at: a function an item, which returns figures or raises where one is wrong.

Each runs in a process of its own, on tiny models with random weights and on data of pip packages;
figures of speed are of real sizes where there is a GPU.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import PROJECT, lines_of_run

Figures = dict[str, Any]
HALVED = "out of memory; "
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


class LeftOut(Exception):
    """Why this machine has nothing to show here."""


@dataclasses.dataclass
class Item:
    look: Callable[["Place"], Figures]
    seconds: int  # that it should take; twice as many are its limit
    needs: tuple[str, ...] = ()  # of cuda, gpu, two


@dataclasses.dataclass
class Place:
    """Where an item works."""

    device: str  # cuda, xpu, mps or cpu
    count: int  # of them
    folder: Path  # empty, the item's own

    @property
    def small(self) -> bool:
        return self.device == "cpu"


ITEMS: dict[str, Item] = {}


def item(seconds: int, *needs: str) -> Callable:
    def note(look: Callable[[Place], Figures]) -> Callable:
        ITEMS[look.__name__] = Item(look, seconds, needs)
        return look

    return note


def require(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)


def close(what: str, found: float, expected: float, tolerance: float) -> float:
    """How far two figures are apart, as a share; AssertionError beyond the tolerance."""
    apart = abs(found - expected) / max(abs(expected), 1e-12)
    require(apart <= tolerance, f"{what}: {found:.7g} beside {expected:.7g}")
    return apart


# ------------------------------------------------------------------------------ trainings

FEW = ["--lr=1e-3", "--schedule=constant", "--warmup_frac=0", "--page=false"]
FEW += ["--machine_log=false", "--eval_every=1000000"]
TITLES = ["--data=reviews", "--limit=600", "--n_layer=2", "--n_head=2", "--n_embd=64"]
TITLES += ["--vocab_size=400", "--batch=32", "--dropout=0", "--r_drop=0", *FEW]


def words_of(name: str, folder: Path) -> tuple[str, list[str]]:
    """(script, settings) of a small run without dropout."""
    small = ["--max_length=64", "--batch=16", *FEW]
    if name in ("pairs", "texts"):
        encoder = folder / "encoder"
        if not encoder.exists():
            build_encoder(encoder)
        if name == "pairs":
            words = [f"--model={encoder}", "--data=reviews", "--limit=300", "--dropout=0", *small]
            return "run_5_models", words
        return "eval_bert", [f"--model={encoder}", "--suite=sentiment", "--limit=300", *small]
    if name == "documents":
        words = ["--task=reviews_text", "--init=random", "--size=tiny", "--limit=120"]
        return "finetune_gpt2", [
            *words,
            "--stride=64",
            "--dropout=0",
            "--attention_texts=0",
            *small,
        ]
    if name == "instructions":
        words = ["--data=reviews", "--init=random", "--size=tiny", "--limit=200", "--dropout=0"]
        return "alpaca_sft", [*words, "--sample_tokens=0", "--baseline=false", *small]
    if name == "titles":
        return "train_headlines", TITLES
    words = ["--model=bert-tiny", "--data=reviews", "--limit=400", "--vocab_size=2000"]
    return "pretrain_bert", [*words, "--budget=null", "--validation.truncate_to=20", *small]


EXPERIMENTS = ("pairs", "texts", "documents", "titles", "masked")


def build_encoder(folder: Path, **shape: int) -> None:
    """A BERT without dropout from random weights, with the vocabulary of a pip package."""
    import torch
    from transformers import BertConfig, BertModel

    from models import pretrained

    pretrained.quiet_transformers()
    tokenizer = pretrained.load_tokenizer("minilm")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    shape = {**small, "intermediate_size": 128, **shape}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **shape, **none), False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(place: Place, name: str, out: str, *words: str, device: str = "") -> list[dict]:
    """A run in this process; its training lines."""
    import importlib

    from settings import parse_settings

    script, own = words_of(name, place.folder)
    folder = place.folder / out
    given = {word.partition("=")[0] for word in words}
    own = [word for word in own if word.partition("=")[0] not in given]
    own += [f"--device={device or place.device}", f"--out={folder}", *words]
    module = importlib.import_module(script)
    with contextlib.redirect_stdout(sys.stderr):
        module.main(*parse_settings(module.Config, own, script, getattr(module, "ALIASES", None)))
    return lines_of_run(folder)


def weights_digest(folder: Path) -> str:
    return hashlib.sha256(
        (folder / "train/weights/final/model.safetensors").read_bytes()
    ).hexdigest()


def start(place: Place, name: str, out: str, *words: str, processes: int = 1) -> list[str]:
    """The command of a run as a process of its own, or of several under torchrun."""
    script, own = words_of(name, place.folder)
    given = {word.partition("=")[0] for word in words}
    own = [word for word in own if word.partition("=")[0] not in given]
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    own += [f"--device={place.device}", f"--out={place.folder / out}", *words]
    return [*launch, str(PROJECT / f"{script}.py"), *own]


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until that many steps are logged."""
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if len(lines_of_run(folder)) >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"ended with code {process.returncode} before step {step}")


# ---------------------------------------------------------------------------------- items


@item(10)
def machine(place: Place) -> Figures:
    """What torch sees, and what a run would choose."""
    import torch

    import device

    seen = device.look_at_machine()
    warned = device.machine_warnings(seen, place.device)
    require(not warned, "; ".join(warned))
    facts = {name: value for name, value in dataclasses.asdict(seen).items() if value}
    kind = torch.device(place.device)
    precision = device.choose_precision("auto", place.device, seen)
    facts |= {"name": device.device_name(kind), "precision": precision, "count": place.count}
    facts["attention"] = device.choose_attention("auto", place.device, precision, seen)
    facts["backend"] = device.choose_backend("auto", place.device, seen)
    if place.device in ("cuda", "xpu"):
        properties = getattr(torch, place.device).get_device_properties(0)
        facts["memory_gb"] = round(properties.total_memory / 1e9, 1)
    return facts


@item(40)
def smoke(place: Place) -> Figures:
    """One step, a checkpoint, going on from it, a test and a prediction, as people start them."""
    out = place.folder / "smoke"
    script = [sys.executable, str(PROJECT / "run_5_models.py")]
    config = ["--config", str(PROJECT / "configs/preference/smoke.yaml"), f"--out={out}"]
    for more, status in ((["--stop_after=1"], "stopped"), ([], "finished")):
        call([*script, *config, f"--device={place.device}", "--page=false", *more])
        found = json.loads((out / "run.json").read_text())["status"]
        require(found == status, f"run.json says {found}, not {status}")
    asked = ["--prompt=x", "--response_a=y", "--response_b=z"]
    answer = call([*script, "predict", f"--run_folder={out}", *asked])
    return {"prediction": json.loads(answer.strip().splitlines()[-1])}


def call(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment)
    require(not done.returncode, f"{command[1]}: code {done.returncode}: {done.stderr[-600:]}")
    return done.stdout


@item(45)
def equals_cpu(place: Place) -> Figures:
    """Three steps in fp32 without dropout: loss and norm of the gradient as on the CPU."""
    apart = {}
    for name in EXPERIMENTS:
        words = ["--precision=fp32", "--stop_after=3"]
        here = train(place, name, f"{name} here", *words)
        there = train(place, name, f"{name} cpu", *words, device="cpu")
        apart[name] = max(
            close(f"{name}, step {line['step']}, {key}", line[key], other[key], 1e-4)
            for line, other in zip(here, there, strict=True)
            for key in ("train_loss", "grad_norm")
        )
    return {"apart_at_most": apart}


@item(60)
def repeats(place: Place) -> Figures:
    """--deterministic: twice the same bits, also stopped and killed on the way."""
    words = ["--epochs=0.35", "--deterministic=true", "--save_every=1"]
    few = ["adamw", "sophiag"] if place.small else ["adamw", "lion", "sophiag", "muon", "sgd"]
    for optimizer in few:
        own = [*words, f"--optimizer={optimizer}"]
        train(place, "titles", f"{optimizer} 1", *own)
        train(place, "titles", f"{optimizer} 2", *own, "--stop_after=3")
        train(place, "titles", f"{optimizer} 2", *own)
        same(place, f"{optimizer} 1", f"{optimizer} 2")
    command = start(place, "titles", "killed", *words, "--optimizer=adamw")
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    try:
        wait_for_step(process, place.folder / "killed", 3)
    finally:
        process.kill()
        process.wait()
    train(place, "titles", "killed", *words, "--optimizer=adamw")
    same(place, "adamw 1", "killed")
    return {"optimizers": few, "killed": True}


def same(place: Place, one: str, other: str) -> None:
    both = {weights_digest(place.folder / name) for name in (one, other)}
    require(len(both) == 1, f"the weights of '{one}' and '{other}' differ")


@item(10)
def masks(place: Place) -> Figures:
    """Dropout's masks from a seed: the same again, and by their hash on which GPUs alike."""
    import torch
    import torch.nn.functional as F

    import device

    kind = torch.device(place.device)

    def mask(seed: int) -> str:
        device.seed_everything(seed, kind)
        values = F.dropout(torch.ones(512, 1024, device=kind), 0.1)
        return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:16]

    first, again, other = mask(1), mask(1), mask(2)
    require(first == again, "one seed, two masks")
    require(first != other, "two seeds, one mask")
    return {"mask": first}


@item(30)
def precisions(place: Place) -> Figures:
    """The training loss of titles in each precision ends where that of fp32 does."""
    ends = {}
    for precision in ["fp32", "bf16"] + ["fp16"] * (not place.small):
        lines = train(place, "titles", precision, f"--precision={precision}", "--stop_after=25")
        ends[precision] = statistics.mean(line["train_loss"] for line in lines[-5:])
        close(precision, ends[precision], ends["fp32"], 0.03)
    return {"last_losses": ends}


@item(40, "gpu")
def out_of_memory(place: Place) -> Figures:
    """With six tenths of the memory that a run takes it halves its micro-batches, and ends with the
    same losses."""
    import torch

    kind = getattr(torch, place.device)
    if not hasattr(kind, "set_per_process_memory_fraction"):
        raise LeftOut(f"torch.{place.device} cannot bound a process's memory")
    words = ["--batch=512", "--micro_batch=512", "--limit=4000", "--n_embd=256", "--n_layer=4"]
    words += ["--n_head=4", "--precision=fp32", "--stop_after=3"]
    kind.reset_peak_memory_stats()
    expected = train(place, "titles", "free", *words)
    peak = kind.max_memory_allocated()
    kind.empty_cache()
    total = kind.get_device_properties(0).total_memory
    kind.set_per_process_memory_fraction(0.6 * peak / total)
    said = open(place.folder / "said", "w+")
    with said, contextlib.redirect_stderr(said):
        lines = train(place, "titles", "bounded", *words)
        said.seek(0)
        text = said.read()
    require(HALVED in text, "memory was bounded, and nothing was halved")
    apart = [
        close(f"step {line['step']}", line["train_loss"], other["train_loss"], 1e-4)
        for line, other in zip(lines, expected, strict=True)
    ]
    return {"peak_gb": peak / 1e9, "apart_at_most": max(apart), "halvings": text.count(HALVED)}


@item(25)
def attention(place: Place) -> Figures:
    """Each kernel computes what eager attention does, of padded rows and of decoders."""
    import torch
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    import core
    from device import autocast, choose_precision, to_device
    from experiments.experiment import place as put
    from models import causal

    world = core.single_world(place.device)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = ["sdpa"]
    flash = world.machine.flash_attn and not world.machine.flash_attn_error
    if place.device == "cuda" and flash:
        kinds.append("flash_attention_2")
    ids = torch.randint(5, 90, (4, 40), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) < torch.tensor([40, 31, 8, 3])[:, None]).long()
    apart = {}
    precision = choose_precision("auto", place.device, world.machine)

    def states(build: Callable[[str], Any], kernel: str, precision: str) -> Any:
        torch.manual_seed(0)
        model = put(build(kernel), world).eval()
        batch = to_device({"input_ids": ids, "attention_mask": mask}, world.device)
        with torch.no_grad(), autocast(world.device, precision):
            if hasattr(model, "lm_head"):
                return causal.last_hidden(model, batch)[mask.bool()].float().cpu()
            return model(**batch).last_hidden_state[mask.bool()].float().cpu()

    builds = {
        "bert": lambda kernel: BertModel(
            BertConfig(vocab_size=100, **shape, attn_implementation=kernel), False
        ),
        "gpt2": lambda kernel: GPT2LMHeadModel(
            GPT2Config(vocab_size=100, n_embd=128, n_layer=2, n_head=2, attn_implementation=kernel)
        ),
    }
    for name, build in builds.items():
        for kernel in kinds:
            half = precision if kernel != "sdpa" else "fp32"
            found, expected = states(build, kernel, half), states(build, "eager", "fp32")
            far = float((found - expected).abs().max())
            require(far < (2e-3 if half == "fp32" else 0.1), f"{name}, {kernel}: {far:.3g} apart")
            apart[f"{name}, {kernel}, {half}"] = far
    return {"apart_at_most": apart, "precision": precision}


@item(75)
def compiled(place: Place) -> Figures:
    """torch.compile: as many graphs as there are shapes, and the losses of eager code."""
    import torch

    if place.small and not shutil.which("g++"):
        raise LeftOut("torch.compile needs a C++ compiler on a CPU")
    steps = ["--stop_after=6", "--precision=fp32", "--length_steps=2"]
    names, found = ("masked",) if place.small else ("pairs", "masked"), {}
    for name in names:
        words = [word for word in steps if name == "pairs" or "length_steps" not in word]
        eager = train(place, name, f"{name} eager", *words)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        lines = train(place, name, f"{name} compiled", *words, "--compile=true")
        counted = torch._dynamo.utils.counters
        graphs = counted["stats"].get("unique_graphs", 0)
        require(0 < graphs <= 48, f"{name}: {graphs} graphs")
        apart = [
            close(f"{name}, step {a['step']}", a["train_loss"], b["train_loss"], 2e-3)
            for a, b in zip(lines, eager, strict=True)
        ]
        breaks = sum(counted["graph_break"].values())
        found[name] = {"graphs": graphs, "breaks": breaks, "apart_at_most": max(apart)}
    return found


@item(40, "two")
def sharded(place: Place) -> Figures:
    """FSDP2 on two ranks has the losses of one process."""
    found = {}
    for precision, far in (("fp32", 1e-4), ("bf16", 1e-2)):
        words = [f"--precision={precision}", "--stop_after=3"]
        ours, whole = f"sharded {precision}", f"whole {precision}"
        call(start(place, "instructions", ours, *words, "--shard=true", processes=2))
        call(start(place, "instructions", whole, *words))
        both = zip(*(lines_of_run(place.folder / n) for n in (ours, whole)), strict=True)
        found[precision] = max(
            close(f"{precision}, step {a['step']}", a["train_loss"], b["train_loss"], far)
            for a, b in both
        )
    return {"apart_at_most": found}


@item(15, "cuda")
def waits(place: Place) -> Figures:
    """A step waits for the GPU twice at most, a micro-batch never."""
    import torch

    import core

    counted: dict[str, list[int]] = {}
    step = core.train_step
    for name in EXPERIMENTS:
        own = counted[name] = []

        def watched(*given: Any, _own: list[int] = own, **more: Any) -> Any:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    return step(*given, **more)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                    _own.append(sum("synchroniz" in str(w.message) for w in said))

        core.train_step = watched
        try:
            train(place, name, name, "--stop_after=4")
        finally:
            core.train_step = step
    for name, numbers in counted.items():
        require(max(numbers[1:]) <= 2, f"{name}: {numbers[1:]} waits in the steps after the first")
    return {"waits": counted}


@item(25)
def checkpoints(place: Place) -> Figures:
    """Megabytes a second of writing, checking and reading a state."""
    import torch
    from transformers import BertConfig, BertModel

    import core
    import saving
    from files import damage, write_folder
    from settings import Settings

    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**shape, intermediate_size=512) if place.small else BertConfig()
    world = core.single_world(place.device)
    model = BertModel(config, False).to(world.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = SimpleNamespace(position=0, micro_batch=1, join_tokens=0, seek=lambda position: None)
    clock = core.StepClock(1)
    parts = (Settings(), world, model, optimizer, loader, clock, lambda fraction: 1.0)
    state = core.State(*parts)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = place.folder / "step_00000001"
    times = [time.perf_counter()]
    parts = core.saved_parts(state)
    write_folder(folder, lambda beside: saving.write_files(*parts, beside))
    times.append(time.perf_counter())
    require(damage(folder) is None, str(damage(folder)))
    times.append(time.perf_counter())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state.load_state_dict(core.read_checkpoint(state, folder))
    times.append(time.perf_counter())
    after = model.state_dict()
    require(all(torch.equal(before[name], after[name]) for name in before), "other weights read")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    names = ("writing", "checking", "reading")
    rates = {
        f"{name}_mb_per_second": round(size / (end - begin))
        for name, begin, end in zip(names, times, times[1:], strict=False)
    }
    return {"megabytes": round(size), **rates}


@item(20)
def generation(place: Place) -> Figures:
    """Answers in fp32 as the CPU writes them, and tokens a second."""
    import torch

    import core
    from experiments.experiment import place as put
    from models import causal, generation
    from models.decoding import Decoding

    config = causal.load_config("tiny" if place.small else "gpt2", "random")
    tokenizer = causal.load_tokenizer("gpt2", "random")
    prompts = [f"The film number {number} was" for number in range(16)]
    answers, seconds = {}, {}
    for kind in (place.device, "cpu"):
        model = causal.load_model("gpt2", config, None, "random", tokenizer=tokenizer)
        model = put(model, core.single_world(kind)).eval()
        count = 16 if kind != "cpu" or place.small else 4
        began = time.perf_counter()
        decoding = Decoding(max_new_tokens=16, temperature=0.0)
        answers[kind] = generation.generate(model, tokenizer, prompts[:count], decoding)
        seconds[kind] = time.perf_counter() - began
        del model
        torch.manual_seed(0)
    equal = [a.text == b.text for a, b in zip(answers[place.device], answers["cpu"], strict=False)]
    require(sum(equal) >= 0.7 * len(equal), f"{sum(equal)} of {len(equal)} answers are the CPU's")
    rate = 16 * 16 / seconds[place.device]
    return {"equal_answers": f"{sum(equal)} of {len(equal)}", "tokens_per_second": round(rate)}


@item(150, "gpu")
def speed(place: Place) -> Figures:
    """Tokens a second in bf16 at real sizes, beside Trainer and TRL where they are installed."""
    found: Figures = {}
    rows = place.folder / "rows.json"
    draw = random.Random(0)
    words = [f"{what} {number}" for what in ("film", "song", "dish") for number in range(300)]
    said = lambda count: " ".join(draw.choices(words, k=count))  # noqa: E731
    lines = [{"instruction": said(12), "output": said(draw.randint(20, 90))} for _ in range(400)]
    rows.write_text(json.dumps(lines))
    for name in ("preference", "mlm", "causal", "sft", "sft --tasks=lora"):
        words = ["--size=base", f"--device={place.device}", "--precision=bf16", "--steps=12"]
        words += ["--repeats=1", f"--output={place.folder / 'bench.json'}"]
        words += [f"--data={rows}"] * name.startswith("sft")
        done = subprocess.run(
            [sys.executable, str(PROJECT / "bench.py"), *name.split(), *words],
            capture_output=True,
            text=True,
            cwd=PROJECT,
        )
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        found[name] = lines[-1][:300] if lines else f"code {done.returncode}"
        if done.returncode and "is not here" not in found[name]:
            raise AssertionError(f"{name}: {done.stderr[-600:]}")
    return found


SUMS = """
import json, os, sys
import torch
import torch.distributed as dist
import core, gradients
from settings import Settings

with core.distributed(Settings(device=sys.argv[1])) as world:
    def drawn(rank):
        draw = torch.Generator().manual_seed(rank)
        parts = [torch.randn(shape, generator=draw) for shape in [(3000, 500), (7,), (400, 600)]]
        return [part.to(world.device) for part in parts]

    wanted = [a + b for a, b in zip(drawn(0), drawn(1))]  # of two the order is no matter
    apart = {}
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        parameters = [torch.nn.Parameter(torch.zeros_like(part)) for part in wanted]
        sums = gradients.GradientSums(dtype)
        sums.start(parameters)
        sum((p * g).sum() for p, g in zip(parameters, drawn(world.rank))).backward()
        sums.flush(world.device)
        sums.wait()
        far = max(float((p.grad - w).abs().max()) for p, w in zip(parameters, wanted))
        apart[name] = world.sum(torch.tensor([far], device=world.device)).item()
    plain = drawn(world.rank)
    for part in plain:
        dist.all_reduce(part)
    equal = all(torch.equal(part, w) for part, w in zip(plain, wanted))
    if world.rank == 0:
        print(json.dumps({"all_reduce_equal": equal, "apart": apart, "backend": world.backend}))
"""


@item(10, "two")
def sums(place: Place) -> Figures:
    """Two ranks' all_reduce, and sums of gradients, are what one process adds up, bit for bit; in
    bf16 as far as it rounds."""
    found = json.loads(call_script(place, SUMS, place.device).strip().splitlines()[-1])
    require(found["all_reduce_equal"], "all_reduce of two ranks is not their sum")
    require(found["apart"]["fp32"] == 0, f"sums of gradients are {found['apart']['fp32']:.3g} off")
    require(found["apart"]["bf16"] < 0.2, f"sums in bf16 are {found['apart']['bf16']:.3g} off")
    return found


def call_script(place: Place, text: str, *words: str) -> str:
    """What a script says that two ranks run."""
    script = place.folder / "script.py"
    script.write_text(text)
    return call([*TWO, str(script), *words])


@item(25, "gpu", "two")
def overlap(place: Place) -> Figures:
    """Milliseconds a step of two ranks: gradients summed inside the backward pass, by torch's DDP
    wrapper, and after it."""
    said = call([*TWO, "-m", "benchmarks.overlap", "20", "bert-base", place.device])
    found = json.loads(said.strip().splitlines()[-1])
    ours, peer = found.pop("weights")
    close("norm of the weights beside DDP's", ours, peer, 1e-4)
    names = ("ours", "ddp", "after")
    return {f"{name}_ms": round(1000 * statistics.median(found[name]), 2) for name in names}


FAILING = """
import os
import run_5_models, runs
from experiments.preference import Preference

def fail(*given):
    raise RuntimeError("a rank of two")

if os.environ["RANK"] == "1":
    Preference.loss_sum = fail
if __name__ == "__main__":
    runs.launch(run_5_models.main, run_5_models.Config)
"""
SHORT_OF_MEMORY = """
import os
import torch
import run_5_models, runs
from experiments.preference import Preference

whole, calls = Preference.loss_sum, []

def short(*given):
    calls.append(1)
    if len(calls) == 3:
        raise torch.OutOfMemoryError("out of memory: the check's own")
    return whole(*given)

if os.environ["RANK"] == "1":
    Preference.loss_sum = short
if __name__ == "__main__":
    runs.launch(run_5_models.main, run_5_models.Config)
"""


@item(15, "two")
def one_rank_short_of_memory(place: Place) -> Figures:
    """Memory that runs out on one rank of two: both halve, and have the losses of a run with
    enough."""
    words = ["--precision=fp32", "--stop_after=4"]
    said = call(
        as_script(place, SHORT_OF_MEMORY, start(place, "pairs", "short", *words, processes=2))
    )
    require(HALVED in said, "a rank had too little memory, and nothing was halved")
    call(start(place, "pairs", "enough", *words, processes=2))
    both = zip(*(lines_of_run(place.folder / n) for n in ("short", "enough")), strict=True)
    apart = [close(f"step {a['step']}", a["train_loss"], b["train_loss"], 1e-4) for a, b in both]
    return {"apart_at_most": max(apart)}


def as_script(place: Place, text: str, command: list[str]) -> list[str]:
    """The command with another script in the place of run_5_models.py."""
    script = place.folder / "script.py"
    script.write_text(text)
    return [str(script) if word == str(PROJECT / "run_5_models.py") else word for word in command]


@item(30, "two")
def one_rank_fails(place: Place) -> Figures:
    """An error on one rank of two ends both within a minute."""
    command = as_script(place, FAILING, start(place, "pairs", "failed", processes=2))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    require(done.returncode != 0, "an error of a rank ended with code 0")
    require("a rank of two" in done.stderr, done.stderr[-600:])
    return {"seconds_to_the_end": round(time.perf_counter() - began, 1)}


@item(30)
def stops(place: Place) -> Figures:
    """SIGTERM: saved within five seconds by all ranks, and the same command goes on."""
    processes = 2 if place.count > 1 or place.small else 1
    words = ["--epochs=50", "--save_every=1000000"]
    command = start(place, "titles", "stopped", *words, processes=processes)
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    folder, began = place.folder / "stopped", math.inf
    try:
        wait_for_step(process, folder, 2)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        while json.loads((folder / "run.json").read_text())["status"] != "stopped":
            require(time.perf_counter() - began < 30, "no run.json says stopped after 30 s")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
    require(seconds <= 5, f"saved {seconds:.1f} s after SIGTERM")
    return {"seconds_to_saved": round(seconds, 2), "processes": processes}


def look(name: str, device: str, count: int) -> Figures:
    """One item in this process: {"ok": …, its figures or its error}."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, count, Path(folder))
        try:
            return {"ok": True, **ITEMS[name].look(place)}
        except LeftOut as why:
            return {"ok": None, "left_out": str(why)}
        except Exception as error:  # of any kind: it is what is looked for
            text = " ".join(str(error).split())[:800]
            return {"ok": False, "error": f"{type(error).__name__}: {text}"}
