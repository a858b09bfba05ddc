"""bundle: runs in one file that somebody else can check, compare and repeat.

A zip that every report reads as a folder (reports/packed.py): settings, records, logs, figures,
predictions, pages, what was changed in the code, versions, and a README with the commands. Paths
of the machine are shortened, the names of user and host go. The same runs make the same file.
"""

import getpass
import json
import os
import re
import socket
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from files import PROJECT
from reports import packed
from reports.audit import audit_run, with_parts
from reports.folder import RunFolder, clean, load_runs
from reports.plan import LOOKS, PLAN
from reports.table import commands
from seal import digest_of, hash_of

KEPT = re.compile(
    r"config\.yaml|run\.json|diff\.patch|report\.html|train/metrics/metrics\.jsonl"
    r"|(test|baseline|mlm/test)/metrics/(metrics\.json|predictions\.csv)"
)
TEXT = (".yaml", ".json", ".patch", ".html", ".md", ".txt")
MEASURED = ("metrics.json", "metrics.jsonl", "predictions.csv")  # byte for byte as they were
WORDS = ("status", "device", "backend", "precision")  # of run.json, that are no names of people
ABSOLUTE = re.compile(r"(?<![\w.~/:-])/(?:[^/\s:'\"]+/)+[^/\s:'\"]*")


def bundle(
    paths: Sequence[str], output: Path, weights: str | None = None, anyway: bool = False
) -> str:
    """Write it; what to print. weights: best or final go in as well.

    ValueError where a run's files do not belong together, unless `anyway`.
    """
    if output.suffix != ".zip":
        raise ValueError(f"--output {output}: a bundle is a .zip")
    runs = load_runs(paths)
    if any(packed.file_of(run.path) == output.absolute() for run in runs):
        raise ValueError(f"--output {output} is what these runs are read from: another file")
    every = with_parts(runs)
    for run in every:
        problems = audit_run(run).problems
        if problems and not anyway:
            raise ValueError(
                f"{run.path}: {problems[0]} (report.py audit says more; --anyway bundles it "
                "all the same)"
            )
    top = Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    contents: dict[str, bytes] = {}
    short = Shortened.of(every)
    for run in every:
        place = run.path.absolute().relative_to(top).as_posix()
        for name, content in run_files(run, weights, short).items():
            contents[f"{place}/{name}"] = content
    for run in runs if weights else ():
        place = run.path.absolute().relative_to(top).as_posix()
        parts = "(?:[^/]+/)?"  # a suite has those of its tasks, an evaluation none
        inside = re.compile(rf"{re.escape(place)}/{parts}train/weights/{weights}/")
        if not any(map(inside.match, contents)):
            raise ValueError(f"{run.path}: no train/weights/{weights} to bundle")
    for folder in {parent for run in runs for parent in run.path.absolute().parents}:
        if folder.is_relative_to(top):
            for name in (PLAN, LOOKS):
                if packed.is_file(folder / name):
                    text = packed.read_bytes(folder / name).decode("utf-8", "replace")
                    place = (folder.relative_to(top) / name).as_posix()
                    contents[place] = Shortened.of(every, [text]).text(text).encode()
    contents["versions.txt"] = versions_of(runs).encode()
    contents["README.md"] = readme(runs, output, weights, short).encode()
    packed.write_zip(output, {f"{output.stem}/{name}": each for name, each in contents.items()})
    size = output.stat().st_size / 1e6
    with_weights = f", with {weights} weights" if weights else ", without weights"
    said = [f"bundle: {output} ({size:.2f} MB, {len(runs)} runs{with_weights})"]
    names = {run.path.name for run in every}
    for run in every if weights else ():
        joined = run.metrics.get("blend")
        other = Path(str(joined.get("run") or "")).name if isinstance(joined, dict) else ""
        if other and other not in names:
            said.append(
                f"note: {run.path} answers joined with {other}, which is not in it: name both"
            )
    return "\n".join(said)


def run_files(run: RunFolder, weights: str | None, short: "Shortened") -> dict[str, bytes]:
    """By their names in the run: shortened, and sealed anew if the run's own seal was whole."""
    found = {}
    for path in packed.files_below(run.path):
        name = path.relative_to(run.path).as_posix()
        if KEPT.fullmatch(name) or weights and name.startswith(f"train/weights/{weights}/"):
            found[name] = packed.read_bytes(path)
    for name, content in found.items():
        private = name.endswith(TEXT) and Path(name).name not in MEASURED
        if private and not name.startswith("train/weights/"):
            found[name] = short.text(content.decode("utf-8", "replace")).encode()
    if "run.json" in found:
        found["run.json"] = _sealed(found, run.record)
    return found


def _sealed(found: dict[str, bytes], before: dict[str, Any]) -> bytes:
    try:
        record = json.loads(found["run.json"])
    except ValueError:
        return found["run.json"]
    if not isinstance(record, dict) or before.get("digest") != digest_of(before):
        return found["run.json"]  # older, or changed: that stays to be seen
    record["bundled"] = {"digest": before["digest"]}
    sealed = before.get("files")
    if isinstance(sealed, dict) and "config.yaml" in sealed and "config.yaml" in found:
        record["files"] = sealed | {"config.yaml": hash_of(found["config.yaml"])}
    record["digest"] = digest_of(record)
    return json.dumps(record, indent=1).encode()


def keys(value: Any) -> Iterable[str]:
    """All names in a record or in settings."""
    if isinstance(value, dict):
        yield from map(str, value)
        yield from (name for each in value.values() for name in keys(each))
    elif isinstance(value, list):
        yield from (name for each in value for name in keys(each))


def strings(value: Any) -> Iterable[str]:
    """All texts in a record or in settings."""
    if isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


class Shortened:
    """Texts without the machine's paths and names."""

    @classmethod
    def of(cls, runs: Iterable[RunFolder], said: Iterable[str] = ()) -> "Shortened":
        """For what these runs wrote, and other texts of them."""
        runs = list(runs)
        both = [each for run in runs for each in (run.config, run.record)]
        words = {name for each in both for name in keys(each)}
        words |= {text for run in runs for text in strings(run.config)}
        words |= {str(run.record.get(name)) for run in runs for name in WORDS}
        return cls([*said, *(text for each in both for text in strings(each))], words)

    def __init__(self, said: Iterable[str], words: Container[str] = ()):
        """said: texts of the run, in which absolute paths are looked for; words: those that stay,
        be they a name as well: a user `data` must not rename a setting."""
        places = {str(PROJECT): "", str(Path.cwd()): "", os.path.expanduser("~"): "~"}
        for text in said:
            for path in ABSOLUTE.findall(text):
                places.setdefault(path, _short(path))
        places = {place: short for place, short in places.items() if len(place) > 1}
        self.places = sorted(places.items(), key=lambda each: -len(each[0]))
        names = {user_name(), socket.gethostname()} - {"root", "localhost"}
        names = [re.escape(name) for name in names if len(name) > 2 and name not in words]
        self.names = re.compile(rf"(?<!\w)({'|'.join(names)})(?!\w)") if names else None

    def text(self, text: str) -> str:
        for place, short in self.places:
            if short in ("", "~"):
                text = text.replace(f"{place}/", f"{short}/" * bool(short))
            text = text.replace(place, short or ".")
        return self.names.sub("user", text) if self.names else text


def user_name() -> str:
    """Nothing for a user without a name, as containers have them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def _short(path: str) -> str:
    """The last part of a path, below the project the path from there."""
    if Path(path).is_relative_to(PROJECT):
        return str(Path(path).relative_to(PROJECT))
    return path.rstrip("/").rpartition("/")[2]


def versions_of(runs: Sequence[RunFolder]) -> str:
    """For pip install -r; where runs differ, all are named in a comment."""
    lines = []
    known = [versions for run in runs if isinstance(versions := run.record.get("versions"), dict)]
    for name in sorted({name for versions in known for name in versions}):
        there = sorted({str(versions.get(name)) for versions in known})
        if name == "python":
            lines.insert(0, f"# Python {', '.join(there)}")
        else:
            lines.append(f"{name}=={there[0].partition('+')[0]}")
            if len(there) > 1:
                lines[-1] += f"  # the runs have {', '.join(there)}"
    return "\n".join(lines) + "\n"


def readme(runs: Sequence[RunFolder], output: Path, weights: str | None, short: "Shortened") -> str:
    commits = {str(run.record.get("commit")) for run in runs if run.record.get("commit")}
    changed = [run.name for run in runs if packed.is_file(run.path / "diff.patch")]
    several = len(runs) > 1
    lines = [
        f"# {output.stem}",
        f"{len(runs)} run{'s' * several} of ablate, to be checked, compared and repeated with it.",
        "",
        "```bash",
        f"python report.py audit {output.name}      # do the files belong together, do the "
        "figures follow from the rows?",
        f"python report.py {'compare' if several else 'table'} {output.name}",
        *(f"git checkout {commit}" for commit in sorted(commits)[:1]),
        "pip install -r versions.txt",
        short.text(clean(commands(runs))),
        "```",
        "",
    ]
    if len(commits) > 1:
        lines.append(f"The runs are of several commits: {', '.join(sorted(commits))}.")
    if changed:
        lines.append(
            f"The code was changed beside its commit in {', '.join(changed[:6])}: each run's "
            "`diff.patch` has what."
        )
    lines.append(
        "Paths of the machine are shortened; figures, logs and predictions are byte for byte those "
        f"of the runs. {'Weights: ' + weights + '.' if weights else 'There are no weights in it.'}"
    )
    return "\n".join(lines) + "\n"
