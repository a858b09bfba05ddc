"""How fast is it, beside what people would use instead? One row a comparison, measured in pairs.

    python -m pip install -r requirements-bench.txt
    python bench.py mlm                       # pretraining against transformers' Trainer
    python bench.py mlm --repeats 5 --steps 30 --output bench.json
    python bench.py causal --repeats 3 --steps 5
    python bench.py phase1 --repeats 3 --epochs 3
    python bench.py monitoring --repeats 20 --steps 20
    python bench.py glue --data FOLDER --tasks rte,mrpc,cola,stsb     # not speed: is it as good?

A row is a file in benchmarks/. Ours and the peer run as processes of their own, one after the
other, in turns: a machine's speed drifts, and only the ratio of neighbours says anything. Same
model, rows, batch, steps, precision and threads. The first steps of each are not counted. Where
the final losses do not agree, the row is void.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS = sorted(p.stem for p in (Path(__file__).parent / "benchmarks").glob("[!_]*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("row", choices=ROWS)
    parser.add_argument(
        "--data", default="hub", help="file or folder of a row that reads data, or hub"
    )
    parser.add_argument("--tasks", default="rte,mrpc,cola,stsb", help="of glue")
    parser.add_argument("--epochs", default="3", help="of glue and phase1 (default 3)")
    parser.add_argument("--precision", default="fp32", help="of glue: fp32 (default) or bf16")
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="counted steps a run (default 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--output", type=Path, help="JSON of every run")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    row = importlib.import_module(f"benchmarks.{arguments.row}")
    if arguments.side:
        found = getattr(row, arguments.side)(arguments)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "peak_memory_gib": memory}))
    elif hasattr(row, "run"):
        row.run(arguments)
    else:
        compare(row, arguments)


def compare(row: Any, arguments: argparse.Namespace) -> None:
    """Pairs of both sides; what each gave, then their ratio."""
    rate, pairs = getattr(row, "RATE", "tokens_per_second"), []
    for repeat in range(arguments.repeats):
        # who goes first changes, too
        sides = ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours")
        pair = {side: run_side(side, arguments) for side in sides}
        pairs.append(pair)
        ours, peer = pair["ours"], pair["peer"]
        print(
            f"pair {repeat + 1}: ours {ours[rate]:,.0f} {rate.replace('_', ' ')}, peer "
            f"{peer[rate]:,.0f}, losses {ours['loss']:.3f} and {peer['loss']:.3f}",
            flush=True,
        )
    print(summary(arguments.row, pairs, rate, getattr(row, "TOLERANCE", 0.1)))
    if arguments.output:
        arguments.output.write_text(json.dumps({arguments.row: pairs}, indent=1))


def run_side(side: str, arguments: argparse.Namespace) -> dict:
    """One process; returns what its last line says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(row: str, pairs: list[dict], rate: str, tolerance: float) -> str:
    """Median and range of the ratio over the pairs."""
    ratios = sorted(pair["ours"][rate] / pair["peer"][rate] for pair in pairs)
    memory = statistics.median(
        pair["ours"]["peak_memory_gib"] / pair["peer"]["peak_memory_gib"] for pair in pairs
    )
    losses = {side: statistics.mean(pair[side]["loss"] for pair in pairs) for side in pairs[0]}
    agree = abs(losses["ours"] - losses["peer"]) < tolerance
    return (
        f"{'' if agree else 'VOID, the losses do not agree: '}"
        f"{row}: {statistics.median(ratios):.2f} times the {rate.replace('_', ' ')} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(pairs)} pairs), {memory:.2f} times the peak "
        f"memory, losses {losses['ours']:.3f} and {losses['peer']:.3f}"
    )


if __name__ == "__main__":
    main()
