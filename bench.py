"""How fast is it, beside what people would use instead? Comparisons, measured in pairs.

    bash startup.sh setup --bench
    python bench.py mlm                       # pretraining against transformers' Trainer
    python bench.py mlm --repeats 5 --steps 30 --output bench.json
    python bench.py preference --peer lightning
    python bench.py causal --repeats 3 --steps 5
    python bench.py phase1 --repeats 3 --epochs 3
    python bench.py monitoring --repeats 20 --steps 20
    python bench.py glue --data FOLDER --tasks rte,mrpc,cola,stsb     # not speed: is it as good?
    python bench.py all --data FOLDER --output bench.json --markdown bench.md --picture bench.png
    python bench.py table --output bench.json --markdown bench.md     # of what was measured before
    python bench.py all --quick               # does everything run? Tiny, one pair, says no speed

A comparison is a file in benchmarks/. Ours and the peer run as processes of their own, one after
the other, in turns: a machine's speed drifts, and only the ratio of neighbours says anything. Same
model, rows, batch, steps, precision and threads. The first steps of each are not counted. Where
the final losses do not agree, the comparison is void.

all: FOLDER holds preference/pandalm.csv, alpaca/alpaca_en_demo.json, headlines/hn_titles.txt and
glue/MRPC; what it lacks is left out. --output collects: what was measured by the same command
before is replaced.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmarks
import console
from benchmarks import Line, Measured, run_side

# of verdicts, and what pages show: python -m benchmarks.NAME
OTHERS = set("bank check coverage documents effects noise outcomes published race votes".split())
COMPARISONS = sorted(
    {p.stem for p in (Path(__file__).parent / "benchmarks").glob("[!_]*.py")} - OTHERS
)
# of all; {data}: a file or folder of --data
PLAN = [
    "preference --data {data}/preference/pandalm.csv --repeats 3 --steps 8",
    "preference --data {data}/preference/pandalm.csv --repeats 3 --steps 8 --precision bf16",
    "preference --repeats 3 --steps 8",
    "preference --peer trainer_grouped --data {data}/preference/pandalm.csv --repeats 2 --steps 6",
    "preference --peer trainer_compiled --data {data}/preference/pandalm.csv --repeats 1 --steps 6",
    "preference --peer lightning --data {data}/preference/pandalm.csv --repeats 2 --steps 6",
    "cross_encoder --data {data}/glue --repeats 2 --steps 12",
    "frozen --repeats 1",
    "mlm --repeats 2 --steps 6",
    "causal --repeats 2 --steps 3",
    "headlines --data {data}/headlines/hn_titles.txt --repeats 5 --steps 20 --precision bf16",
    "headlines --data {data}/headlines/hn_titles.txt --repeats 2 --steps 12 --precision bf16"
    " --width 128",
    "headlines --data {data}/headlines/hn_titles.txt --repeats 2 --steps 8 --precision bf16"
    " --width 512",
    "headlines --data {data}/headlines/hn_titles.txt --repeats 2 --steps 12 --precision bf16"
    " --eager",
    "headlines --data {data}/headlines/hn_titles.txt --repeats 2 --steps 6",
    "sft --data {data}/alpaca/alpaca_en_demo.json --repeats 2 --steps 4",
    "sft --tasks lora --data {data}/alpaca/alpaca_en_demo.json --repeats 2 --steps 4",
    "phase1 --repeats 3 --epochs 8",
    "processes --repeats 2 --steps 6",
    "checkpoints --repeats 10 --steps 10",
    "monitoring --repeats 10 --steps 15",
    "startup --repeats 3",
    "overlap --repeats 30",
    "tokenising --repeats 2",
    "tokenising --peer processes --repeats 1",
    "scaling --steps 3",
]
INSTALL = "bash startup.sh setup --bench"
PACKAGES = "torch transformers tokenizers datasets accelerate trl peft lightning"


def main(words: list[str]) -> None:
    arguments = parse(words)
    if arguments.side:
        return console.answer(json.dumps(measure(arguments)))
    if arguments.comparison == "all":
        run_all(arguments)
    elif arguments.comparison != "table":
        run_comparison(arguments, words)
    if arguments.markdown or arguments.picture:
        from benchmarks import _tables

        _tables.write(json.loads(arguments.output.read_text()), arguments)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("comparison", choices=[*COMPARISONS, "all", "table"])
    add("--data", default="hub", help="file or folder of a comparison that reads data, or hub")
    add("--model", default="minilm", help="encoder, of those that fine-tune one (default minilm)")
    add("--peer", help="of comparisons that have several: their files name them")
    add("--tasks", default="rte,mrpc,cola,stsb", help="of glue; lora: of sft; rates: of overlap")
    add("--epochs", default="3", help="of glue, frozen and phase1 (default 3)")
    add("--precision", default="fp32", help="fp32 (default) or bf16, of encoders and headlines")
    add("--device", default="cpu", help="of preference, mlm and causal: cpu (default), cuda or xpu")
    add("--size", default="small", choices=["small", "base"], help="of their models: base is real")
    add("--width", type=int, default=256, help="of headlines' model (default 256)")
    add("--eager", action="store_true", help="headlines' side without --compile")
    add("--repeats", type=int, default=5, help="pairs (default 5)")
    add("--steps", type=int, default=20, help="counted steps a run (default 20)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    add("--quick", action="store_true", help="tiny, one pair of two steps: does it run?")
    add("--output", type=Path, help="JSON of every run of all comparisons; adds to it")
    add("--markdown", type=Path, help="table of all that --output holds")
    add("--picture", type=Path, help="ratios of all that --output holds")
    add("--side", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if not arguments.output and (arguments.markdown or arguments.picture):
        parser.error("--markdown and --picture show what --output FILE holds: name it, too")
    if arguments.comparison == "table":
        if not (arguments.output and (arguments.markdown or arguments.picture)):
            parser.error("table: name --output FILE, which is read, and --markdown or --picture")
        if not arguments.output.exists():
            parser.error(
                f"--output {arguments.output}: no such file; a comparison measured with it makes it"
            )
    if arguments.quick:
        arguments.repeats, arguments.steps = 1, 2
    if arguments.comparison in COMPARISONS:
        peers = getattr(load_comparison(arguments.comparison), "PEERS", {})
        if arguments.peer and arguments.peer not in peers:
            known = f"one of {', '.join(peers)}" if peers else "none: it has one peer"
            parser.error(f"--peer {arguments.peer}: expected {known}")
        arguments.peer = arguments.peer or next(iter(peers), None)
    return arguments


def load_comparison(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def run_all(arguments: argparse.Namespace) -> None:
    """Every line of the plan as a process of its own; one that fails stops no other."""
    failed = []
    for text in PLAN:
        words = shlex.split(text.replace("{data}", arguments.data))
        data = words[words.index("--data") + 1] if "--data" in words else None
        if data and not Path(data).exists():
            console.say(f"left out, as {data} is not there: {words[0]}")
            continue
        words += [f"--threads={arguments.threads}"]
        words += ["--quick"] if arguments.quick else []
        words += [f"--output={arguments.output}"] if arguments.output else []
        console.say(f"--- {text}")
        if subprocess.run([sys.executable, __file__, *words]).returncode:
            failed.append(words[0])
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_comparison(arguments: argparse.Namespace, words: list[str]) -> None:
    comparison = load_comparison(arguments.comparison)
    if hasattr(comparison, "run"):
        measured = comparison.run(arguments)
    else:
        measured = compare(comparison, arguments)
    if arguments.output and (measured.lines or measured.tables):
        keep(arguments.output, words, measured)
    for line in measured.lines:
        console.answer(line)


def compare(comparison: Any, arguments: argparse.Namespace) -> Measured:
    """Pairs of both sides; what each gave, then their ratio."""
    rate, check = rate_and_check(comparison)
    if hasattr(comparison, "prepare"):
        comparison.prepare(arguments)
    pairs = []
    for repeat in range(arguments.repeats):
        # who goes first changes, too
        sides = ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours")
        pair = {side: run_side(side, arguments) for side in sides}
        pairs.append(pair)
        ours, peer = pair["ours"], pair["peer"]
        text = f"pair {repeat + 1}: ours {ours[rate]:,.1f} {rate.replace('_', ' ')}, peer "
        text += f"{peer[rate]:,.1f}"
        if check in ours:
            text += f", {check} {ours[check]:.3f} and {peer[check]:.3f}"
        console.say(text)
    return Measured([summary(arguments, pairs)], pairs)


def measure(arguments: argparse.Namespace) -> dict:
    """One side in this process: its figures, its peak memory, ours' share of the machine's."""
    from benchmarks import _peak

    comparison, counted = load_comparison(arguments.comparison), None
    with contextlib.ExitStack() as stack:
        on_cpu = arguments.device == "cpu"  # of which the peak is known
        if arguments.side == "ours" and on_cpu and getattr(comparison, "COUNTED", True):
            counted = stack.enter_context(_peak.counted_flops())
        try:
            figures = getattr(comparison, arguments.side)(arguments)
        except ModuleNotFoundError as error:
            raise SystemExit(f"{error.name} is not here: {INSTALL}") from None
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if counted and counted.tokens:
        peak = _peak.peak_flops(arguments.precision)
        flops = counted.per_token * figures["tokens_per_second"]
        figures |= {"flops_per_second": flops, "peak_flops": peak, "share_of_peak": flops / peak}
    return {"peak_memory_gib": memory, **figures}


def rate_and_check(comparison: Any) -> tuple[str, str]:
    """Names of what is compared, and of what must be equal on both sides."""
    return getattr(comparison, "RATE", "tokens_per_second"), getattr(comparison, "CHECK", "loss")


def summary(arguments: argparse.Namespace, pairs: list[dict]) -> Line:
    """Ratios of neighbours, medians and means over the pairs."""
    comparison = load_comparison(arguments.comparison)
    rate, check = rate_and_check(comparison)

    def ratio(pair: dict, name: str) -> float:
        return pair["ours"][name] / pair["peer"][name]

    less_is_better = rate == "seconds"
    ratios = [1 / ratio(pair, rate) if less_is_better else ratio(pair, rate) for pair in pairs]
    shares = [pair["ours"].get("share_of_peak") for pair in pairs]
    checks = None
    if check in pairs[0]["ours"]:
        checks = tuple(statistics.mean(p[side][check] for p in pairs) for side in ("ours", "peer"))

    def medians(name: str) -> str:
        ours, peer = (statistics.median(p[side][name] for p in pairs) for side in ("ours", "peer"))
        return f"{ours:.2f} s against {peer:.2f} s"

    note = medians(rate) if less_is_better else ""
    if "begun" in pairs[0]["ours"]:
        note += f"; the first batch after {medians('begun')}"
    return Line(
        what=getattr(comparison, "WHAT", arguments.comparison)
        + (" (LoRA)" if arguments.comparison == "sft" and arguments.tasks == "lora" else ""),
        peer=getattr(comparison, "PEERS", {}).get(arguments.peer)
        or getattr(comparison, "PEER", "the peer"),
        unit="speed" if less_is_better else rate.replace("_", " "),
        ratios=ratios,
        memory=statistics.median(ratio(pair, "peak_memory_gib") for pair in pairs),
        checks=checks,
        tolerance=getattr(comparison, "TOLERANCE", 0.1),
        checked="losses" if check == "loss" else check,
        share_of_peak=statistics.median(shares) if None not in shares else None,
        note=note,
    )


def keep(output: Path, words: list[str], measured: Measured) -> None:
    """Adds a comparison to the file, with the machine, the versions, the commit and the date."""
    files = ("--output", "--markdown", "--picture")
    shown = [
        w for i, w in enumerate(words) if not w.startswith(files) and words[i - 1] not in files
    ]
    command = shlex.join(["python", "bench.py", *shown])
    saved = json.loads(output.read_text()) if output.exists() else {}
    saved[command] = environment() | dataclasses.asdict(measured)
    output.write_text(json.dumps(saved, indent=1))


def environment() -> dict[str, Any]:
    import psutil

    def git(*words: str) -> str:
        command = ["git", "-C", str(benchmarks.PROJECT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    versions = {"python": platform.python_version()}
    for name in [*PACKAGES.split(), "sentence-transformers"]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0].partition(":")[2].strip() if names else processor
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"processor": processor, "cores": os.cpu_count(), "memory_gib": round(memory)},
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
    }


if __name__ == "__main__":
    console.open_streams()
    main(sys.argv[1:])
