"""A live view of a run in the terminal, from the files that it writes: report.py watch RUN.

It reads and touches nothing, so it can be started and left at any time, over SSH and inside tmux.
"""

import re
import sys
import time
from pathlib import Path

import claims
import console
from reports.folder import (
    MetricsLog,
    RunFolder,
    clean,
    duration,
    load_run,
    number,
    seconds_since,
)

ENDED = ("finished", "stopped", "failed")
SILENT_SECONDS = 60  # without a new line for so long, the reader is told
MACHINE = {
    "cpu_share": "CPU",
    "process_share": "this process",
    "device_share": "GPU",
    "data_share": "waiting for data",
}
RECENT = 20  # lines that "smoothed" and the rates look at


def watch(path: Path, every_seconds: float = 2.0, once: bool = False) -> None:
    """Show the run until it ends, or once. ValueError when `path` holds no run."""
    log = MetricsLog(path)
    load_run(path)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8
    try:
        if once or not sys.stdout.isatty():
            _watch_lines(path, log, every_seconds, once)
        else:
            _watch_live(path, log, every_seconds)
    except KeyboardInterrupt:
        pass


def _watch_live(path: Path, log: MetricsLog, every_seconds: float) -> None:
    try:
        from rich.console import Group
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return _watch_lines(path, log, every_seconds, once=False)

    def view() -> tuple[Group, bool]:
        run = _look(path, log)
        table = Table.grid(padding=(0, 2))
        for name, value in state(run, log):
            table.add_row(Text(name, style="dim"), Text(value, style=_style(name, value)))
        return Group(Text(one_line(run.name), style="bold"), table), run.status in ENDED

    shown, ended = view()
    # what rich would put in place of stdout does not know its encoding
    with Live(shown, auto_refresh=False, redirect_stdout=False) as live:
        while not ended:
            time.sleep(every_seconds)
            shown, ended = view()
            live.update(shown, refresh=True)


def _style(name: str, value: str) -> str:
    if name == "verdict" or value.startswith(("failed", "finished, but")):
        return "bold red"
    if name == "note":
        return "yellow"
    return "green" if value.startswith("finished") else ""


def _watch_lines(path: Path, log: MetricsLog, every_seconds: float, once: bool) -> None:
    """The whole state first and last, and between them a line whenever something was added."""
    run = _look(path, log)
    _print_state(run, log)
    said = bool(silence(run, log))
    while not once and run.status not in ENDED:
        time.sleep(every_seconds)
        path = followed(path, log)
        if log.read():
            said = False
            rows = [f"{name} {value}" for name, value in progress(run, log) if name != "curve"]
            console.answer(one_line("  ".join(rows)))
        run = load_run(path)
        if not said and (silent := silence(run, log)):
            said = True
            console.answer(silent)
        if run.status in ENDED:
            _print_state(_look(path, log), log)


def _print_state(run: RunFolder, log: MetricsLog) -> None:
    rows = state(run, log)
    width = max(len(name) for name, _ in rows)
    console.answer(one_line(run.name))
    for name, value in rows:
        console.answer(f"  {name:<{width}}  {value}")


def followed(path: Path, log: MetricsLog) -> Path:
    """Where the run is now: a sweep moves an attempt to its place when it has ended."""
    place = claims.place_of(path)
    if place is None or path.exists() or not place.exists():
        return path
    if log.path.is_relative_to(path):
        log.path = place / log.path.relative_to(path)
    return place


def _look(path: Path, log: MetricsLog) -> RunFolder:
    path = followed(path, log)
    log.read()
    run = load_run(path)
    run.notes += log.notes()
    return run


def state(run: RunFolder, log: MetricsLog) -> list[tuple[str, str]]:
    """What is known of a run now, as (name, value) pairs of plain text, one line each."""
    but = f", but {', '.join(run.failures)}" if run.failures and run.status == "finished" else ""
    rows = [("status", run.status + but)]
    rows += [("verdict", verdict) for verdict in run.verdicts]
    rows += [("note", note) for note in run.notes]
    if silent := silence(run, log):
        rows.append(("note", silent))
    rows += progress(run, log)
    for name, value in run.metrics.items():
        interval = run.metrics.get(f"{name}_ci95")
        if isinstance(interval, list) and len(interval) == 2 and number(value) is not None:
            low, high = (_short(number(end)) for end in interval)
            rows.append((f"test {name}", f"{_short(value)}  [{low}, {high}]"))
    return [(one_line(name), one_line(value)) for name, value in rows]


def one_line(text: str) -> str:
    return re.sub(r"[\t\n]+", " ", clean(text))


def silence(run: RunFolder, log: MetricsLog) -> str:
    """A sentence when a run that says it is running has not written for long."""
    seconds = seconds_since(log.path, run.path / "run.json")
    if run.status != "running" or seconds <= SILENT_SECONDS:
        return ""
    return (
        f"nothing written for {duration(seconds)}: a long evaluation, or interrupted? "
        "The same command continues it"
    )


def progress(run: RunFolder, log: MetricsLog) -> list[tuple[str, str]]:
    """Step, loss, validation, learning rate, rates and memory from the lines read so far."""
    if not log.training:
        return [("step", "none yet")]
    last, recent = log.training[-1], log.training[-RECENT:]
    total = total_steps(run, last)
    step = f"{last['step']:,}" + (f" of {total:,} ({last['step'] / total:.0%})" if total else "")
    losses = [number(line.get("train_loss")) for line in log.training]
    known = [loss for loss in losses[-RECENT:] if loss is not None]
    smooth = f", mean of the last {len(known)}: {sum(known) / len(known):.4f}" if known else ""
    rows = [
        ("step", step),
        ("loss", _short(losses[-1]) + smooth),
        ("curve", sparkline(losses)),
        *validation(log.evaluations),
    ]
    rates = [name for name in last if name == "lr" or name.startswith("lr_")]
    rates = [name for name in rates if name != "lr"] or rates
    known = {name: number(last[name]) for name in rates}
    lrs = [
        f"{name.removeprefix('lr_')} {'not finite' if lr is None else f'{lr:.2e}'}"
        for name, lr in known.items()
    ]
    rows.append(("lr", "  ".join(lrs).removeprefix("lr ")))
    rows.append(("grad norm", _short(number(last.get("grad_norm")))))
    speeds = [
        f"{_mean(recent, name):,.0f} {unit}"
        for name, unit in (("examples_per_second", "rows/s"), ("tokens_per_second", "tokens/s"))
        if _mean(recent, name) is not None
    ]
    rows.append(("speed", "  ".join(speeds)))
    if (memory := number(last.get("peak_memory_bytes"))) is not None:
        rows.append(("memory", f"{memory / 2**30:.2f} GiB at most"))
    rows.append(("machine", machine_words(machine_of(log.training))))
    seconds = number(last.get("seconds"))
    if seconds is not None:
        left = seconds_left(recent, total)
        rest = f", about {duration(left)} left" if left and run.status == "running" else ""
        rows.append(("trained", duration(seconds) + rest))
    return [row for row in rows if row[1]]


def machine_of(training: list[dict]) -> dict[str, float]:
    """The latest of what the monitor logged, once a second at most."""
    for line in reversed(training):
        if isinstance(machine := line.get("machine"), dict):
            return {name: value for name, value in machine.items() if number(value) is not None}
    return {}


def machine_words(machine: dict[str, float]) -> str:
    words = [f"{title} {machine[name]:.0%}" for name, title in MACHINE.items() if name in machine]
    for name, title in (("memory_bytes", "now"), ("device_memory_bytes", "on the device")):
        if name in machine:
            words.append(f"{machine[name] / 2**30:.2f} GiB {title}")
    return "  ".join(words)


def validation(evaluations: list[dict]) -> list[tuple[str, str]]:
    """The latest of each validation figure, and the best of the loss."""
    if not evaluations:
        return []
    latest = evaluations[-1]
    figures = [
        f"{name.removeprefix('val_')} {_short(number(value))}"
        for name, value in latest.items()
        if name.startswith("val_")
    ]
    rows = [("validation", f"{'  '.join(figures)}  (step {latest['step']:,})")]
    losses = [(loss, line["step"]) for line in evaluations if (loss := _val_loss(line)) is not None]
    if losses:
        rows.append(("best", f"loss {min(losses)[0]:.4f}  (step {min(losses)[1]:,})"))
    return rows


def _val_loss(line: dict) -> float | None:
    return number(line.get("val_loss"))


def total_steps(run: RunFolder, last: dict) -> int | None:
    """From run.json or the settings; else from how much of the epochs the steps so far are."""
    for steps in (run.record.get("total_steps"), run.config.get("max_steps")):
        if number(steps):
            return int(steps)
    epochs, epoch = number(run.config.get("epochs")), number(last.get("epoch"))
    return round(last["step"] * epochs / epoch) if epochs and epoch else None


def seconds_left(recent: list[dict], total: int | None) -> float | None:
    """Training seconds to the last step at the recent pace; None when that is not known."""
    timed = [line for line in recent if number(line.get("seconds")) is not None]
    if total is None or len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
        return None
    steps = timed[-1]["step"] - timed[0]["step"]
    pace = (timed[-1]["seconds"] - timed[0]["seconds"]) / steps
    return max(0.0, pace * (total - timed[-1]["step"]))


def sparkline(values: list[float | None], width: int = 48) -> str:
    """The values as one line of small bars, x where none was finite."""
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    levels = "▁▂▃▄▅▆▇█" if utf8 else "_.-=+*#@"
    size = max(1, -(-len(values) // width))
    bins = [values[i : i + size] for i in range(0, len(values), size)]
    groups = [[v for v in values_of_bin if v is not None] for values_of_bin in bins]
    means = [sum(known) / len(known) if known else None for known in groups]
    finite = [mean for mean in means if mean is not None]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1
    top = len(levels) - 1
    return "".join("x" if m is None else levels[round((m - low) / span * top)] for m in means)


def _mean(lines: list[dict], name: str) -> float | None:
    values = [value for line in lines if (value := number(line.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _short(value: float | None) -> str:
    return (
        "not finite" if value is None else f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"
    )
