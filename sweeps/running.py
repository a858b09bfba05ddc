"""Runs under way: which of them this process starts, and how each ended.

Any number of processes do the same with the same plan and folder, on one machine or many, each by
what lies in the folder (claims.py).
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claims
import console
from claims import Claim, ClaimLost, Claims
from evaluation.outcomes import failures
from files import read_json
from sweeps.ended import has_diverged, has_ended, headline, is_finished
from sweeps.limits import Limits
from sweeps.notices import Notices
from sweeps.places import cores_here, place_of, visible_cards
from sweeps.plan import Plan, Run
from sweeps.words import last_words

# A run that fails this soon and before its first step was given settings that cannot work.
SETTINGS_ERROR_SECONDS = 60.0
# Schedulers send one of the last two ahead of a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Child:
    """A run under way."""

    run: Run
    number: str  # 3/12
    process: subprocess.Popen
    claim: Claim
    folder: Path  # that it writes to
    child: dict[str, Any]  # the process, as others may know it
    told_to_stop: bool = False
    is_lost: bool = False
    beaten: float = 0.0


@dataclass
class Elsewhere:
    """What is known of a run that this process waits for, or may yet start."""

    claims: Claims
    direct: Claims  # of a script that was started by itself, in the run's place
    begun: int  # claims that had ended when this process came
    said: int = 0  # the claim of which it was said that somebody has it

    def say(self, claim: int, text: str) -> None:
        if claim != self.said:
            self.said = claim
            console.say(text)


class Runner:
    """Runs up to plan.jobs at a time, says how each ended, passes signals on, and waits for what
    other processes run."""

    def __init__(self, plan: Plan, limits: Limits | None = None, notices: Notices | None = None):
        self.plan = plan
        self.limits = limits or Limits(plan.jobs)
        self.notices = notices or Notices(None, plan.out.name)
        self.failed: dict[str, str] = {}
        self.took_seconds: list[float] = []  # of the runs that finished in this session
        self.signals: list[int] = []
        self.gave_up = False
        self.left = 0  # runs that others are at, when this one leaves
        self.limited = ""  # why no further run is started
        self.judged: set[str] = set()  # runs whose script says that they are finished, by name
        self.works = False  # some run of this sweep has finished, now or before
        self.first: Run | None = None
        self.cores = cores_here()
        self.cards = visible_cards(plan.jobs * plan.processes > 1)
        self.running: dict[int, Child] = {}  # by place, 0 to jobs - 1
        self.elsewhere: dict[str, Elsewhere] = {}
        self.bar: Any = None

    def __enter__(self) -> "Runner":
        # the handler only takes note: a child that is just being started is not forgotten then
        self.old_handlers = {
            number: signal.signal(number, lambda number, frame: self.signals.append(number))
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # nohup
        }
        return self

    def __exit__(self, *error: Any) -> None:
        for child in self.running.values():  # only after an error of our own, a full disk say
            child.process.terminate()
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def has_ended(self, run: Run) -> bool:
        """Whether a run is a result, by its record or by what its script said."""
        return run.name in self.judged or is_finished(run)

    @property
    def stopping(self) -> bool:
        return bool(self.signals or self.gave_up or self.limited)

    def run(self, runs: list[Run], later: int = 0, leave: bool = False) -> None:
        """Run what is not finished; `later` is how many runs will come after these.

        leave: do not wait for what others run.
        """
        waiting = [run for run in runs if not is_finished(run)]
        numbers = {run.name: f"{i}/{len(runs)}" for i, run in enumerate(runs, 1)}
        self.works = self.works or len(waiting) < len(runs)
        if len(waiting) < len(runs):
            console.say(f"{len(runs) - len(waiting)} of {len(runs)} are finished already")
        if waiting and sys.stderr.isatty():
            from tqdm import tqdm

            done = len(runs) - len(waiting)
            self.bar = tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True)
        for run in waiting:
            if run.name not in self.elsewhere:
                known, direct = run.claims, Claims(run.folder / claims.OWN, Path("."))
                look = known.look()
                self.elsewhere[run.name] = Elsewhere(known, direct, look.number - (not look.ended))
        next_look = 0.0
        while self.running or (waiting and not self.stopping):
            if len(self.running) < self.plan.jobs and time.monotonic() >= next_look:
                self._fill(waiting, numbers)
                if leave and waiting and not self.running and not self.stopping:
                    self.left = len(waiting)
                    break
                next_look = time.monotonic() + min(1.0, claims.stale_seconds() / 20)
            time.sleep(0.05)
            for slot, child in list(self.running.items()):
                if child.process.poll() is not None:
                    del self.running[slot]
                    self._end(child, waiting, len(waiting) + len(self.running) + later)
                    next_look = 0.0
                else:
                    self._tend(child)
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _fill(self, waiting: list[Run], numbers: dict[str, str]) -> None:
        """Start what is free while there is room for it; note what others have ended."""
        for run in list(waiting):
            number, elsewhere = numbers[run.name], self.elsewhere[run.name]
            look = elsewhere.claims.look()
            if is_finished(run):
                waiting.remove(run)
                self._say(number, run, f"finished on {look.owner.get('host', '?')}")
                self.works = True
            elif look.number > elsewhere.begun and look.ended.get("outcome") == "failed":
                waiting.remove(run)
                self.failed[run.name] = f"on {look.who}: {look.ended.get('reason')}"
                self._say(number, run, f"FAILED {self.failed[run.name]}")
            elif not look.is_free:
                elsewhere.say(look.number, f"{number}  {run.name}  is being run by {look.who}")
            elif claims.is_locked(run.folder) or not elsewhere.direct.look().is_free:
                text = f"{number}  {run.name}  is being run by a command of its own"
                elsewhere.say(look.number + 1, text)
            elif len(self.running) < self.plan.jobs and not self.stopping:
                under_way = {c.run.name: c.claim.seconds for c in self.running.values()}
                self.limited = self.limits.refusal(run, self.plan.every_run(), under_way)
                if self.limited:
                    continue
                claim = elsewhere.claims.take(jobs=self.plan.jobs, price=self.limits.price)
                if claim is not None:
                    elsewhere.begun = claim.number
                    waiting.remove(run)
                    self._start(run, number, claim, waiting)

    def _start(self, run: Run, number: str, claim: Claim, waiting: list[Run]) -> None:
        """Start the script in the claim's own folder; one that has ended there is published."""
        self.first = self.first or run
        folder, verb = claim.attempt, "started"
        try:
            if has_ended(run.folder):  # with other settings: the script is the judge of that
                folder = run.folder
            elif claim.begin(run.folder, has_ended):
                verb = "continued"
                if is_finished(run, folder):  # whoever ran it did not come to that
                    return self._publish(run, number, claim, waiting)
        except ClaimLost:
            claim.end("lost")
            waiting.append(run)
            return None
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
            claim.end("failed", reason)
            self.failed[run.name] = reason
            return self._say(number, run, f"FAILED before its start: {reason}")
        command = self.plan.command(run, folder)
        slot = min(set(range(self.plan.jobs)) - self.running.keys())
        place = place_of(
            slot, self.plan.jobs, self.plan.processes, self.cores, self.cards, os.environ
        )
        with open(claim.log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            # a session of its own: Ctrl-C in the terminal reaches the sweep alone, which tells each
            # run once; torchrun tells its workers
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=place.environment | claim.handed_on(),
                pass_fds=place.descriptors,
                start_new_session=True,
            )
        place.close()
        console.say(f"{number}  {run.name}  {verb}")
        child = Child(run, number, process, claim, folder, claims.process(process.pid))
        self.running[slot] = child
        self._tend(child)
        return None

    def _tend(self, child: Child) -> None:
        """Beat for a run under way, and tell it to stop where it has to."""
        now = time.monotonic()
        if not child.beaten or now - child.beaten >= claims.beat_seconds():
            child.beaten = now
            child.is_lost = child.is_lost or child.claim.is_lost()
            if not child.is_lost:
                child.claim.beat(child.child)
        if (self.signals or self.gave_up or child.is_lost) and not child.told_to_stop:
            child.process.terminate()  # it saves, and its run.json says stopped
            child.told_to_stop = True

    def _end(self, child: Child, waiting: list[Run], left: int) -> None:
        run, claim, code = child.run, child.claim, child.process.returncode
        record = read_json(child.folder / "run.json")
        status = record.get("status", "failed")
        took = f"after {claim.seconds:.0f} s"
        if claim.is_lost():
            waiting.append(run)
            claim.end("lost")
            return console.say(
                f"{child.number}  {run.name}  given up {took}: this process was silent for so long "
                "that another one took it over"
            )
        if code == 0 and status == "finished" or has_diverged(record):
            return self._publish(run, child.number, claim, waiting, left, child.folder)
        if child.told_to_stop:
            claim.end("stopped", clean=code >= 0)
            return self._say(child.number, run, f"stopped {took}")
        reason = last_words(claim.log.read_text(encoding="utf-8", errors="replace"))
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}; last line: {reason}"
        elif code == 0:  # a script that was told to stop has done as it was told
            reason = f"{status}, not finished: {record.get('exit_reason') or reason}"
        claim.end("failed", reason, clean=code >= 0)
        self.failed[run.name] = reason
        early = claim.seconds < SETTINGS_ERROR_SECONDS and not (child.folder / "train").exists()
        self.gave_up = self.gave_up or (run is self.first and early and not self.works)
        self._say(child.number, run, f"FAILED {took}: {reason} ({claim.log})")
        self.notices.post("failed", f"{run.name} failed: {reason}", run=run.name, reason=reason)
        return None

    def _publish(
        self,
        run: Run,
        number: str,
        claim: Claim,
        waiting: list[Run],
        left: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Put a run that has ended to its place, if no other attempt at it is there."""
        judged = folder == run.folder  # it was there before
        if not judged and not claim.publish(run.folder):
            claim.end("lost")
            if is_finished(run):
                claim.clear()
                return self._say(number, run, "was finished by somebody else meanwhile")
            if claim.is_lost():
                waiting.append(run)
                return console.say(f"{number}  {run.name}  was taken over by somebody else")
            self.failed[run.name] = f"{run.folder} holds something else, and is in the way"
            return self._say(number, run, f"FAILED: {self.failed[run.name]}")
        self.judged.add(run.name)
        _move_logs(claim, Path(f"{run.folder}.log"))
        record = read_json(run.folder / "run.json")
        seconds, verdicts = claim.seconds, failures(map(str, record.get("verdicts") or []))
        if has_diverged(record):
            claim.end("diverged")
            text = f"diverged after {seconds:.0f} s, which counts: {record.get('exit_reason')}"
        else:
            claim.end("finished")
            self.works = True
            self.took_seconds.append(seconds)
            text = f"finished in {seconds:.0f} s, "
            text += f"but {', '.join(verdicts)}: " if verdicts else ""
            text += headline(read_json(run.folder / "test/metrics/metrics.json"))
            mean = sum(self.took_seconds) / len(self.took_seconds)
            if left:
                text += f", {left * mean / self.plan.jobs / 60:.1f} min left"
        claim.clear()
        self._say(number, run, text)
        for verdict in verdicts:
            self.notices.post(verdict, f"{run.name} {verdict}", run=run.name)
        return None

    def _say(self, number: str, run: Run, text: str) -> None:
        """How a run ended."""
        console.say(f"{number}  {run.name}  {text}")
        if self.bar is not None:
            self.bar.update(1)


def _move_logs(claim: Claim, log: Path) -> None:
    """What all attempts said, behind what there is."""
    texts = []
    for number in range(1, claim.number + 1):
        path = claim.folder / f"{number}.log"
        if path.exists():
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    try:
        with open(log, "a", encoding="utf-8") as file:
            file.write("".join(texts))
        for number in range(1, claim.number + 1):
            (claim.folder / f"{number}.log").unlink(missing_ok=True)
    except OSError as error:
        console.say(f"note: {log}: {error.strerror}")
