"""What a script's loop sees of a run: resuming, logging, evaluating, saving, stopping, the end."""

import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import console
from core import State, Stopped, Work, World, loaded
from device import memory_note, peak_memory
from evaluation import outcomes
from evaluation.monitor import Monitor, check_trackers
from experiments.experiment import Experiment, Result
from files import PROJECT, DiskFull
from runs import spikes
from runs.alike import require_alike, settings_of, work_of
from runs.checkpoints import Checkpoints
from runs.contents import has_begun
from runs.folder import RunFolder, parameter_facts
from runs.log import Log
from runs.results import last_lines, summary_lines, write_result
from settings import Settings, as_dict, left_out, read_so_far, require_read

# SIGHUP: the terminal closed. Slurm and what starts jobs there send SIGUSR1 or SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Run:
    """A run in its folder: each of these methods is called by all ranks."""

    def __init__(self, config: Settings, world: World):
        self.config, self.world = config, world
        # two scripts may have the same settings: which one it was is a part of the run
        script = Path(sys.modules[type(config).__module__].__file__ or "").name
        self.record = RunFolder(config, world, script)
        self.monitor = Monitor(world.device) if config.machine_log and world.rank == 0 else None
        self.training = False
        self.early = False  # stopped by --patience
        self._leaving = False
        self.course = outcomes.Course()  # of the log's lines; rank 0's
        self._log: Log | None = None
        self._checkpoints: Checkpoints | None = None
        self._steps_here = 0
        self._step_started = 0.0
        self._old_handlers: dict[int, Any] = {}

    @property
    def folder(self) -> Path | None:
        """None in a dry run, which writes nothing."""
        return self.record.path

    @property
    def status(self) -> str:
        """running, finished, stopped or failed."""
        return self.record.status

    @property
    def exit_reason(self) -> str:
        return self.record.exit_reason

    # -- entering and leaving

    def __enter__(self) -> "Run":
        check_trackers(self.config.trackers)
        if self.world.size > 1:
            require_alike(self.world, settings_of(self.config, self.record.contents))
        for note in left_out(self.config):
            self.world.say(f"note: {note}")
        if self.config.dry_run:
            return self
        opened: Any = None
        if self.world.rank == 0:
            try:
                opened = self.record.open(), self.record.path
            except (ValueError, OSError, DiskFull) as error:
                opened = error
        opened = self.world.from_rank_0(opened)
        if isinstance(opened, Exception):
            raise SystemExit(str(opened)) if isinstance(opened, ValueError) else opened
        result, self.record.path = opened
        if result:
            self.world.say(f"{self.folder} is finished:")
            self.world.say(result)
            raise SystemExit(0)
        if self.world.rank == 0:
            self.record.read_record()
        self._log = Log(self.folder, self.world, self.monitor, self.course)
        self._checkpoints = Checkpoints(
            self.folder, self.world, self.config.keep_every, self._spent, self.record.require_claim
        )
        # last: were __enter__ left by an error, nothing would put the handlers back
        self._handle_signals()
        return self

    def _handle_signals(self) -> None:
        for number in SIGNALS:
            ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not ignored:  # as nohup wants it
                self._old_handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.world.signal = signal.Signals(number).name
        console.doing(f"{self.world.signal}: ending this step or evaluation, then saving")
        if not self.training and not self._leaving:  # nothing to save yet
            raise KeyboardInterrupt(self.world.signal)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        self._leaving = True  # a second signal must not cut off what is written here
        try:
            return self._leave(kind, error)
        finally:
            self.record.close()
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)

    def _leave(self, kind: type | None, error: BaseException | None) -> bool:
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._log is not None:
            self._log.close()
        if isinstance(error, SystemExit) and not error.code:
            return False
        if isinstance(error, KeyboardInterrupt):
            self.end("stopped", self.world.signal or "SIGINT")
        elif isinstance(error, SystemExit) and error.code == 143:  # a task of this suite
            self.end("stopped", "before training began")
        elif error is not None:
            self.end("failed", f"{kind.__name__}: {error}")
            if isinstance(error, outcomes.Diverged):
                self.record.verdict(self.course.diverged(str(error)))
        if self.world.rank == 0 and not self.config.dry_run:
            with contextlib.suppress(Exception):
                self.record.write_record()
        if isinstance(error, KeyboardInterrupt):
            self.world.say(f"stopped by {self.exit_reason} before training began")
            raise SystemExit(143)
        return False

    def end(self, status: str, reason: str) -> None:
        """How the run ended, for run.json."""
        self.record.status, self.record.exit_reason = status, reason

    # -- before training

    def write_baseline(self, measure: Callable[[], Result]) -> None:
        """What measure() says of the untrained model, to baseline/, once."""
        folder = self.folder / "baseline"
        if self.world.from_rank_0((folder / "metrics/metrics.json").exists()):
            return
        try:
            result = measure()
        except outcomes.Diverged as error:
            raise ValueError(f"before training: {error}") from None
        self.world.on_rank_0(lambda: write_result(folder, result))
        if result.metrics:
            self.world.say("\n".join(["before training:", *summary_lines(result.metrics)]))

    def recorded(self, name: str, older: Any) -> Any:
        """What an earlier session wrote of it into run.json, on all ranks; None: there was none;
        older: what holds of a run from before it was written."""
        known = None
        if self.world.rank == 0 and has_begun(self.folder):
            known = self.record.facts.get(name, older)
        return self.world.from_rank_0(known)

    def resume(self, state: State, experiment: Experiment) -> None:
        """Load the newest whole checkpoint, if any, and make all ranks equal."""
        loaded()
        self.experiment, self.training = experiment, True
        self.record.facts |= experiment.facts
        require_alike(self.world, work_of(state, experiment.facts))
        self._count_parameters(state)
        saved: dict | None = None

        def load() -> None:
            nonlocal saved
            self.record.check_rows()
            saved = self._checkpoints.load_newest(state)
            if saved is not None:
                state.load_state_dict(saved)
            settings = as_dict(self.config)
            self._log.open(state, self.config.trackers, settings, self.record.facts["id"])
            self.record.withdraw("diverged")  # if it is true, it will be found again
            self.record.begin_session(state)
            facts = self.record.facts
            self._checkpoints.origin = {"run": facts["id"], "commit": facts["commit"]}

        self.world.on_rank_0(load)
        saved = self.world.state_from_rank_0(saved)
        if saved is not None and self.world.rank != 0:
            state.load_state_dict(saved)
        saved = None  # what the state has not taken over
        state.share()
        if state.step:
            self.world.say(f"continuing at step {state.step}")
        self._restart_clock(state)
        self._step_started = self._started
        self._log.show_bar(state)
        try:
            if state.evaluation_pending:
                self._evaluate(state)
        except Stopped:
            return self._stop(state, self._agree_on_signal())
        self._check_patience(state)

    def _count_parameters(self, state: State) -> None:
        """For run.json: in total, each once, and those that are trained, in the phase of most."""
        before = self.record.facts.get("trained_parameters", 0)
        self.record.facts |= parameter_facts(state.model, state.parameters)
        trained = self.record.facts["trained_parameters"]
        self.record.facts["trained_parameters"] = max(before, trained)

    # -- training

    def done(self, state: State) -> bool:
        """Whether to leave the training loop; all ranks agree since all decide from sums."""
        return state.clock.done or self.early or self.status != "running"

    def after_step(self, state: State, stats: dict[str, Any] | None) -> None:
        """Log the step; save, evaluate, stop early or stop for a signal where that is due.

        What is saved first is not lost by an error in what comes after it.
        """
        config, now = self.config, time.perf_counter()
        state.seconds = self._seconds_before + now - self._started
        if stats is None:
            return self._stop(state, self._agree_on_signal())
        self._checkpoints.poll()
        self._log.step(state, stats, max(now - self._step_started, 1e-9))
        self._steps_here += 1
        if self._steps_here == 1:
            # some are for rank 0 alone, which trains the tokenizer
            require_read(self.config, self.world.gather_rows(read_so_far(self.config)))
        if self._steps_here == 3:
            self._say_what_fits(state, stats["work"])
        if state.skipped_steps and state.precision != "fp16":
            self.world.say(f"step {state.step}: loss or gradient is not finite; update skipped")
        outcomes.require_gradients(state.skipped_steps, state.precision, state.step)
        if spiked := self.course.spiked():
            self._describe_spike(state, stats)
            self.record.verdict(spiked)
        state.evaluation_pending = self._evaluation_due(state)
        save_due = bool(config.save_every and state.step % config.save_every == 0)
        if save_due or state.evaluation_pending or self.done(state):
            self.save(state)
        try:
            if state.evaluation_pending:
                self._evaluate(state)
        except Stopped:
            return self._stop(state, self._agree_on_signal())
        if config.stop_after and self._steps_here >= config.stop_after and not state.clock.done:
            return self._stop(state, f"--stop_after {config.stop_after}")
        self._step_started = time.perf_counter()

    def _say_what_fits(self, state: State, work: Work) -> None:
        """A larger micro-batch, or more tokens of joined ones where a step takes several."""
        loader, ranks = state.loader, self.world.size
        size, most, unit = loader.micro_batch, math.ceil(self.config.batch / ranks), "rows"
        if loader.join_tokens:
            size, most, unit = loader.join_tokens, math.ceil(work.tokens / ranks), "tokens"
            if len(work.micro_batches) < 2:
                return
        if note := memory_note(self.world.device, size, most, unit):
            self.world.say(f"note: {note}")

    def _describe_spike(self, state: State, stats: dict[str, Any]) -> None:
        """For run.json, of a step of a spike: its loss, its rate and the rows of its batch."""
        if self.course.spikes[-1].last_step != state.step:
            return
        spike = spikes.describe(state, stats, self.course.spikes[-1].usual)
        known = [each for each in self.record.facts.get("spikes", []) if each["step"] < state.step]
        self.record.facts["spikes"] = [*known, spike]

    def _evaluation_due(self, state: State) -> bool:
        if state.evaluation_due is not None:
            return state.evaluation_due()
        every = self.config.eval_every or state.loader.steps_per_epoch
        return state.clock.done or state.step % every == 0

    def _agree_on_signal(self) -> str:
        names = self.world.gather_rows([self.world.signal] if self.world.signal else [])
        self.world.signal = names[0] if names else "signal"
        return self.world.signal

    def _evaluate(self, state: State) -> None:
        """Of the step of the newest checkpoint, which is told what came of it."""
        started = time.perf_counter()
        console.doing("evaluating")
        # all ranks decide from the same numbers
        with state.averaged():
            metrics = self.world.from_rank_0(self.experiment.evaluate(state))
            answers = getattr(self.experiment, "asked_during", lambda state: [])(state)
        self._spent(evaluation_seconds=time.perf_counter() - started)
        self._log.evaluation(state, metrics)
        self._log.samples(state, answers)
        loss = metrics["val_loss"]
        outcomes.require_finite(loss, f"the validation loss of step {state.step}")
        self._judge_early(state)
        if loss < state.best:
            state.best, state.best_step, state.bad_evaluations = loss, state.step, 0
            self._checkpoints.export(self.experiment, state, "best")
        else:
            state.bad_evaluations += 1
        state.evaluation_pending = False
        state.last_val_loss = loss
        self._checkpoints.add_evaluation(state, before=self._log.sync)
        self._check_patience(state)
        self._restart_clock(state)

    def _judge_early(self, state: State) -> None:
        """Say what an evaluation shows while there is time to stop; the end decides."""
        early = state.step < state.loader.steps_per_epoch  # what it has not seen it cannot know
        evidence = None if early else getattr(self.experiment, "evidence", None)
        now = {
            "collapsed": outcomes.collapsed(evidence),
            "overfitted": self.course.overfitted(),
        }
        for kind, verdict in now.items():
            self.record.verdict(verdict) if verdict else self.record.withdraw(kind)

    def _restart_clock(self, state: State) -> None:
        """What passed since the step is no training time."""
        self._seconds_before, self._started = state.seconds, time.perf_counter()

    def _check_patience(self, state: State) -> None:
        if self.config.patience is not None and state.bad_evaluations >= self.config.patience:
            self.early = True
            self.record.exit_reason = f"early stopping at step {state.step}"

    def _spent(self, **amounts: float) -> None:
        """For the next training line, and as sums over all sessions for run.json."""
        if self.monitor is not None:
            self.monitor.add(**amounts)
            for name, amount in amounts.items():
                self.record.facts[name] = round(self.record.facts.get(name, 0) + amount, 3)

    def save(self, state: State) -> None:
        """A whole checkpoint of this step, written while the next ones are computed."""
        record = lambda: self.record.write_record(state)  # noqa: E731
        self._checkpoints.save(state, sync=self._log.sync, record=record)
        self._restart_clock(state)

    def settle(self) -> None:
        """Wait until what was saved is whole on the disk."""
        self._checkpoints.settle()

    def _stop(self, state: State, reason: str) -> None:
        self.save(state)
        self.settle()
        self.end("stopped", reason)
        if self.world.rank == 0:
            self.record.write_record(state)
        self.world.say(
            f"stopped at step {state.step} ({reason}); the same command continues {self.folder}"
        )

    # -- the end

    def finish(self, state: State, experiment: Experiment) -> None:
        """Write the final weights, test once with the best, say the result, make the page."""
        if self.status == "stopped":
            return
        reason = self.exit_reason or "all steps done"
        page = self._load_page_maker()
        self._checkpoints.export(experiment, state, "final")
        tested_with, problem = self._checkpoints.restore(experiment, state, self.config.test_with)
        if problem:
            self.record.verdict(f"tested with the final weights: best cannot be used ({problem})")
        self._count_parameters(state)
        console.doing("testing")
        started = time.perf_counter()
        try:
            result = experiment.test(state)
        except Stopped:
            if page is not None:
                page.communicate()
            return self._stop_in_test(state)
        self.record.facts["test_seconds"] = round(time.perf_counter() - started, 3)
        self.record.withdraw(*outcomes.FAILED, *outcomes.CAUTIONS)
        for verdict in outcomes.verdicts_of(self.course, result.evidence):
            self.record.verdict(verdict, say=False)
        result.metrics.update({"tested_with": tested_with, "best_step": state.best_step})
        self.end("finished", reason)

        def write() -> None:
            self.record.require_claim()
            write_result(self.folder / "test", result)
            self.record.write_record(state)

        self.world.on_rank_0(write)
        if self._log.bar is not None:
            self._log.bar.close()
        lines = [f"finished: {self.folder} ({state.seconds:.0f} s of training)"]
        self.world.say("\n".join([*lines, *last_lines(result.metrics, self.record.verdicts)]))
        if page is not None:
            self._make_page(page)

    def _load_page_maker(self) -> subprocess.Popen | None:
        """A process of its own: whatever goes wrong there, the run is finished. What it imports is
        loaded while the test runs; it waits for a line, and ends without one."""
        if not self.config.page or self.world.rank != 0:
            return None
        command = [sys.executable, str(PROJECT / "report.py"), "page", str(self.folder), "--wait"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            return subprocess.Popen(command, **pipes, text=True, errors="replace")
        except OSError as error:
            self._say_no_page(str(error))
            return None

    def _make_page(self, maker: subprocess.Popen) -> None:
        console.doing("making the page")
        try:
            _, errors = maker.communicate("now\n", timeout=600)
        except subprocess.TimeoutExpired as error:
            maker.kill()
            maker.communicate()
            return self._say_no_page(str(error))
        if maker.returncode:
            lines = errors.strip().splitlines() or [f"exit code {maker.returncode}"]
            return self._say_no_page(lines[-1])
        self.world.say(f"page: {self.folder / 'report.html'}")

    def _say_no_page(self, problem: str) -> None:
        self.world.say(f"warning: no page ({problem}); later: report.py page {self.folder}")

    def _stop_in_test(self, state: State) -> None:
        self.end("stopped", self._agree_on_signal())
        if self.world.rank == 0:
            self.record.write_record(state)
        self.world.say(f"stopped in the test; the same command continues {self.folder}")

    # -- a dry run

    def dry_run(self, state: State, step: Callable[[], object], steps: int = 3) -> None:
        """Time a few calls of step() and say what the whole run would take; writes nothing."""
        state.share()
        total = getattr(state.clock, "total_steps", None)  # None: the budget is no number of steps
        tokens = int(np.sum(state.loader.data.tokens))
        times = []
        for _ in range(steps if total is None else min(steps, total)):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        if total is None:
            total = max(1, round(state.step / state.clock.fraction))  # at what these steps cost
        trained = sum(p.numel() for p in state.parameters)
        everything = sum(p.numel() for p in state.model.parameters())
        each = min(times)
        self.world.say(
            f"steps {total:,} ({state.loader.steps_per_epoch:,} an epoch) · "
            f"tokens {tokens:,} an epoch · parameters {everything:,}, trained {trained:,} · "
            f"memory {peak_memory(self.world.device) / 2**30:.2f} GiB · "
            f"{each:.2f} s a step, about {each * total / 60:.0f} min without evaluation"
        )
