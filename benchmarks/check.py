"""Does this machine train as it should? Ten minutes on a new GPU, before anything long is begun.

    bash startup.sh check                          # the same
    python -m benchmarks.check --output check.jsonl
    python -m benchmarks.check --items waits,repeats --device cuda

A JSON line an item, {"item", "ok", "seconds", "limit", …figures or "error"}, then one verdict. Each
item runs in a process of its own: one that fails, crashes or hangs stops no other, and has a limit
of twice the seconds that it should take. What a machine cannot show is left out, with the reason.
Exit code 1 where an item failed. No hub, no data but that of pip packages; _items.py has the items.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import PROJECT
from benchmarks._items import ITEMS, look


def main(words: list[str]) -> int:
    arguments = parse(words)
    if arguments.look:
        print(json.dumps(look(arguments.look, arguments.device, arguments.count)))
        return 0
    device, count = find_device(arguments.device)
    lines = []
    with open(arguments.output or os.devnull, "w") as output:

        def say(line: dict[str, Any]) -> None:
            text = json.dumps(line)
            print(text, flush=True)
            output.write(text + "\n")
            output.flush()

        for name in arguments.items:
            lines.append(run(name, device, count))
            say(lines[-1])
        say(verdict(lines, device))
    return int(any(line["ok"] is False for line in lines))


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "xpu", "mps", "cpu"])
    parser.add_argument("--items", default=",".join(ITEMS), help="some of them, by comma")
    parser.add_argument("--output", type=Path, help="file for the lines, too")
    parser.add_argument("--look", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.items = arguments.items.split(",")
    if unknown := [name for name in arguments.items if name not in ITEMS]:
        parser.error(f"--items {unknown[0]}: expected some of {', '.join(ITEMS)}")
    return arguments


def find_device(asked: str) -> tuple[str, int]:
    """(kind, number of them), asked of a process of its own, for a driver may crash."""
    code = (
        "import device; m = device.look_at_machine(); "
        f"k = device.choose_device({asked!r}, m); print(k, getattr(m, k, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1] if done.stderr else "no device")
    kind, count = done.stdout.split()[-2:]
    return kind, 1 if kind in ("cpu", "mps") else int(count)


def why_left_out(name: str, device: str, count: int) -> str:
    """ "" where the item can be looked at."""
    needs = ITEMS[name].needs
    if "cuda" in needs and device != "cuda":
        return "of NVIDIA's GPUs alone"
    if "gpu" in needs and device not in ("cuda", "xpu"):
        return "of GPUs alone"
    if "two" in needs and count < 2 and device != "cpu":
        return "needs two GPUs"
    return ""


def run(name: str, device: str, count: int) -> dict[str, Any]:
    """One item's line."""
    limit = 2 * ITEMS[name].seconds * (4 if device == "cpu" else 1)
    line: dict[str, Any] = {"item": name, "ok": None}
    if why := why_left_out(name, device, count):
        return line | {"left_out": why}
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.check", "--look", name, "--device", device]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "2" if device == "cpu" else "8")
    process = subprocess.Popen(
        [*command, "--count", str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=limit)
        found = json.loads(said.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"ok": False, "error": f"not ready after {limit} s"}
    except (ValueError, IndexError):
        last = " ".join(errors.strip().splitlines()[-3:])[-500:]
        found = {"ok": False, "error": f"ended with code {process.returncode}: {last}"}
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        except ProcessLookupError:
            pass
        process.communicate()
    return line | {"seconds": round(time.perf_counter() - began, 1), "limit": limit} | found


def verdict(lines: list[dict[str, Any]], device: str) -> dict[str, Any]:
    failed = [line["item"] for line in lines if line["ok"] is False]
    passed = sum(line["ok"] is True for line in lines)
    text = f"{device}: {passed} items are as they should be"
    if failed:
        text = f"{device}: NOT READY, see {', '.join(failed)}; send all lines back"
    return {"verdict": text, "passed": passed, "failed": failed}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
