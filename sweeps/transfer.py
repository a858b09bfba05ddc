"""sweep.py push and pull: a sweep to a rented machine, and its runs home.

    python sweep.py push HOST:FOLDER --config configs/sweeps/frozen.yaml [--ssh "ssh -p 2222"]
    python sweep.py pull HOST:FOLDER --config configs/sweeps/frozen.yaml

push takes the code of this commit, the rows and weights that the plan names (to FOLDER/rows), the
plan, and of its runs the records of those that have ended and the last attempt at any other. pull
brings home the runs that have ended, without checkpoints (--checkpoints: with them). What came is
checked by sizes and hashes that the other side computed itself.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import claims
import console
from files import PROJECT, content_digest
from reports.scripts import folder_name
from sweeps import manifest
from sweeps.ended import has_ended
from sweeps.options import Parser
from sweeps.plan import Plan, parse_arguments, refuse

ROWS = "rows"
# Of a sweep itself, beside its runs.
OWN_FILES = ("sweep.yaml", "tuned.yaml", "looks.jsonl")


@dataclass
class Remote:
    """FOLDER on HOST, reached by the words of `ssh`."""

    host: str
    folder: str
    ssh: str = "ssh"

    @classmethod
    def parse(cls, text: str, ssh: str) -> "Remote":
        host, colon, folder = text.partition(":")
        if not (host and colon and folder) or host.startswith("-"):
            raise refuse(f"{text}: expected HOST:FOLDER, e.g. root@1.2.3.4:/workspace/ablate")
        return cls(host, folder.removeprefix("~/"), ssh)  # a relative one is below home

    def ask(self, words: Sequence[str], given: str = "") -> str:
        """What a command there prints, `given` on its standard input."""
        command = [*shlex.split(self.ssh), self.host, shlex.join(words)]
        answer = subprocess.run(command, input=given, capture_output=True, text=True)
        if answer.returncode:
            last = answer.stderr.strip().splitlines()[-1:] or [f"exit code {answer.returncode}"]
            raise refuse(f"{self.host}: {words[0]}: {last[0]}")
        return answer.stdout

    def manifest(self, *words: str) -> dict[str, Any]:
        code = Path(manifest.__file__).read_text(encoding="utf-8")
        return json.loads(self.ask(["python3", "-", *words], code))

    def rsync(self, words: Sequence[str], names: Sequence[str] = ()) -> None:
        """names: the files to take, below the source."""
        command = ["rsync", "-a", "-z", "-s", "-e", self.ssh]
        given = None
        if names:
            command += ["--from0", "--files-from=-"]
            given = "".join(f"{name}\0" for name in names)
        try:
            code = subprocess.run([*command, *words], input=given, text=True).returncode
        except FileNotFoundError:
            raise refuse("rsync is needed, here and there: apt-get install rsync") from None
        if code:
            raise refuse(f"rsync ended with exit code {code}; the same command goes on")

    def place(self, below: str) -> str:
        return f"{self.host}:{self.folder}/{below}"


def main(argv: Sequence[str]) -> int:
    """`sweep.py push …` and `sweep.py pull …`; the exit code."""
    direction, *words = argv
    parser = Parser(
        prog=f"sweep.py {direction}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("remote", metavar="HOST:FOLDER", help="of the project there")
    parser.add_argument("--ssh", default="ssh", help='e.g. "ssh -p 2222 -i key"')
    parser.add_argument("--checkpoints", action="store_true", help="of pull: those, too")
    options, rest = parser.parse_known_args(words)
    if direction == "push" and options.checkpoints:
        raise refuse("--checkpoints is of pull: push takes the last one of what has not ended")
    remote = Remote.parse(options.remote, options.ssh)
    plan = Plan(parse_arguments(rest, "The words of the sweep itself: sweep.py --help."))
    if direction == "push":
        return push(plan, remote)
    return pull(plan, remote, options.checkpoints)


# --------------------------------------------------------------------------------- there


def push(plan: Plan, remote: Remote) -> int:
    with tempfile.TemporaryDirectory() as beside:
        code = Path(beside, "code")
        export_commit(code)
        moved = Moved(code)
        content = plan.as_sweep_file()
        content["arms"] = {
            label: {name: moved.value(name, value) for name, value in arm.items()}
            for label, arm in content["arms"].items()
        }
        out = code / out_there(plan.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        ended, unfinished = _take_runs(plan, out)
        folders = os.walk(code, followlinks=True)
        paths = [Path(folder, file) for folder, _, files in folders for file in files]
        names = sorted(str(path.relative_to(code)) for path in paths if path.is_file())
        ours = manifest.sums(code, names)
        remote.ask(["mkdir", "-p", remote.folder])
        # what lies there besides (its environment, its results) stays; rows and weights as files
        remote.rsync(["--copy-links", f"{code}/", remote.place("")])
        wrong = _differing(ours, remote, names)
    if wrong:
        raise refuse(f"{len(wrong)} files arrived otherwise than they left, e.g. {wrong[0]}")
    where = out_there(plan.out)
    console.say(
        f"{remote.host}:{remote.folder} has the commit, {len(moved.rows)} files or folders of rows "
        f"and weights, the plan, {ended} runs that have ended and {unfinished} that have not; "
        f"{len(names)} files, checked. There:"
    )
    python = ".venv/bin/python"
    command = f"{python} sweep.py --config {shlex.quote(f'{where}/sweep.yaml')}"
    console.answer(
        f"cd {shlex.quote(remote.folder)} && bash startup.sh && "
        f"{command} --out {shlex.quote(str(where))}"
    )
    return 0


def export_commit(target: Path) -> None:
    """The project as its last commit has it, which runs there then name; without git, as it is."""
    if not (PROJECT / ".git").exists():
        ignore = shutil.ignore_patterns("results", "cache", ".venv", "__pycache__", ".git")
        shutil.copytree(PROJECT, target, ignore=ignore)
        return

    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], capture_output=True, text=True)
        if answer.returncode:
            raise refuse(f"git {words[0]}: {answer.stderr.strip()[-300:]}")
        return answer.stdout

    if changed := git("-C", str(PROJECT), "status", "--porcelain", "--untracked-files=no"):
        names = ", ".join(line[3:] for line in changed.splitlines()[:3])
        raise refuse(f"the code of this commit is taken, and {names} differ from it: commit first")
    git("clone", "--quiet", "--depth", "1", f"file://{PROJECT}", str(target))
    git("-C", str(target), "remote", "remove", "origin")


class Moved:
    """Settings that name files here, under the paths that these have there."""

    def __init__(self, code: Path):
        """code: the folder that is sent; rows lie in it as links."""
        self.code, self.rows = code, set()

    def value(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):  # of tune
            return {key: self.value(key, values) for key, values in value.items()}
        if isinstance(value, list):
            return [self.value(name, item) for item in value]
        if not isinstance(value, str) or not value or not os.path.exists(value):
            return value
        path = Path(value).resolve()
        if path.is_relative_to(PROJECT) and (self.code / path.relative_to(PROJECT)).exists():
            return path.relative_to(PROJECT).as_posix()
        if name == "script":
            raise refuse(f"{value}: this script is not in the commit")
        inside = Path(ROWS, content_digest(path) or "empty", folder_name(path.name))
        link = self.code / inside
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path)
        self.rows.add(inside)
        return inside.as_posix()


def out_there(out: Path) -> Path:
    """The sweep's folder below the project's there: as here, if it lies below the current one."""
    path = Path(os.path.relpath(out))
    return Path("results", "sweeps", path.name) if ".." in path.parts else path


def _take_runs(plan: Plan, out: Path) -> tuple[int, int]:
    """What there is of the runs, into the folder that is sent: how many have ended, how many not.

    Of an ended one all but its weights: it is not run again. The last attempt at any other, if
    nobody is at it, goes on there from its place.
    """
    ended = unfinished = 0
    for run in plan.every_run():
        place = out / run.folder.relative_to(plan.out)
        if has_ended(run.folder):
            names = manifest.files_below(run.folder, False)
            for name in (name for name in names if "/weights/" not in f"/{name}"):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(run.folder / name, place / name)
            ended += 1
            continue
        attempt = claims.newest_attempt(run.folder)
        if attempt is not None and run.claims.look().is_free:
            place.parent.mkdir(parents=True, exist_ok=True)
            claims.copy_run(attempt, place)
            unfinished += 1
    return ended, unfinished


def _differing(ours: Mapping[str, Any], remote: Remote, names: Sequence[str]) -> list[str]:
    """Names of files that are not there as they are here."""
    theirs: dict[str, Any] = {}
    for start in range(0, len(names), 500):  # a command line has an end
        theirs |= remote.manifest("sums", remote.folder, *names[start : start + 500])
    return [name for name in names if theirs.get(name) != ours[name]]


# ---------------------------------------------------------------------------------- back


def pull(plan: Plan, remote: Remote, checkpoints: bool) -> int:
    """1 where a run here is another one than the one of its name there, or one arrived damaged."""
    where = f"{remote.folder}/{out_there(plan.out)}"
    there = Remote(remote.host, where, remote.ssh)
    runs = there.manifest("runs", where, "true" if checkpoints else "false")
    if not runs:
        console.say(f"{remote.host}:{where}: no run there has ended")
        return 0
    others, wanted = [], []
    for name, files in runs.items():
        place = plan.out / name
        if not has_ended(place):
            wanted.append(name)
        elif is_other(place, files):
            others.append(name)
    beside = plan.out / claims.ATTEMPTS / "pulled"
    brought, problems = 0, []
    if wanted:
        beside.mkdir(parents=True, exist_ok=True)
        names = [f"{name}/{file}" for name in wanted for file in runs[name]]
        logs = [f"{name}.log" for name in wanted]
        known = there.manifest("sums", where, *OWN_FILES, *logs)
        there.rsync([there.place(""), str(beside)], [*names, *known])
        for name in wanted:
            problem = _bring(plan, name, beside, runs[name])
            problems += [f"{name}: {problem}"] if problem else []
            brought += not problem
        for name in known:  # of the sweep: what is here stays
            if not (plan.out / name).exists() and (beside / name).exists():
                os.rename(beside / name, plan.out / name)
        if not problems:
            shutil.rmtree(beside)
    console.say(
        f"{plan.out}: {brought} runs came home and are as they were there, "
        f"{len(runs) - len(wanted) - len(others)} were here"
    )
    for name in others:
        console.say(f"  {name}: the run here is another one than that of {remote.host}: it stays")
    for problem in problems:
        console.say(f"  {problem}")
    return 1 if others or problems else 0


def _bring(plan: Plan, name: str, beside: Path, files: Mapping[str, Any]) -> str:
    """Put a run that arrived to its place, if it is as it was there; else why not."""
    if wrong := [f for f, sum_ in manifest.sums(beside / name, files).items() if sum_ != files[f]]:
        return f"{wrong[0]} arrived otherwise than it left; the same command takes it again"
    if missing := [file for file in files if not (beside / name / file).is_file()]:
        return f"{missing[0]} did not arrive; the same command takes it again"
    work = claims.Claims(plan.out, Path(name))
    claim = work.take()
    if claim is None:
        return "it is being run here: it stays there"
    if (plan.out / name).is_dir():  # half done, as it was before it was pushed
        claim.begin(plan.out / name, has_ended)
        shutil.rmtree(claim.attempt)
    claim.attempt.parent.mkdir(parents=True, exist_ok=True)
    os.rename(beside / name, claim.attempt)
    token = {"number": claim.number, "token": claim.token}
    (claim.attempt / claims.TOKEN).write_text(json.dumps(token))
    if not claim.publish(plan.out / name):
        claim.end("lost")
        return "another one came to its place meanwhile"
    claim.end("finished")
    claim.clear()
    return ""


def is_other(place: Path, files: Mapping[str, Any]) -> bool:
    """Whether the run at this place has other results than the one that is described."""
    names = [name for name in files if name.startswith("test/metrics/")] or ["run.json"]
    return manifest.sums(place, names) != {name: files[name] for name in names}
