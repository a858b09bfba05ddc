"""No error after a step costs that step, and no file goes that a run did not write."""

import errno
import json
import multiprocessing
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import PROJECT, command, copied, environment
from test_resume import (
    CallsOf,
    Launch,
    assert_same_results,
    checkpoints,
    has_reached,
    interrupt,
    metric_lines,
    record,
    train_here,
    training_steps,
)

import claims
import core
import files
import gradients
import run_2_appendprompt
import run_5_models
import runs
import saving
from device import Machine
from evaluation import monitor
from experiments import preference
from files import damage, write_folder
from models import pairs
from runs import contents
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = "run_2_appendprompt.py"


@pytest.fixture(scope="module")
def settings(one_layer_bert, pair_csv, cache_folder) -> list[str]:
    """20 steps of two micro-batches, evaluations at 7, 14 and 20, checkpoints of their own at 9
    and 18."""
    return [
        *("--model", str(one_layer_bert), "--data", str(pair_csv), "--max_length", "32"),
        *(
            "--batch",
            "8",
            "--micro_batch",
            "4",
            "--save_every",
            "9",
            "--eval_every",
            "7",
            "--lr",
            "3e-3",
            "--epochs",
            "1",
        ),
    ]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    train_here(*settings, "--out", str(folder))
    return folder


def steps_saved(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in checkpoints(folder)]


# ------------------------------------------------------------------ errors after a step


def fails(error: BaseException):
    def action() -> None:
        raise error

    return action


def test_an_error_in_an_evaluation_costs_no_step(settings, whole, tmp_path, monkeypatch):
    evaluations = CallsOf(monkeypatch, preference.Preference, "evaluate")
    evaluations.at[2] = fails(RuntimeError("a metric"))
    with pytest.raises(RuntimeError, match="a metric"):
        train_here(*settings, "--out", str(tmp_path))
    assert record(tmp_path)["status"] == "failed"
    assert steps_saved(tmp_path) == [9, 14]
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def test_an_error_while_the_best_weights_are_written_costs_no_step(
    settings, whole, tmp_path, monkeypatch
):
    exports = CallsOf(monkeypatch, preference.Preference, "export")
    exports.at[1] = fails(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        train_here(*settings, "--out", str(tmp_path))
    assert steps_saved(tmp_path) == [7]
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def test_memory_that_runs_out_in_an_evaluation_halves_its_rows(settings, tmp_path, monkeypatch):
    """It is said once, and remembered over a stop."""
    sizes: list[int] = []
    original = pairs.pair_outputs

    def outputs(model, batch):
        rows = len(batch["labels"])
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(rows)
        return original(model, batch)

    monkeypatch.setattr(pairs, "pair_outputs", outputs)
    train_here(*settings, "--out", str(tmp_path), "--stop_after", "8")
    state = torch.load(checkpoints(tmp_path)[-1] / "state.pt", weights_only=True)
    assert state["numbers"]["evaluation_halvings"] >= 3 and set(sizes) <= {1, 2, 3, 4, 5}
    failed = len(sizes)
    train_here(*settings, "--out", str(tmp_path))
    assert record(tmp_path)["status"] == "finished" and len(sizes) > failed
    assert record(tmp_path)["evaluation_halvings"] == state["numbers"]["evaluation_halvings"]


def _with_errors_on_one_rank(rank: int, words: list[str], folder: str) -> None:
    """Out of memory on one rank of two: in an evaluation, in the first update, and in the sums of
    gradients, each before this rank has begun to wait for the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    places = [
        (0, pairs, "pair_outputs", 1),  # all validation rows are one batch, on rank 0
        (1, torch.optim.AdamW, "step", 1),
        (1, gradients.GradientSums, "_send", 2),
        (1, gradients.GradientSums, "_send", 0),  # never
    ]
    for number, (failing, owner, name, at) in enumerate(places):
        world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, 2)
        config, _ = parse_settings(
            run_2_appendprompt.Config, [*words, "--page=false", f"--out={folder}/{number}"], SCRIPT
        )
        with pytest.MonkeyPatch.context() as patched:
            calls = CallsOf(patched, owner, name)
            if rank == failing:
                calls.at[at] = fails(torch.OutOfMemoryError("CUDA out of memory"))
            with runs.Run(config, world) as run:
                experiment = preference.Preference(config, world, run.folder)
                state = experiment.build_state(experiment.load_encoder())
                run.resume(state, experiment)
                while not run.done(state):
                    run.after_step(state, core.train_step(state, experiment.loss_sum))
                run.finish(state, experiment)
    dist.destroy_process_group()


def test_memory_that_runs_out_on_one_rank_of_two_costs_no_step(settings, tmp_path):
    forked.spawn(_with_errors_on_one_rank, (settings, str(tmp_path)), nprocs=2)
    *harmed, reference = (tmp_path / str(number) for number in range(4))
    for folder in harmed[1:]:  # once more with freed memory: nothing else changed
        assert_same_results(folder, reference)
    assert record(harmed[0])["status"] == "finished"
    assert record(harmed[0])["evaluation_halvings"] == 1
    ours, theirs = metric_lines(harmed[0]), metric_lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        assert line.get("train_loss") == other.get("train_loss")
        assert line.get("val_loss", 0) == pytest.approx(other.get("val_loss", 0), abs=1e-5)


def test_rows_are_halved_for_what_is_computed_once_of_a_frozen_part(
    settings, whole, tmp_path, monkeypatch
):
    from transformers import BertModel

    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    original = BertModel.forward

    def forward(self, input_ids, **more):
        if len(input_ids) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, input_ids, **more)

    monkeypatch.setattr(BertModel, "forward", forward)
    words = [*settings, "--freeze", "all", "--page=false", "--out", str(tmp_path / "run")]
    run_5_models.main(*parse_settings(run_5_models.Config, words, "run_5_models.py"))
    assert record(tmp_path / "run")["status"] == "finished"


# ------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_that_cannot_be_removed_is_said_once_and_tried_again(
    settings, whole, tmp_path, monkeypatch, capsys
):
    original, busy = shutil.rmtree, ["step_00000007", "step_00000007"]

    def rmtree(path, *args, **named):
        if Path(path).name in busy:
            busy.remove(Path(path).name)
            raise OSError(16, "Device or resource busy")
        original(path, *args, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    train_here(*settings, "--out", str(tmp_path))
    said = capsys.readouterr().out
    assert said.count("step_00000007 cannot be removed (Device or resource busy)") == 1
    assert busy == [] and steps_saved(tmp_path) == [18, 20]
    assert_same_results(tmp_path, whole)


def test_an_old_folder_that_stays_does_not_keep_new_weights_from_being_written(
    tmp_path, monkeypatch
):
    original = shutil.rmtree
    for number in range(3):
        write_folder(tmp_path / "best", lambda at, n=number: (at / "n").write_text(str(n)))
        monkeypatch.setattr(
            shutil, "rmtree", lambda path, *a, **k: "old" in str(path) or original(path, *a, **k)
        )
    assert (tmp_path / "best/n").read_text() == "2" and damage(tmp_path / "best") is None


# ------------------------------------------------------------------- whose folder it is


@pytest.fixture
def mine(tmp_path) -> Path:
    """A folder of data as people have them."""
    folder = tmp_path / "mydata"
    for part in ("train", "test"):
        (folder / part / "cats").mkdir(parents=True)
        (folder / part / "cats/1.txt").write_text("mine")
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_a_folder_of_somebody_else_is_refused(settings, mine, fresh):
    before = files_of(mine)
    with pytest.raises(SystemExit, match="is no run, and holds train, test") as refused:
        train_here(*settings, "--out", str(mine), *fresh)
    assert "--fresh" not in str(refused.value)
    assert files_of(mine) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "model: resnet\nseed: 1\n"),
        ("config.yaml", "- a\n- list\n"),
        ("run.json", '{"started": 3}'),
        ("run.json", "[1, 2]"),
        ("report.html", "<p>of another tool</p>"),
    ],
)
def test_files_with_names_of_ours_make_no_run(settings, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=f"is no run, and holds {name}"):
        train_here(*settings, "--out", str(tmp_path), "--fresh")
    assert (tmp_path / name).read_text() == content


def test_a_suite_refuses_the_folder_of_a_task_that_is_somebody_elses(tmp_path):
    from runs.suite import begin_suite

    config, _ = parse_settings(run_2_appendprompt.Config, ["--fresh"], SCRIPT)
    (tmp_path / "cola/train").mkdir(parents=True)
    suite = runs.Run(config, core.World(torch.device("cpu"), Machine()))
    suite.record.path = tmp_path
    with pytest.raises(ValueError, match="cola is no run"):
        begin_suite(suite, ["cola"])
    assert (tmp_path / "cola/train").is_dir()


def test_fresh_removes_what_a_run_wrote_and_nothing_else(settings, whole, mine, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    report = [sys.executable, "report.py", "page", str(run)]
    subprocess.run(report, check=True, capture_output=True, env=environment())
    shutil.copytree(mine, run, dirs_exist_ok=True)
    theirs = {
        *("train/cats/1.txt", "test/cats/1.txt", "notes.md", "train/metrics/notes.txt"),
        *("train/weights/best/why.txt", "train/weights/kept/model.safetensors", "test/README"),
        *("train/analysis/mine.png", "report/of_mine.md", "train/weights/step_1.txt"),
    }
    for name in theirs - files_of(run):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    assert (run / "train/analysis/loss.png").exists()
    contents.delete_run(run)
    assert files_of(run) == theirs | {".lock"}
    assert not (run / "baseline").exists()
    with pytest.raises(ValueError, match="is no run"):
        contents.refuse_others(run)


def test_fresh_leaves_nothing_of_a_run_and_trains_anew(settings, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = record(whole)["id"]
    train_here(*settings, "--out", str(tmp_path / "run"), "--fresh", "--seed=1", "--stop_after=2")
    assert training_steps(tmp_path / "run") == [1, 2] and steps_saved(tmp_path / "run") == [2]
    assert (
        not (tmp_path / "run/test").exists() and not (tmp_path / "run/train/weights/best").exists()
    )
    assert record(tmp_path / "run")["id"] != before


@pytest.mark.parametrize("removals", [1, 6])
def test_a_kill_while_fresh_deletes_leaves_no_half_of_a_run(
    settings, whole, tmp_path, monkeypatch, removals
):
    """The next command, with --fresh or without, goes on deleting."""
    shutil.copytree(whole, tmp_path / "run")
    removed = CallsOf(monkeypatch, contents, "_remove")
    removed.at[removals] = fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train_here(*settings, "--out", str(tmp_path / "run"), "--fresh", "--seed", "1")
    train_here(*settings, "--out", str(tmp_path / "run"), "--seed", "1", "--stop_after", "2")
    assert training_steps(tmp_path / "run") == [1, 2] and steps_saved(tmp_path / "run") == [2]


def test_what_a_killed_write_left_goes_when_the_folder_is_opened(settings, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    left = ["run.json.tmp", "test/metrics/metrics.json.tmp", "train/metrics/metrics.jsonl.tmp"]
    left += ["train/weights/step_00000099.tmp/model.safetensors", "config.yaml.tmp"]
    left += ["report.html.tmp", "train/weights/best.1tmp/model.safetensors"]
    for name in left:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{")
    (run / "mine.tmp").write_text("mine")
    with pytest.raises(SystemExit) as end:  # it is finished
        train_here(*settings, "--out", str(run))
    assert not end.value.code
    assert [path.name for path in run.rglob("*tmp*")] == ["mine.tmp"]


def test_commands_do_not_write_over_what_is_no_run(mine):
    from commands.tfidf import Config, tfidf

    with pytest.raises(ValueError, match="is no run"):
        tfidf(Config(task="reviews", out=str(mine)))


# ------------------------------------------------------------------ which run continues


def test_the_newest_run_is_the_last_begun_whatever_the_clock_said(
    settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train_here(*settings, "--stop_after", "1")
    (first,) = Path("results").glob("*/*")
    train_here(*settings, "--stop_after", "2", "--fresh")
    (second,) = set(Path("results").glob("*/*")) - {first}
    moved = second.with_name("1999-12-31_23-59-59")  # the clock had gone back
    second.rename(moved)
    capsys.readouterr()
    train_here(*settings, "--stop_after", "1")
    assert f"continuing {moved}" in capsys.readouterr().out
    assert (record(first)["number"], record(moved)["number"]) == (1, 2)


def test_a_run_has_an_id_of_its_own_that_moves_with_it(settings, tmp_path, monkeypatch):
    opened = []

    class Fake:
        name = "fake"

        def __init__(self, folder, settings, step, id):
            opened.append((folder.name, step, id))

        def log(self, line): ...
        def close(self): ...

    monkeypatch.setattr(monitor, "TRACKERS", {"json": Fake})  # a package that is there
    words = [*settings, "--trackers", "json", "--stop_after", "1"]
    train_here(*words, "--out", str(tmp_path / "a"))
    train_here(*words, "--out", str(tmp_path / "b"))
    (tmp_path / "a").rename(tmp_path / "c")
    train_here(*words, "--out", str(tmp_path / "c"))
    (_, _, a), (_, _, b), (_, _, c) = opened
    assert a == c != b and [step for _, step, _ in opened] == [0, 0, 1]


# ----------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_saves_and_a_second_one_loses_nothing(
    settings, whole, tmp_path, monkeypatch, number
):
    """The second comes while the checkpoint is written, a third while run.json is."""
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2 * 10 + 1] = interrupt(number)
    writes = CallsOf(monkeypatch, runs.run.Checkpoints, "_write")
    writes.at[4] = interrupt(signal.SIGTERM)
    leaves = CallsOf(monkeypatch, runs.Run, "_leave")
    leaves.at[1] = interrupt(number)
    train_here(*settings, "--out", str(tmp_path))
    assert (record(tmp_path)["status"], steps_saved(tmp_path)[-1]) == ("stopped", 10)
    train_here(*settings, "--out", str(tmp_path))
    assert_same_results(tmp_path, whole)


def test_a_signal_twice_before_training_leaves_a_record(settings, tmp_path, monkeypatch):
    load = CallsOf(monkeypatch, preference.Preference, "load_encoder")
    load.at[1] = interrupt(signal.SIGHUP)
    leaves = CallsOf(monkeypatch, runs.Run, "_leave")
    leaves.at[1] = interrupt(signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_here(*settings, "--out", str(tmp_path))
    assert record(tmp_path)["status"] == "stopped"


def test_nohup_stays(settings, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
        loss_sum.at[3] = interrupt(signal.SIGHUP)
        train_here(*settings, "--out", str(tmp_path), "--stop_after", "2")
        assert record(tmp_path)["exit_reason"] == "--stop_after 2"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_torchrun_passes_a_closed_terminal_on(settings, tmp_path):
    """Two processes, each with a loader worker."""
    words = command(SCRIPT, *settings, "--workers=1", "--epochs=9", f"--out={tmp_path / 'run'}")
    words[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with Launch(words, tmp_path / "log.txt") as run:
        run.wait_until(has_reached(tmp_path / "run", 12))
        run.process.send_signal(signal.SIGHUP)
        run.wait(expect=None, timeout=60)
    end = record(tmp_path / "run")
    assert (end["status"], end["exit_reason"]) == ("stopped", "SIGHUP")
    assert steps_saved(tmp_path / "run")[-1] == training_steps(tmp_path / "run")[-1]


# ---------------------------------------------------------------------------- consoles


def shell(words: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", words, "bash", *arguments],
        env=environment(PYTHONIOENCODING="", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        capture_output=True,
        timeout=180,
        stdin=subprocess.DEVNULL,
    )


def test_a_console_that_cannot_be_written_ends_no_run(settings, whole, tmp_path):
    """A full disk under the log, and a reader that leaves."""
    words = command(SCRIPT, *settings, "--out", str(tmp_path / "run"))
    shell('"$@" 2>/dev/full | head -1', *copied(words))
    assert_same_results(tmp_path / "run", whole)


def run_code(code: str, words: str = '"$@"') -> subprocess.CompletedProcess:
    code = f"import console, sys, time\nconsole.open_streams()\n{code}"
    return shell(words, sys.executable, "-c", code)


def test_what_a_terminal_cannot_show_is_replaced():
    done = run_code(
        r"console.say('a \xb7 b \u2713'); print('a \xb7 b'); print('\xb7', file=sys.stderr)"
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [b"a ? b ?", b"a ? b"] and done.stderr == b"?\n"


def test_an_answer_that_cannot_be_written_is_an_error_and_a_reader_that_left_is_none():
    code = "console.say('said')\nconsole.answer('answer')"
    full = run_code(code, '"$@" >/dev/full')
    assert full.returncode == 1 and b"standard output: No space left on device" in full.stderr
    left = run_code(
        f"import time; time.sleep(.3)\n{code}\nsys.exit(3)", '"$@" | true; exit ${PIPESTATUS[0]}'
    )
    assert (left.returncode, left.stderr) == (0, b"")


def test_the_report_to_a_reader_that_leaves(whole):
    done = shell('"$@" | head -1', sys.executable, "report.py", "table", str(whole))
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout


def test_a_closed_stream_is_not_taken_by_the_next_file(tmp_path):
    code = f"file = open({str(tmp_path / 'data')!r}, 'w')\nconsole.say('said'); print('said')"
    assert run_code(code, '"$@" <&- >&- 2>&-').returncode == 0
    assert (tmp_path / "data").read_text() == ""


def test_a_terminal_that_is_closed():
    """Its bar, too."""
    ours, theirs = pty.openpty()
    code = (
        "from tqdm import tqdm\nimport os\nbar = tqdm(total=3)\nsys.stdin.readline()\n"
        "for n in range(3):\n    bar.update(); console.say(str(n))\nos.write(3, b'end')"
    )
    code = f"import console, sys\nconsole.open_streams()\n{code}"
    end, write_end = os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3>&{write_end}', "bash", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        pass_fds=(write_end,),
    )
    for descriptor in (write_end, theirs, ours):
        os.close(descriptor)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0 and os.read(end, 9) == b"end"
    os.close(end)


# ---------------------------------------------------------------------- loader workers


class Large:
    """Rows in a memory map, as tokens are."""

    def __init__(self, path: Path):
        np.save(path, np.arange(10))
        self.rows = np.load(path, mmap_mode="r")
        self.lengths = self.tokens = np.ones(10, dtype=int)

    def __getstate__(self):
        raise AssertionError("sent to a loader worker")

    def collate(self, rows, epoch):
        return {"x": torch.from_numpy(self.rows[rows])}


def test_loader_workers_share_memory_maps(tmp_path, monkeypatch):
    """Also where Python starts processes anew by default, as 3.14 does."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", context)
    config = run_2_appendprompt.Config(workers=2, batch=4)
    world = core.World(torch.device("cpu"), Machine())
    loader = core.TrainLoader(Large(tmp_path / "rows.npy"), config, world)
    assert sum(len(loader.next().micro_batches) for _ in range(3)) > 0
    assert {type(worker).__name__ for worker in loader._batches._workers} == {"ForkProcess"}


def _with_few_files(rank: int, words: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    sys.argv = words
    with pytest.raises(SystemExit) as ended:
        runs.launch(run_2_appendprompt.main, run_2_appendprompt.Config)
    said = str(ended.value.code)
    assert said.startswith("error: ") and "ulimit -n" in said and "--workers" in said


def test_too_many_open_files_say_what_to_do(settings, tmp_path):
    words = [SCRIPT, *settings, "--workers", "60", "--out", str(tmp_path)]
    forked.spawn(_with_few_files, (words,), nprocs=1)


# ------------------------------------------------------------------------ symbolic links


def test_a_run_that_is_a_link_is_found_and_a_link_to_nothing_is_said(whole, tmp_path):
    from reports.folder import find_runs, load_runs, shared_notes

    arm = tmp_path / "results/arm"
    arm.mkdir(parents=True)
    shutil.copytree(whole, arm / "seed_0")
    other = shutil.copytree(whole, tmp_path / "elsewhere/seed_1") / "run.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"id": "another run"}))
    (arm / "seed_1").symlink_to(tmp_path / "elsewhere/seed_1")
    (arm / "seed_2").symlink_to(tmp_path / "gone")
    (arm / "loop").symlink_to(tmp_path / "results")
    found = find_runs(tmp_path / "results")
    assert [run.path.name for run in found] == ["seed_0", "seed_1"]
    assert "seed_2 leads to nothing" in "\n".join(shared_notes(found))
    assert len(load_runs([arm, tmp_path / "elsewhere"])) == 2


def test_rows_behind_a_link_are_read(tmp_path):
    from collections import Counter

    from data.records import read_records

    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/b.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "data/more").symlink_to(tmp_path / "disk")
    assert [row for _, row in read_records(tmp_path / "data", Counter())] == [{"a": 1}, {"a": 2}]


def test_yaml_of_older_runs_is_known_to_be_ours(whole, tmp_path):
    """One that was killed before its first run.json."""
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "bad_rows.csv").write_text("")
    assert contents.is_run(tmp_path)
    contents.refuse_others(tmp_path)


def test_the_words_of_a_record_stay_what_other_tools_read(whole):
    content = json.loads((whole / "run.json").read_text())
    assert content["schema_version"] == 1 and len(content["id"]) == 16 and "number" not in content


def test_what_a_kill_left_of_a_write_is_replaced_by_the_next_one(tmp_path):
    """By whatever process: nothing piles up in a run's folder."""
    code = "import os, sys; from pathlib import Path; import files\n"
    code += "os.replace = lambda *names: os.kill(os.getpid(), 9)\n"
    code += "files.write_text(Path(sys.argv[1]), 'half')"
    path = tmp_path / "evaluation.json"
    for _ in range(2):
        words = [sys.executable, "-c", code, str(path)]
        assert subprocess.run(words, cwd=PROJECT).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    files.write_text(path, "whole")
    assert [each.name for each in tmp_path.iterdir()] == ["evaluation.json"]


# ------------------------------------------------------------------------ a second writer


@pytest.fixture
def no_locks(monkeypatch):
    """A volume without locks."""

    def refuse(*words) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("runs.folder.fcntl.lockf", refuse)


def claimed_by(folder: Path, process: dict, number: int = 1) -> None:
    place = folder / claims.OWN / claims.CLAIMS
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{number}.json").write_text(json.dumps({"token": "other", **process}))


def test_a_second_writer_is_refused_without_locks(settings, tmp_path, no_locks):
    claimed_by(tmp_path / "run", claims.process(os.getppid()))  # which is there
    with pytest.raises(SystemExit, match="another process is writing"):
        train_here(*settings, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_run_that_was_taken_over_leaves_the_folder_to_its_owner(
    settings, tmp_path, no_locks, monkeypatch
):
    """It was silent for long, and wakes: no checkpoint, no record, no result from then on."""
    folder, write = tmp_path / "run", saving.write_files

    def write_and_fall_silent(*words):
        written = write(*words)
        claimed_by(folder, {"host": "other", "machine": "another", "pid": 1, "began": "1"}, 2)
        return written

    monkeypatch.setattr("runs.checkpoints.write_files", write_and_fall_silent)
    with pytest.raises((SystemExit, ValueError), match="another one took the run over"):
        train_here(*settings, "--out", str(folder))
    assert [path.name for path in checkpoints(folder)] == ["step_00000007"]
    assert record(folder)["status"] == "running" and not (folder / "train/weights/best").exists()
    assert (folder / claims.OWN / claims.CLAIMS / "2.json").exists()


def test_a_run_lets_go_of_its_folder(settings, tmp_path):
    folder = tmp_path / "run"
    train_here(*settings, "--stop_after", "3", "--out", str(folder))
    assert not (folder / claims.OWN).exists()
    # a kill leaves a claim of a process that is no more: nobody waits for it
    gone = subprocess.Popen(["true"])
    process = claims.process(gone.pid)
    gone.wait()
    claimed_by(folder, process)
    train_here(*settings, "--stop_after", "3", "--out", str(folder))
    assert record(folder)["steps"] == 6 and not (folder / claims.OWN).exists()
