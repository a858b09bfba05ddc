"""sweep.py status OUT, report.py watch OUT: who does what, for how long, and how much is left.

It reads the folder, as the processes that work on it do, and touches nothing.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

import console
from claims import Claims, Look, attempt_of, stale_seconds
from evaluation.outcomes import failures
from files import json_lines, read_json
from reports.folder import RunFolder, clean, duration, load_run, number, seconds_since
from reports.plan import LOOKS
from reports.watch import seconds_left, total_steps
from sweeps.ended import has_diverged, has_ended
from sweeps.limits import cost_of, seconds_of
from sweeps.plan import Plan, Run, parse_arguments

KINDS = ("finished", "diverged", "running", "silent", "stopped", "failed", "waiting")
NAME, WHY, HOST = 34, 38, 14  # characters, so that a line fits a terminal of 80


@dataclass
class State:
    """What is known of one run; kind: of KINDS."""

    run: Run
    kind: str
    look: Look
    seconds: float = 0.0  # of whoever works on it, by their own clock
    steps: str = ""
    left: float | None = None  # seconds, of a running one
    why: str = ""


@dataclass
class Sweep:
    """A sweep's folder, looked at again and again: only so silence is seen."""

    out: Path
    runs: list[Run]
    race: list[str] = field(default_factory=list)  # its arms, the baseline first
    claims: dict[str, Claims] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path) -> "Sweep":
        """ValueError where `out` is no sweep's folder."""
        if not (out / "sweep.yaml").is_file():
            raise ValueError(f"{out}: no sweep: it has no sweep.yaml")
        plan = Plan(parse_arguments(["--config", str(out / "sweep.yaml"), "--out", str(out)]))
        runs = plan.every_run()
        arms = [arm.label for arm in plan.arms] if plan.race else []
        return cls(out, runs, arms, {run.name: run.claims for run in runs})

    def states(self) -> list[State]:
        """Of all runs but those that a race will not begin any more."""
        states, settled = [self._state(run) for run in self.runs], self._settled()
        return [s for s in states if s.kind != "waiting" or s.run.arm not in settled]

    def _settled(self) -> set[str]:
        """Arms that a race has decided or given up; with the last of them the baseline."""
        path = self.out / LOOKS
        if not self.race or not path.is_file():
            return set()
        found = [line.get("race") for line in json_lines(path.read_bytes())]
        settled = {
            label
            for looked in found
            if isinstance(looked, dict)
            for label, facts in looked.items()
            if facts.get("verdict") != "undecided" or facts.get("in_vain") or facts.get("only_rows")
        }
        return settled | set(self.race[:1]) if settled >= set(self.race[1:]) else settled

    def _state(self, run: Run) -> State:
        look = self.claims[run.name].look()
        if has_ended(run.folder):
            record = read_json(run.folder / "run.json")
            kind = "diverged" if has_diverged(record) else "finished"
            verdicts = failures(map(str, record.get("verdicts") or []))
            seconds = seconds_of(run, self.claims[run.name].history())
            return State(run, kind, look, seconds, why=", ".join(verdicts))
        if look.number == 0:
            return State(run, "waiting", look)
        if look.ended:
            kind = look.ended.get("outcome")
            kind = kind if kind in ("failed", "stopped") else "waiting"
            return State(run, kind, look, look.seconds, why=str(look.ended.get("reason") or ""))
        state = State(run, "silent" if look.silent else "running", look, look.seconds)
        folder = self.claims[run.name].folder
        silence = seconds_since(*(folder / f"{look.number}.{kind}" for kind in ("beat", "child")))
        if look.silent or silence > 2 * stale_seconds():
            state.why = f"no sign for about {duration(silence)}"
        attempt = attempt_of(run.out, run.folder.relative_to(run.out), look.number)
        if (attempt / "run.json").exists():
            self._add_progress(state, load_run(attempt))
        return state

    def _add_progress(self, state: State, run: RunFolder) -> None:
        training, _ = run.lines
        if training:
            last, total = training[-1], total_steps(run, training[-1])
            state.steps = f"{last['step']:,}" + (f" of {total:,}" if total else "")
            state.left = seconds_left(training[-20:], total)


def summary(sweep: Sweep, states: list[State]) -> list[str]:
    """Lines of text, for a terminal of 80 columns."""
    counts = {kind: sum(state.kind == kind for state in states) for kind in KINDS}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    most = "at most " if sweep.race else ""
    lines = [f"{sweep.out}: {most}{len(states)} runs: {said}"]
    working = [state for state in states if state.kind in ("running", "silent")]
    if working:
        rows = [
            [_short(s.run.name, NAME), _short(str(s.look.owner.get("host", "?")), HOST),
             s.look.owner.get("pid", "?"),
             duration(s.seconds), s.steps, "" if s.left is None else duration(s.left)]
            for s in working
        ]  # fmt: skip
        lines += ["", _table(rows, ["run", "machine", "process", "for", "step", "left"])]
        lines += [f"{s.run.name}: {s.why}" for s in working if s.why]
    problems = [s for s in states if s.why and s not in working]
    if problems:
        rows = [
            [_short(s.run.name, NAME), s.kind, clean(s.why)[:WHY].replace("\n", " ")]
            for s in problems
        ]
        lines += ["", _table(rows, ["run", "", "why"])]
    return [*lines, "", *rest(sweep, states)]


def rest(sweep: Sweep, states: list[State]) -> list[str]:
    """How much is left, by the time of the runs that ended, and what all cost, if that is known."""
    ended = [s.seconds for s in states if s.kind in ("finished", "diverged") and s.seconds]
    working = [s for s in states if s.kind == "running"]
    open_ = [s for s in states if s.kind not in ("finished", "diverged", "running")]
    lines = []
    if not working and not open_:
        lines.append("nothing is left")
    elif not ended:
        lines.append(f"left: {len(open_)} to start; no run has ended yet, so nobody knows how long")
    else:
        each = sum(ended) / len(ended)
        under_way = sum(each - s.seconds if s.left is None else s.left for s in working)
        seconds = max(0.0, under_way) + each * len(open_)
        hands = max(len(working), 1)
        text = f"left: {len(open_)} to start, about {duration(each)} each"
        lines.append(f"{text}; {duration(seconds / hands)} with {hands} at a time")
        if not working:
            lines.append("nobody works on it: the command that began it continues")
    facts = [known for run in sweep.runs for known in sweep.claims[run.name].history()]
    if any(number(known.get("price")) for known in facts):
        lines.append(f"cost so far: {sum(cost_of(known) for known in facts):.2f}")
    return lines


def _short(text: str, length: int) -> str:
    """With its beginning and its end, which has the seed."""
    tail = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


def status(words: list[str]) -> int:
    """`sweep.py status OUT`; SystemExit with what is wrong."""
    if {"-h", "--help"} & set(words):
        console.answer("sweep.py status OUT: who does what in a sweep, and how much is left")
        return 0
    if len(words) != 1 or words[0].startswith("-") or not words[0]:
        raise SystemExit("sweep.py status: expected the folder of one sweep")
    try:
        sweep = Sweep.open(Path(words[0]))
    except ValueError as error:
        raise SystemExit(f"sweep.py status: {error}") from None
    for line in summary(sweep, sweep.states()):
        console.answer(line)
    return 0


def watch(out: Path, every_seconds: float = 2.0, once: bool = False) -> None:
    """Show the sweep until no run is left, or once. ValueError where `out` is none."""
    sweep = Sweep.open(out)
    try:
        if once or not sys.stdout.isatty():
            return _watch_lines(sweep, every_seconds, once)
        from rich.live import Live
        from rich.text import Text

        text, over = _look(sweep)
        with Live(Text(text), auto_refresh=False, redirect_stdout=False) as live:
            while not over:
                time.sleep(every_seconds)
                text, over = _look(sweep)
                live.update(Text(text), refresh=True)
    except KeyboardInterrupt:
        pass


def _watch_lines(sweep: Sweep, every_seconds: float, once: bool) -> None:
    """The whole first and last, and between them a line a run that changes."""
    text, over = _look(sweep)
    console.answer(text)
    kinds = {state.run.name: state.kind for state in sweep.states()}
    while not once and not over:
        time.sleep(every_seconds)
        text, over = _look(sweep)
        for state in sweep.states():
            if kinds.get(state.run.name) != state.kind:
                kinds[state.run.name] = state.kind
                by = state.look.owner.get("host", "?")
                console.answer(f"{state.run.name}  {state.kind}  ({by})")
        if over:
            console.answer(text)


def _look(sweep: Sweep) -> tuple[str, bool]:
    """(what is to be seen now, whether nothing is left)."""
    states = sweep.states()
    over = all(state.kind in ("finished", "diverged") for state in states)
    return "\n".join(summary(sweep, states)), over
