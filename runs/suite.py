"""Runs that belong together: one a task, below the folder of the suite, which has averages."""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from files import read_json, remove, write_text
from runs.contents import delete_run, is_run, refuse_others
from runs.folder import restarted_by_torchrun
from runs.results import last_lines
from runs.run import Run


def begin_suite(suite: Run, tasks: Sequence[str]) -> None:
    """Write that the suite is running, so that the same command finds it. With --fresh, what an
    earlier one left in the folders of its tasks is deleted."""
    if suite.config.dry_run:
        return

    def begin() -> None:
        for task in tasks:
            refuse_others(suite.folder / task)
            anew = suite.config.fresh and not restarted_by_torchrun()
            if anew and is_run(suite.folder / task):
                delete_run(suite.folder / task)
                (suite.folder / task / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # somebody's own files lie there
                    (suite.folder / task).rmdir()
        suite.record.write_record()

    suite.world.on_rank_0(begin)


def drop_checkpoints(run: Run) -> None:
    """A finished task is not continued, and eight times two checkpoints of BERT-base are 21 GB.
    Its best and final weights stay."""
    if run.world.rank == 0 and run.status == "finished":
        for folder in (run.folder / "train/weights").glob("step_*"):
            if problem := remove(folder):
                run.world.say(f"note: {folder} cannot be removed: {problem.strerror}")


def finish_suite(
    suite: Run,
    tasks: Sequence[str],
    averages: Callable[[dict[str, dict[str, Any]]], dict[str, Any]],
) -> None:
    """Write and say the averages when every task below the suite's folder is finished, or has
    diverged, which is an outcome.

    averages: metrics by task name → those of the suite, with what is `missing` for an average.
    """
    if suite.world.rank == 0:
        results, verdicts, seconds = {}, [], 0.0
        for task in tasks:
            folder = suite.folder / task
            results[task] = read_json(folder / "test/metrics/metrics.json")  # {}: it diverged
            record = read_json(folder / "run.json")
            verdicts += [f"{task}: {verdict}" for verdict in record["verdicts"]]
            seconds += record["seconds"]
        metrics = averages(results)
        suite.record.verdicts = verdicts
        suite.record.facts["seconds"] = round(seconds, 3)
        write_text(suite.folder / "test/metrics/metrics.json", json.dumps(metrics, indent=1))
        lines = [f"finished: {suite.folder} ({seconds:.0f} s of training)"]
        if metrics["missing"]:
            lines.append(f"  no average, it lacks {', '.join(metrics['missing'])}")
        suite.world.say("\n".join([*lines, *last_lines(metrics, verdicts)]))
    suite.end("finished", "all tasks done")


def stop_suite(suite: Run, task: str, run: Run) -> None:
    """The suite stops with the task that was stopped."""
    suite.end("stopped", f"{task}: {run.exit_reason}")
