"""What files are in a folder, by size and hash: on another machine, too, where Python alone is.

    ssh HOST python3 - sums FOLDER NAME … < sweeps/manifest.py   # of files below it
    ssh HOST python3 - runs FOLDER false < sweeps/manifest.py    # of a sweep's runs that have ended

It is sent to that machine as it is, and so imports nothing of the project.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

STATE = ("claims", "attempts")  # of a sweep, and no results


def sums(folder, names):
    """name → [bytes, SHA-256] of those that are there."""
    found = {}
    for name in names:
        path = Path(folder, name)
        if path.is_file():
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            found[name] = [path.stat().st_size, digest.hexdigest()]
    return found


def files_below(folder, checkpoints):
    """Their names, without locks, half-written files and, unless they are wanted, checkpoints."""
    names = []
    for path in sorted(Path(folder).rglob("*")):
        parts = path.relative_to(folder).parts
        passing = any(part in (".lock", ".claim") or part.endswith("tmp") for part in parts)
        left = not checkpoints and any(part.startswith("step_") for part in parts[:-1])
        if path.is_file() and not passing and not left:
            names.append("/".join(parts))
    return names


def ended_runs(folder, checkpoints):
    """name → sums of each run below a sweep's folder that is finished or has diverged."""
    runs = {}
    for path in sorted(Path(folder).rglob("run.json")):
        run = path.parent
        name = run.relative_to(folder)
        if name.parts[:1] and name.parts[0] in STATE:
            continue
        if any(Path(other) in name.parents for other in runs):
            continue  # a task of a suite
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        verdicts = [str(verdict) for verdict in record.get("verdicts") or []]
        # in a suite its task stands before it: evaluation/outcomes.py
        diverged = any(re.match(r"([\w.-]+: )?diverged: ", f"{v} ") for v in verdicts)
        if record.get("status") == "finished" or record.get("status") == "failed" and diverged:
            runs[name.as_posix()] = sums(run, files_below(run, checkpoints))
    return runs


def main(words):
    what, folder, *more = words
    known = ended_runs(folder, more == ["true"]) if what == "runs" else sums(folder, more)
    print(json.dumps(known))


if __name__ == "__main__":
    main(sys.argv[1:])
