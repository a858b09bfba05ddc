"""Checkpoints that are written beside training hold what they would hold if training waited."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from test_lost_work import fails, settings, steps_saved, whole  # noqa: F401
from test_resume import (
    CallsOf,
    assert_same_results,
    checkpoints,
    interrupt,
    record,
    train_here,
    training_steps,
    write_at_once,
)

import claims
import core
import run_2_appendprompt
import runs
import saving
from device import Machine
from experiments import preference
from files import DiskFull, HashedFile, appending, damage, sha256, write_folder, write_text
from runs import writer
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")


class WritesOf:
    """Do something in the writer's thread ahead of the n-th checkpoint's files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, always: Callable = lambda proceed: None):
        self.calls, self.at = 0, {}
        original = saving.write_files

        def watched(weights, rest, folder, proceed):
            self.calls += 1
            self.at.get(self.calls, always)(proceed)
            return original(weights, rest, folder, proceed)

        monkeypatch.setattr("runs.checkpoints.write_files", watched)


# ------------------------------------------------------------------------------ files


def test_weights_are_the_file_that_safetensors_writes(tmp_path):
    weights = {f"w.{kind}": torch.arange(7).to(kind) for kind in saving.DTYPES}
    weights |= {"é": torch.randn(3, 5), "one": torch.tensor(2.5), "none": torch.empty(0, 4)}
    save_file(weights, tmp_path / "theirs", metadata={"format": "pt"})
    with HashedFile(tmp_path / "ours") as file:
        saving.write_weights(weights, file)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert file.facts["sha256"] == sha256(tmp_path / "ours")
    assert file.facts["bytes"] == (tmp_path / "ours").stat().st_size


def test_a_copy_is_of_its_moment_and_in_the_same_memory_each_time():
    large = torch.randn(40, 30)
    tree = {
        "weights": {"a": large, "tied": large, "across": large.T, "none": torch.empty(0)},
        "rest": [torch.tensor(3.0), (1, {"list": [1, 2]}), torch.ones(4, dtype=torch.bfloat16)],
    }
    memory, was = saving.HostCopy(), large.clone()
    taken = memory.take(tree)
    places = [tensor.data_ptr() for tensor in saving.tensors_of(taken)]
    large.zero_()
    tree["rest"][1][1]["list"].append(3)
    weights = taken["weights"]
    assert torch.equal(weights["a"], was) and weights["a"] is weights["tied"]
    assert torch.equal(weights["across"], was.T) and weights["across"].is_contiguous()
    assert taken["rest"][1] == (1, {"list": [1, 2]})
    again = memory.take(tree)
    assert sorted(t.data_ptr() for t in saving.tensors_of(again)) == sorted(places)
    assert not again["weights"]["tied"].any()
    kept = memory.take(tree, besides=[large])
    assert kept["weights"]["a"] is large and kept["weights"]["across"] is not large


def test_tied_weights_are_written_once_and_found(tmp_path):
    model = torch.nn.ModuleDict({"z": torch.nn.Linear(3, 3), "a": torch.nn.Linear(3, 3)})
    model["a"].weight = model["z"].weight
    weights = saving.distinct(model.state_dict())
    assert list(weights) == ["z.weight", "z.bias", "a.bias"]  # by the first name, not the alphabet
    saving.write_files(weights, {}, tmp_path)
    other = torch.nn.ModuleDict({"z": torch.nn.Linear(3, 3), "a": torch.nn.Linear(3, 3)})
    other["a"].weight = other["z"].weight
    from safetensors.torch import load_model

    load_model(other, tmp_path / "model.safetensors")
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("number", [None, errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_the_same_file_of_another_folder_is_linked_or_copied(tmp_path, monkeypatch, number):
    def fill(beside: Path) -> None:
        (beside / "model.safetensors").write_bytes(b"weights")
        (beside / "config.json").write_text("{}")

    def refuse(*names) -> None:
        raise OSError(number, "no links here")

    write_folder(tmp_path / "step", lambda at: (at / "model.safetensors").write_bytes(b"weights"))
    if number:
        monkeypatch.setattr(os, "link", refuse)
    write_folder(tmp_path / "best", fill, tmp_path / "step", step=3)
    assert damage(tmp_path / "best") is None
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        *("model.safetensors", "config.json", "manifest.json")
    }
    files = [tmp_path / name / "model.safetensors" for name in ("step", "best")]
    assert os.path.samefile(*files) == (number is None)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO])
@pytest.mark.parametrize("what", ["folders", "all"])
def test_a_volume_that_cannot_flush_costs_no_run(tmp_path, monkeypatch, number, what):
    """Many know no fsync of a folder. An error of one that can is no such answer."""
    original = os.fsync

    def refuse(descriptor: int) -> None:
        if what == "all" or os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, "what is fsync?")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    fill = lambda beside: (beside / "model.safetensors").write_bytes(b"weights")  # noqa: E731
    if number == errno.EIO:
        with pytest.raises(OSError, match="what is fsync"):
            write_folder(tmp_path / "step", fill)
        return
    write_folder(tmp_path / "step", fill)
    write_text(tmp_path / "run.json", "{}")
    with appending(tmp_path / "looks.jsonl") as (_, add):
        add({"look": 1})
    work = claims.Claims(tmp_path, Path("arm"))
    claim = work.take()
    claim.begin(tmp_path / "arm", lambda folder: False)
    assert claim.publish(tmp_path / "arm") and damage(tmp_path / "step") is None


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    best = tmp_path / "best"
    write_folder(best, lambda at: (at / "weights").write_bytes(b"old"))
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "best.tmp":
            raise OSError(errno.EIO, "Input/output error")
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="Input/output"):
            write_folder(best, lambda at: (at / "weights").write_bytes(b"new"))
    assert damage(best) is None and (best / "weights").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["best"]


# --------------------------------------------------------------------------- training


def held(folder: Path) -> dict:
    """What all checkpoints of a run hold, but for its seconds."""
    found = {}
    for path in checkpoints(folder):
        assert damage(path) is None
        state = torch.load(path / "state.pt", weights_only=True)
        state["numbers"].pop("seconds")
        found[path.name] = load_file(path / "model.safetensors"), state
    return found


def assert_equal(ours, theirs) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        [assert_equal(ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, (list, tuple)):
        [assert_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    else:
        assert ours == theirs


def test_a_slow_writer_writes_the_state_of_its_step(settings, tmp_path, monkeypatch):  # noqa: F811
    """Steps pass while it writes. Beside it a run that waits, and one without room for a copy."""
    every = [*settings, "--save_every=3", "--keep_every=1", "--average_frac=0.5", "--epochs=0.7"]
    slow = WritesOf(monkeypatch, lambda proceed: time.sleep(0.2))
    train_here(*every, "--out", str(tmp_path / "slow"))
    assert slow.calls == 6
    with pytest.MonkeyPatch.context() as waits:
        write_at_once(waits)
        train_here(*every, "--out", str(tmp_path / "waits"))
    monkeypatch.setattr(saving.HostCopy, "has_room", lambda self, *tree: False)
    train_here(*every, "--out", str(tmp_path / "small"))
    waited = held(tmp_path / "waits")
    assert len(waited) == 6
    assert_equal(held(tmp_path / "slow"), waited)
    assert_equal(held(tmp_path / "small"), waited)
    assert_same_results(tmp_path / "slow", tmp_path / "waits")


def test_an_error_of_the_writer_ends_the_next_step(settings, whole, tmp_path, monkeypatch):  # noqa: F811
    writes = WritesOf(monkeypatch)
    writes.at[2] = lambda proceed: fails(OSError(errno.ENOSPC, "No space left on device"))()
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2 * 9 + 1] = lambda: time.sleep(0.3)  # step 10, after the checkpoint of 9
    with pytest.raises(DiskFull, match="disk full while writing .*step_00000009.*make room"):
        train_here(*settings, "--out", str(tmp_path))
    assert loss_sum.calls == 19 and training_steps(tmp_path)[-1] == 9
    assert record(tmp_path)["status"] == "failed" and "disk full" in record(tmp_path)["exit_reason"]
    assert record(tmp_path)["steps"] == 9 and steps_saved(tmp_path) == [7]
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def until_given_up(proceed: Callable) -> None:
    while True:
        proceed()
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["short", "long", "stuck"])
def test_a_signal_waits_for_the_writer_or_gives_it_up(settings, whole, tmp_path, monkeypatch, kind):  # noqa: F811
    """The checkpoint of step 9 is being written when a signal comes in step 11. Stuck: the disk
    does not answer, so that the thread cannot notice that it was given up."""
    disk = threading.Event()
    action = {
        "short": lambda proceed: time.sleep(0.5),
        "long": until_given_up,
        "stuck": lambda proceed: disk.wait(),
    }
    if kind != "short":
        monkeypatch.setattr(writer, "PATIENCE", 0.2)
    writes = WritesOf(monkeypatch)
    writes.at[2] = action[kind]
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2 * 10 + 1] = interrupt(signal.SIGTERM)
    train_here(*settings, "--out", str(tmp_path))
    assert (record(tmp_path)["status"], record(tmp_path)["exit_reason"]) == ("stopped", "SIGTERM")
    assert steps_saved(tmp_path) == [9 if kind == "short" else 7, 10]
    disk.set()
    for thread in threading.enumerate():
        if thread.name == "checkpoint writer":
            thread.join(10)
    assert not list((tmp_path / "train/weights").glob("*tmp"))
    assert {damage(path) for path in checkpoints(tmp_path)} == {None}
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def test_the_last_checkpoint_is_never_given_up(settings, whole, tmp_path, monkeypatch):  # noqa: F811
    """Neither by the signal in its own step, nor where the run fails meanwhile."""
    monkeypatch.setattr(writer, "PATIENCE", 0.01)
    slow = WritesOf(monkeypatch, lambda proceed: time.sleep(0.3))
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2 * 9 + 1] = interrupt(signal.SIGTERM)
    train_here(*settings, "--out", str(tmp_path))
    assert record(tmp_path)["status"] == "stopped" and steps_saved(tmp_path) == [7, 9]
    evaluations = CallsOf(monkeypatch, preference.Preference, "evaluate")
    evaluations.at[1] = fails(RuntimeError("a metric"))
    with pytest.raises(RuntimeError, match="a metric"):
        train_here(*settings, "--out", str(tmp_path))
    assert steps_saved(tmp_path) == [9, 14] and record(tmp_path)["steps"] == 14
    slow.at |= {slow.calls + 1: lambda proceed: None}
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def _fail_on_rank_0(rank: int, words: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, 2)
    config, _ = parse_settings(
        run_2_appendprompt.Config, [*words, "--page=false", f"--out={folder}/run"], "run_2.py"
    )
    with pytest.MonkeyPatch.context() as patched:
        writes = WritesOf(patched)
        writes.at[2] = lambda proceed: fails(OSError(errno.EIO, "Input/output error"))()
        with pytest.raises(OSError, match="Input/output"), runs.Run(config, world) as run:
            experiment = preference.Preference(config, world, run.folder)
            state = experiment.build_state(experiment.load_encoder())
            run.resume(state, experiment)
            while not run.done(state):
                run.after_step(state, core.train_step(state, experiment.loss_sum))
    Path(folder, f"{rank}.json").write_text(json.dumps([writes.calls, run.status, state.step]))
    dist.destroy_process_group()


def test_an_error_of_the_writer_is_raised_on_every_rank(settings, tmp_path):  # noqa: F811
    forked.spawn(_fail_on_rank_0, (settings, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0] == 2 and second[0] == 0  # the writer is rank 0's
    assert first[1:] == second[1:] and first[1] == "failed" and 9 <= first[2] <= 14
    assert steps_saved(tmp_path / "run") == [7]
