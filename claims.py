"""Who works on what, where processes and machines share one volume and nothing else.

    claims = Claims(OUT, Path("arm/seed_0"))       # OUT/claims/arm/seed_0/1.json, 2.json …
    if claim := claims.take():                     # None: somebody else has it
        claim.begin(OUT / "arm/seed_0", has_ended)  # OUT/attempts/1/arm/seed_0, its own
        claim.beat()                               # again and again
        claim.publish(OUT / "arm/seed_0")          # one attempt of all, at most
        claim.end("finished")

Relied on is this alone: a file is created exclusively, and a folder is renamed whole, but not onto
one that holds something. Nobody's clock is compared with another's, a listing may be late, and an
owner may wake from a pause of any length:

* a claim is a file with the next number, created exclusively: one owner a number, and the last
  number counts. Each number has a folder of its own, which its owner alone writes to;
* its owner changes a counter. Who saw it unchanged for STALE_SECONDS of their own monotonic clock
  may take the next number, and begins with a copy of what the last one had;
* a result counts once its folder has been renamed to its place, which succeeds for the first alone.

So two may work on one thing, in vain for one of them; what either wrote is never mixed. These are
leases (Gray & Cheriton, SOSP 1989) whose time is the observer's, as in Amazon's lock client for
DynamoDB (2017), with the number in the place of Chubby's sequencer (Burrows, OSDI 2006, section
2.4). docs/many_machines.md has the races that remain.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import secrets
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import files
from files import read_json, write_text

CLAIMS, ATTEMPTS = "claims", "attempts"  # of a sweep, below its folder
TOKEN = ".attempt"  # in an attempt's folder: whose it is
OWN = ".claim"  # in the folder of a run that was started by itself
INHERITED = "ABLATE_CLAIM"  # what a sweep tells the script that it starts


def stale_seconds() -> float:
    """A counter that is silent for so long is no longer waited for. Listings may be 60 s late, and
    what an owner wrote before it fell silent has to be visible."""
    return float(os.environ.get("ABLATE_STALE_SECONDS") or 180)


class ClaimLost(ValueError):
    """Somebody else works on it now."""


# ----------------------------------------------------------------------------- processes


@functools.cache
def machine() -> str:
    """Within it, process numbers mean something: this boot of it, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def began(pid: int) -> str | None:
    """When a process of this machine began, in ticks since its boot; None: there is none."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
        return ""
    return None if state == "Z" else facts[18]


def process(pid: int | None = None) -> dict[str, Any]:
    """This process, or one that it started, as others may know it."""
    pid = pid or os.getpid()
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "began": began(pid)}


def is_gone(facts: dict[str, Any]) -> bool:
    """Whether it is known that this process is no more; of one elsewhere nothing is known."""
    pid, then = facts.get("pid"), facts.get("began")
    known = isinstance(pid, int) and facts.get("machine") == machine()
    return known and (then is None or began(pid) != then)


def is_own(facts: dict[str, Any]) -> bool:
    return facts.get("pid") == os.getpid() and facts.get("machine") == machine()


def is_here(facts: dict[str, Any]) -> bool:
    """Whether this process is known to be there, on this machine, and is another one than this."""
    return facts.get("machine") == machine() and not is_gone(facts) and not is_own(facts)


# -------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Look:
    """What one look at a piece of work showed; number 0: nobody ever claimed it."""

    number: int
    owner: dict[str, Any]
    beats: list[dict[str, Any]]  # the latest of the owner, and of the script that it started
    ended: dict[str, Any]
    silent: bool

    @property
    def is_free(self) -> bool:
        return self.number == 0 or bool(self.ended) or self.silent

    @property
    def processes(self) -> list[dict[str, Any]]:
        children = [beat["child"] for beat in self.beats if isinstance(beat.get("child"), dict)]
        return [each for each in (self.owner, *self.beats, *children) if each.get("pid")]

    @property
    def seconds(self) -> float:
        """For how long it was worked at, by its owner's clock."""
        return max((each.get("seconds", 0.0) for each in (*self.beats, self.ended)), default=0.0)

    @property
    def who(self) -> str:
        return f"{self.owner.get('host', '?')} (process {self.owner.get('pid', '?')})"


class Claims:
    """The claims on one piece of work below `root`, as one observer sees them."""

    def __init__(self, root: Path, name: Path, silent_after: float | None = None):
        self.root, self.name = root, name
        self.folder = root / CLAIMS / name
        self.silent_after = stale_seconds() if silent_after is None else silent_after
        self._number = 0
        self._seen: Any = None
        self._since = 0.0

    def look(self) -> Look:
        # ahead of the reading: a pause between the two must not look like silence
        now = time.monotonic()
        while (self.folder / f"{self._number + 1}.json").exists():  # a listing could be late
            self._number += 1
        number = self._number
        owner, beat, child, ended = (
            read_json(self.folder / f"{number}.{kind}") for kind in ("json", "beat", "child", "end")
        )
        beats = [each for each in (beat, child) if each]
        seen = number, owner, beats
        if seen != self._seen:
            self._seen, self._since = seen, now
        look = Look(number, owner, beats, ended, now - self._since >= self.silent_after)
        here = owner.get("machine") == machine()
        copied = here and owner.get("root") not in (None, os.path.realpath(self.root))
        if copied or owner and all(is_gone(each) or is_own(each) for each in look.processes):
            return Look(number, owner, beats, ended, silent=True)  # known, without waiting
        return look

    def history(self) -> list[dict[str, Any]]:
        """What is known of each claim, the first one first: its owner, and `seconds` of work."""
        known = []
        for number in range(1, self.look().number + 1):
            kinds = ("beat", "child", "end")
            seconds = [read_json(self.folder / f"{number}.{k}").get("seconds", 0.0) for k in kinds]
            known.append(read_json(self.folder / f"{number}.json") | {"seconds": max(seconds)})
        return known

    def take(self, **facts: Any) -> "Claim | None":
        """The next number, if the last one is ended or silent; None where somebody has it."""
        look = self.look()
        if not look.is_free:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        token, number = secrets.token_hex(8), look.number + 1
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        content = {"token": token, "since": since, **facts, **process()}
        content["root"] = os.path.realpath(self.root)  # of a copy on this machine it is another
        path = self.folder / f"{number}.json"
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(content))
                file.flush()
                files.sync(file.fileno())
        except FileExistsError:
            return None
        except OSError as error:
            raise files.disk_error(error, path) from error
        return Claim(self.root, self.name, number, token, released=look.ended.get("clean") is True)

    def take_when_silent(self, say: Callable[[str], None]) -> "Claim | None":
        """Wait for an owner of whom nothing is known to fall silent; None as soon as it moves, or
        is a process of this machine."""
        first = look = self.look()
        if not look.is_free and not any(map(is_here, look.processes)):
            say(
                f"{look.who} wrote to {self.root.parent} last and did not say that it ended: "
                f"waiting {self.silent_after:.0f} s for a sign of it"
            )
        while not look.is_free:
            moved = (look.number, look.beats) != (first.number, first.beats)
            if moved or any(map(is_here, look.processes)):
                return None
            time.sleep(min(1.0, self.silent_after / 20))
            look = self.look()
        return self.take()


@dataclass
class Claim:
    """A number that this process owns, until somebody takes the next one."""

    root: Path
    name: Path
    number: int
    token: str
    released: bool = False  # the one before had ended, and with all that it started
    kind: str = "beat"  # or child: that of a script which its owner started
    _begun: float = field(default_factory=time.monotonic)
    _beats: int = 0

    @property
    def folder(self) -> Path:
        return self.root / CLAIMS / self.name

    @property
    def attempt(self) -> Path:
        """The folder that this claim alone writes to."""
        return attempt_of(self.root, self.name, self.number)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.number}.log"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def is_lost(self) -> bool:
        """Whether somebody took the next number, or has begun to count anew."""
        try:
            if (self.folder / f"{self.number + 1}.json").exists():
                return True
            own = json.loads((self.folder / f"{self.number}.json").read_text(encoding="utf-8"))
            return own["token"] != self.token
        except FileNotFoundError:
            return True
        except (OSError, ValueError, KeyError, TypeError):  # of the volume
            return False

    def beat(self, child: dict[str, Any] | None = None) -> None:
        """Change the counter. That it cannot be written is no reason to stop working."""
        self._beats += 1
        facts = {"beat": self._beats, "seconds": round(self.seconds, 1), **process()}
        with contextlib.suppress(OSError, files.DiskFull):
            text = json.dumps({**facts, **({"child": child} if child else {})})
            write_text(self.folder / f"{self.number}.{self.kind}", text, shared=True)

    def end(self, outcome: str, reason: str = "", clean: bool = True) -> None:
        """finished, diverged, failed, stopped or lost: others need not wait for silence.

        clean: the script ended by itself, and so with all processes of its own.
        """
        facts = {"outcome": outcome, "reason": reason, "seconds": round(self.seconds, 1)}
        facts["clean"] = clean
        with contextlib.suppress(OSError, files.DiskFull):
            write_text(self.folder / f"{self.number}.end", json.dumps(facts), shared=True)

    def handed_on(self) -> dict[str, str]:
        """The environment by which a script knows that the folder it is given is claimed for it."""
        facts = {"root": str(self.root.absolute()), "name": str(self.name)}
        return {INHERITED: json.dumps(facts | {"number": self.number, "token": self.token})}

    # -- the folders

    def begin(self, place: Path, has_ended: Callable[[Path], bool]) -> bool:
        """Fill the attempt's folder with what there is of this work: a run that was written to its
        place directly, else the last attempt. False: there is nothing.

        A folder of an owner that has ended is moved, any other copied, so that one who wakes has
        nothing of this one. ClaimLost where somebody published meanwhile. has_ended: whether a
        folder holds a run that came to its end.
        """
        found = True
        self.attempt.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and any(place.iterdir()):
            os.rename(place, self.attempt)
            if has_ended(self.attempt):  # it was published after all
                os.rename(self.attempt, place)
                raise ClaimLost(f"{place} was published by somebody else")
        elif not (earlier := [n for n in range(1, self.number) if self._earlier(n).is_dir()]):
            found = False
        elif self.released and earlier[-1] == self.number - 1:
            os.rename(self._earlier(earlier[-1]), self.attempt)
        else:
            previous = self._earlier(earlier[-1])
            try:
                copy_run(previous, self.attempt)
            except OSError:
                if previous.exists():
                    raise
                raise ClaimLost(f"{previous} has gone: somebody else ended it") from None
        self.attempt.mkdir(exist_ok=True)
        facts = {"number": self.number, "token": self.token}
        write_text(self.attempt / TOKEN, json.dumps(facts))
        return found

    def _earlier(self, number: int) -> Path:
        return attempt_of(self.root, self.name, number)

    def publish(self, place: Path) -> bool:
        """Rename the attempt to its place; False where another attempt is there, or this one is
        lost."""
        if self.is_lost():
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.attempt, place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            # a network volume may ask twice and be told that the second time there was nothing
            return read_json(place / TOKEN).get("token") == self.token
        with contextlib.suppress(OSError):
            files.sync_folder(place.parent)
        return True

    def clear(self) -> None:
        """Remove the attempts up to this one, of which none can be published any more."""
        for number in range(1, self.number + 1):
            shutil.rmtree(self._earlier(number), ignore_errors=True)


def copy_run(source: Path, target: Path) -> None:
    """A copy that is whole or not there; files that a manifest names are links where the volume has
    them, as nobody writes to those again.

    Weights first, the log last: so it has the lines of each step that is saved. Where the manifests
    changed meanwhile, its owner lives, and it is done again.
    """
    beside = target.with_name(f"{target.name}.tmp")
    for tries in range(5, 0, -1):
        shutil.rmtree(beside, ignore_errors=True)
        before = _manifests(source)
        try:
            for folder in sorted(before, key=lambda each: (each.name.startswith("step_"), each)):
                _copy(source / folder, beside / folder, _link)
            _copy(source, beside, shutil.copy2)
        except (OSError, shutil.Error) as error:
            if tries == 1 or not source.is_dir():
                raise OSError(f"{source} cannot be copied: {error}") from error
            continue
        if _manifests(source) == before or tries == 1:
            break
    os.rename(beside, target)


def _manifests(run: Path) -> dict[Path, bytes]:
    return {
        path.parent.relative_to(run): path.read_bytes()
        for path in run.rglob("manifest.json")
        if path.parent != run and not path.parent.name.endswith(("tmp", "old"))
    }


def _copy(source: Path, target: Path, copy: Callable) -> None:
    """Files that are not there yet, without those of a process (locks, half-written ones)."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        there = target / os.path.relpath(folder, source)
        own = (".lock", OWN, TOKEN)
        return [
            name
            for name in names
            if name in own or name.endswith("tmp") or (there / name).is_file()
        ]

    shutil.copytree(
        source, target, ignore=left_out, copy_function=copy, dirs_exist_ok=True, symlinks=True
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def is_locked(folder: Path) -> bool:
    """Whether a script writes to this folder, where the volume has locks that say so."""
    with contextlib.suppress(OSError):
        with open(folder / ".lock", "r+") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def attempt_of(root: Path, name: Path, number: int) -> Path:
    return root / ATTEMPTS / str(number) / name


def place_of(attempt: Path) -> Path | None:
    """Where an attempt comes to when it is published; None for a folder that is none. What is not
    published counts for no reader."""
    for numbered in (attempt, *attempt.parents):
        above = numbered.parent
        if numbered.name.isdecimal() and above.name == ATTEMPTS:
            if (above.parent / CLAIMS).is_dir():
                return above.parent / attempt.relative_to(numbered)
    return None


def is_counted(path: Path) -> bool:
    """Whether a file is of something that has ended: neither of an attempt nor of a claim."""
    above = [folder for folder in path.parents if folder.name == CLAIMS]
    claimed = any((folder.parent / ATTEMPTS).is_dir() for folder in above)
    return place_of(path) is None and not claimed


def newest_attempt(place: Path) -> Path | None:
    """The last attempt at a run that is not at its place yet."""
    for root in place.parents:
        if (root / CLAIMS).is_dir():
            name = place.relative_to(root)
            number = Claims(root, name).look().number
            folders = (attempt_of(root, name, n) for n in range(number, 0, -1))
            return next((folder for folder in folders if folder.is_dir()), None)
    return None


# ------------------------------------------------------------- a run, seen from its script


def claim_run(folder: Path, say: Callable[[str], None]) -> Claim | None:
    """The claim of a script on the folder that it writes to: what the sweep that started it has
    taken for it, or its own. None: somebody else writes there."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(os.environ.get(INHERITED) or "{}")
        root, name = Path(facts["root"]), Path(facts["name"])
        claim = Claim(root, name, facts["number"], facts["token"], kind="child")
        if os.path.realpath(folder) == os.path.realpath(claim.attempt):
            return claim
    return Claims(folder / OWN, Path(".")).take_when_silent(say)


class Keeper:
    """Beats for a script while it works, in a thread; `lost` when somebody else has taken over."""

    def __init__(self, claim: Claim):
        self.claim, self.lost = claim, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        claim.beat()
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(beat_seconds()):
            self.lost = self.lost or self.claim.is_lost()
            if self.lost:
                return
            self.claim.beat()

    def require(self) -> None:
        """ClaimLost where another process has taken over: what it writes stays its own."""
        self.lost = self.lost or self.claim.is_lost()
        if self.lost:
            raise ClaimLost(
                f"{self.claim.root}: this process was silent for so long that another one "
                "took the run over"
            )

    def end(self) -> None:
        """Let go, so that the next one need not wait."""
        self._ended.set()
        self._thread.join()
        if self.claim.kind == "child" or self.claim.is_lost():
            return
        self.claim.end("ended")
        shutil.rmtree(self.claim.root, ignore_errors=True)


@contextlib.contextmanager
def turn(root: Path, is_done: Callable[[], bool], say: Callable[[str], None]) -> Iterator[bool]:
    """Whether to make what others may be making, too: False once one of them has made it. root: a
    folder for the claim, which is gone afterwards."""
    work, said = Claims(root, Path(".")), False
    while not is_done():
        if (claim := work.take()) is not None:
            keeper = Keeper(claim)
            try:
                yield not is_done()
            finally:
                keeper.end()
            return
        if not said:
            said = True
            say(f"{work.look().who} is making what {root.name.partition('.')[0]} is for: waiting")
        time.sleep(min(1.0, work.silent_after / 20))
    yield False


def beat_seconds() -> float:
    return min(15.0, stale_seconds() / 6)
