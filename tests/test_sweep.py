"""sweep.py: what it plans, skips, continues, stops and says; with a script that trains nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import PROJECT, environment

import sweep
from sweeps.places import Cards, count_intel_cards, place_of, visible_cards
from sweeps.plan import parse_seeds
from sweeps.words import last_words

# Obeys the run-folder contract. Validation loss is lowest at lr 1e-3; steps take `pace` seconds.
SCRIPT = """
import json, math, os, signal, sys, time
from pathlib import Path

known = dict(lr="1e-3", pace="0", fail="false", leak="false", labels="true", freeze="none",
             parts="null", test_with="best", seed="0", out="", die="false", diverge="3")
if "--help" in sys.argv:
    sys.exit(print("--labels {true,shuffled}"))
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
for name in given.keys() - known.keys():
    sys.exit(f"unknown setting {name}: see --help")
told = known | given
out, lr = Path(told["out"]), float(told["lr"])
with open("launches.txt", "a") as file:
    file.write(told["out"] + "\\n")
if (out / "config.yaml").exists():
    theirs = json.loads((out / "config.yaml").read_text())
    if other := [k for k in told if theirs[k] != told[k] and k != "out"]:
        sys.exit(f"{out} holds a run with other settings:\\n  "
                 + "\\n  ".join(f"{k}: {theirs[k]} there, {told[k]} now" for k in other))
(out / "train/metrics").mkdir(parents=True, exist_ok=True)
(out / "test/metrics").mkdir(parents=True, exist_ok=True)
(out / "config.yaml").write_text(json.dumps(told))

def record(status, reason="", verdicts=()):
    (out / "run.json").write_text(json.dumps(dict(status=status, exit_reason=reason,
        verdicts=verdicts, script=Path(sys.argv[0]).name, seed=int(told["seed"]),
        command=[Path(sys.argv[0]).name, *sys.argv[1:]])))

signals = []
def on_signal(number, frame):
    signals.append(number)
    with open(out / "signals.txt", "a") as file:
        file.write(f"{number}\\n")
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
metrics = out / "train/metrics/metrics.jsonl"
begun = len(metrics.read_text().splitlines()) if metrics.exists() else 0
record("running")
started = time.time()
if told["die"] == "true":
    os.kill(os.getpid(), signal.SIGKILL)
if told["fail"] == "true":
    print("step 1")
    record("failed", "ValueError")
    print("error: the data are made of soap")
    sys.exit(1)
if -math.log10(lr) < float(told["diverge"]) - 2:
    record("failed", "RuntimeError", ["diverged: the loss is NaN"])
    sys.exit("RuntimeError: training diverged")
for step in range(begun, 3):
    time.sleep(float(told["pace"]))
    if signals:
        time.sleep(0.3)
        record("stopped", "SIGTERM")
        print(f"stopped at step {step}")
        sys.exit(0)
    with open(metrics, "a") as file:
        loss = abs(math.log10(lr) + 3) + 0.1 * abs(step - 1) if step else None
        line = {"step": step + 1, "val_loss": loss, "val_accuracy": 0.9 - lr}
        file.write(json.dumps(line) + "\\n")
shuffled = told["labels"] == "shuffled" and told["leak"] == "false"
accuracy = 0.37 if shuffled else 0.7
(out / "test/metrics/metrics.json").write_text(json.dumps({"n": 100, "accuracy": accuracy,
    "accuracy_ci95": [accuracy - 0.03, accuracy + 0.03], "constant_accuracy": 0.36}))
(out / "test/metrics/predictions.csv").write_text("id,group,label,prediction\\n")
(out / "times.json").write_text(json.dumps([started, time.time()]))
record("finished")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with fake.py to sweep and a report.py that notes what it is asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(SCRIPT)
    (tmp_path / "report.py").write_text(
        "import sys\nprint('REPORT', *sys.argv[1:])\n"
        "open('reports.txt', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    )
    monkeypatch.setattr(sweep, "REPORT", tmp_path / "report.py")
    return tmp_path


def run(*words: str) -> int:
    return sweep.main([str(word) for word in words])


def refusal(*words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def plan(*words: str) -> sweep.Plan:
    return sweep.Plan(sweep.parse_arguments([str(word) for word in words]))


def write(content: dict | str, name: str = "given.yaml") -> str:
    Path(name).write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return name


def launches() -> list[str]:
    """The places of the runs that were launched; each wrote to an attempt's folder."""
    path = Path("launches.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    return [re.sub(r"attempts/\d+/", "", line) for line in lines]


def attempt(run_folder: str, number: int = 1) -> str:
    """Where a run is before it has ended: o/runs/seed_0 → o/attempts/1/runs/seed_0."""
    out, _, name = run_folder.partition("/")
    return f"{out}/attempts/{number}/{name}"


def status(run_folder: str) -> str:
    return json.loads((Path(run_folder) / "run.json").read_text())["status"]


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, str(PROJECT / "sweep.py"), *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def wait_for(path: str, seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not Path(path).exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


# ------------------------------------------------------------------------------ the plan


def test_the_grid_is_every_combination(folder):
    made = plan("fake.py", "--grid", "lr=1e-5,2e-5", "freeze=none,all", "--seeds", "2")
    assert [(arm.label, arm.settings) for arm in made.arms] == [
        ("lr=1e-05,freeze=none", {"lr": 1e-5, "freeze": "none"}),
        ("lr=1e-05,freeze=all", {"lr": 1e-5, "freeze": "all"}),
        ("lr=2e-05,freeze=none", {"lr": 2e-5, "freeze": "none"}),
        ("lr=2e-05,freeze=all", {"lr": 2e-5, "freeze": "all"}),
    ]
    assert [r.name for r in made.runs(made.arms[0], {})] == [
        "lr=1e-05,freeze=none/seed_0",
        "lr=1e-05,freeze=none/seed_1",
    ]
    assert made.out == Path("results/sweeps/fake")


def test_values_are_yaml_and_reach_the_script_as_they_were_meant(folder):
    made = plan("fake.py", "--grid", "parts=[[1, 2], null]", "--set", "lr=1e-4", "leak=true")
    assert [arm.settings["parts"] for arm in made.arms] == [[1, 2], None]
    commands = [made.command(made.runs(arm, {})[0]) for arm in made.arms]
    out = "results/sweeps/fake/parts"
    assert commands[0][1:] == [
        *("fake.py", "parts=[1, 2]", "lr=0.0001", "leak=true", "seed=0"),
        f"out={out}=_1,_2/seed_0",
    ]
    assert commands[1][2] == "parts=null"


@pytest.mark.parametrize(
    "given, seeds",
    [("3", [0, 1, 2]), (2, [0, 1]), ("3,5,7", [3, 5, 7]), ("4,", [4]), ([9, 2], [9, 2])],
)
def test_seeds_are_a_number_or_a_list(given, seeds):
    assert parse_seeds(given) == seeds


def test_arms_and_grid_multiply_and_the_command_line_comes_last(folder):
    write({"freeze": "all", "lr": 0.5, "pace": 1}, "base.yaml")
    config = write(
        "script: fake.py\nseeds: [4]\nlr: 1e-2\npace: 0\ngrid: {leak: [true, false]}\n"
        "arms:\n  plain:\n  other: {config: base.yaml, parts: 1, seeds: 2}\n"
    )
    made = plan("--config", config, "--set", "pace=2", "--processes", "2")
    assert [(arm.label, arm.seeds) for arm in made.arms] == [
        ("plain,leak=true", [4]),
        ("plain,leak=false", [4]),
        ("other,leak=true", [0, 1]),
        ("other,leak=false", [0, 1]),
    ]
    assert made.arms[0].settings == {"lr": 1e-2, "pace": 2, "leak": True}
    other = {"freeze": "all", "lr": 0.5, "pace": 2, "parts": 1, "leak": False}
    assert made.arms[3].settings == other
    assert made.processes == 2


def test_an_ordinary_settings_file_is_one_arm(folder):
    made = plan("fake.py", "--config", write({"lr": 0.1}, "mine.yaml"))
    assert [(arm.label, arm.settings) for arm in made.arms] == [("runs", {"lr": 0.1})]
    assert made.arms[0].seeds == [0, 1, 2] and made.out.name == "mine"


def test_hyphens_of_a_flag_are_read_over_and_those_of_a_value_stay(folder):
    words = [
        "--dry-run",
        "--max-seeds=4",
        "--config=a-b/c-d.yaml",
        "--out",
        "x-y",
        "--set",
        "a=b-c",
    ]
    args = sweep.parse_arguments(words)
    assert args.dry_run and args.max_seeds == 4
    assert (args.config, args.out, args.fixed) == ("a-b/c-d.yaml", "x-y", ["a=b-c"])


def test_more_than_one_process_is_torchrun(folder):
    made = plan("fake.py", "--processes", "4", "--seeds", "1", "--out", "o")
    assert made.command(made.runs(made.arms[0], {})[0]) == [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"),
        *("fake.py", "seed=0", "out=o/runs/seed_0"),
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        (["fake.py", "--sedes", "3"], "did you mean --seeds?"),
        (["fake.py", "--lr", "3"], "--set"),
        (["nothing.py"], "no such script: nothing.py"),
        (["fake.py", "--config", "nothing.yaml"], "no such config: nothing.yaml"),
        ([], "which script?"),
        (["--aa"], "which script?"),
        (["fake.py", "--grid", "lr="], "lr="),
        (["fake.py", "--grid", "lr=[]"], "a list of values"),
        (["fake.py", "--grid", "lr=1e-5,0.00001"], "given twice"),
        (["fake.py", "--grid", "lr=1", "lr=2"], "given twice"),
        (["fake.py", "--seeds", "3,3"], "given twice"),
        (["fake.py", "--seeds", "0"], "seeds 0"),
        (["fake.py", "--seeds", "1337"], "The seed 1337 alone is '1337,'"),
        (["fake.py", "--seeds", "two"], "seeds two"),
        (["fake.py", "--set", "seed=3"], "--seeds"),
        (["fake.py", "--grid", "lr=1,2", "--set", "lr=3"], "lr: both in grid and in --set"),
        (["fake.py", "--grid", "lr=1,2", "--aa"], "--aa"),
        (["fake.py", "--jobs", "0"], "--jobs 0"),
        (["fake.py", "--processes", "0"], "processes 0"),
    ],
)
def test_mistakes_are_one_line_and_run_nothing(folder, words, message):
    assert message in refusal(*words)
    assert not launches() and not Path("results").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2]", "expected 'name: value' lines"),
        ("a: b: c", "cannot be read"),
        ("script: fake.py\ngrid: {lr: 3}", "expected a list of values"),
        ("script: fake.py\narms: {a: {lr: 1}, b: {lr: 1}}", "have the same settings"),
        ("script: fake.py\narms: {a/b: {lr: 1}, a:b: {lr: 2}}", "share the folder a_b"),
        ("script: fake.py\narms: {a: {lr: 1}}\ntune: {lr: [1, 2]}", "both in arms and in tune"),
        ("script: fake.py\narms: [a, b]", "expected labels"),
    ],
)
def test_mistakes_in_the_file_are_one_line(folder, content, message):
    assert message in refusal("--config", write(content))


def test_every_sweep_file_of_the_project_is_a_plan(monkeypatch):
    monkeypatch.chdir(PROJECT)
    files = sorted(Path("configs/sweeps").glob("*.yaml"))
    assert files
    for file in files:
        made = plan("--config", file)
        assert len(made.arms) > 1 and all(len(arm.seeds) >= 3 for arm in made.arms), file


def test_starting_is_fast():
    code = "import sweep, sys; sys.exit('torch' in sys.modules or 'jsonargparse' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


@pytest.mark.parametrize(
    "slot, jobs, processes, cores, gpus, given, expected",
    [
        (0, 1, 1, 8, "", {}, {}),
        (0, 2, 1, 8, "", {}, {"OMP_NUM_THREADS": "4"}),
        (0, 2, 2, 2, "", {}, {"OMP_NUM_THREADS": "1"}),
        (0, 2, 1, 8, "", {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}),
        (1, 2, 2, 8, "0 1 2 3", {}, {"OMP_NUM_THREADS": "2", "CARDS": "2,3"}),
        (1, 2, 1, 8, "5 7", {}, {"OMP_NUM_THREADS": "4", "CARDS": "7"}),
        (2, 3, 1, 9, "5 7", {}, {"OMP_NUM_THREADS": "3", "CARDS": "5"}),
        (0, 1, 2, 8, "0 1", {}, {"OMP_NUM_THREADS": "4"}),
        (0, 1, 4, 8, "0 1", {}, {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_runs_at_a_time_share_cores_and_cards(
    folder, monkeypatch, slot, jobs, processes, cores, gpus, given, expected
):
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    place = place_of(slot, jobs, processes, cores, Cards("CARDS", tuple(gpus.split())), given)
    place.close()
    assert place.environment == expected


def test_sweeps_on_one_machine_take_different_cards(folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    cards = Cards("CARDS", ("0", "1", "2"))
    places = [place_of(0, 1, 1, 8, cards, {}) for _ in range(4)]
    assert [place.environment["CARDS"] for place in places] == ["0", "1", "2", "0"]
    child = subprocess.Popen(["sleep", "60"], pass_fds=places[1].descriptors)
    for place in places:  # the sweep lets go of them; the run, which lives, has its own
        place.close()
    try:
        again = [place_of(0, 1, 1, 8, cards, {}) for _ in range(2)]
        assert [place.environment["CARDS"] for place in again] == ["0", "2"]
    finally:
        child.kill()
        child.wait()


def test_cards_are_those_of_the_driver_or_of_the_environment(folder, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.delenv(name, raising=False)
    Path("nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: fake'\necho 'GPU 1: fake'\n")
    Path("nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert visible_cards() == Cards("CUDA_VISIBLE_DEVICES", ("0", "1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    assert visible_cards().names == ("3", "5", "6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_cards().names == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ZE_AFFINITY_MASK", "0.0,0.1")
    assert visible_cards() == Cards("ZE_AFFINITY_MASK", ("0.0", "0.1"))
    # without either word, torch is asked how many Intel cards it can use
    monkeypatch.delenv("ZE_AFFINITY_MASK")
    Path("nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    cards = folder / "drm"
    for number, vendor in enumerate(["0x8086", "0x10de"]):
        (cards / f"renderD{number}/device").mkdir(parents=True)
        (cards / f"renderD{number}/device/vendor").write_text(f"{vendor}\n")
    assert count_intel_cards(cards) == 1
    monkeypatch.setattr("sweeps.places.count_intel_cards", lambda: 1)
    monkeypatch.setattr("sweeps.places.COUNT_INTEL", "print(2)")
    assert visible_cards() == Cards("ZE_AFFINITY_MASK", ("0", "1"))
    assert visible_cards(several=False) == Cards()


# ------------------------------------------------------------------------------- running


def test_a_sweep_runs_reports_and_is_not_run_twice(folder, capsys):
    words = ["fake.py", "--grid", "lr=1e-3,1e-4", "--seeds", "2", "--out", "o"]
    assert run(*words) == 0
    arms = ["o/lr=0.001", "o/lr=0.0001"]
    runs = [f"{arm}/seed_{seed}" for arm in arms for seed in (0, 1)]
    assert launches() == runs and {status(r) for r in runs} == {"finished"}
    reports = ["table o", f"compare {arms[0]} {arms[1]}"]
    assert Path("reports.txt").read_text().splitlines() == reports
    said = capsys.readouterr().out
    assert "2/4  lr=0.001/seed_1  finished in" in said
    assert "accuracy 0.700 [0.670, 0.730]" in said and "min left" in said
    assert Path(f"{runs[0]}.log").read_text().startswith("$ ")
    # again: nothing is launched, and the table comes all the same
    assert run(*words) == 0
    assert launches() == runs
    assert "4 of 4 are finished already" in capsys.readouterr().out
    assert Path("reports.txt").read_text().splitlines() == reports * 2
    # more seeds: only they are run
    assert run(*words[:3], "--seeds", "3", "--out", "o") == 0
    assert launches()[4:] == [f"{arm}/seed_2" for arm in arms]


def test_how_results_are_judged_is_declared_before_the_first(folder):
    arms = {"a": {"freeze": "none"}, "b": {"freeze": "all"}}
    declared = {"script": "fake.py", "seeds": 2, "arms": arms, "paired": True, "margin": 0.01}
    assert run("--config", write(declared), "--out", "s") == 0
    written = yaml.safe_load(Path("s/sweep.yaml").read_text())
    assert written["paired"] is True and written["margin"] == 0.01
    assert run("--config", write(declared), "--out", "s") == 0  # again, all finished
    for other in ({"paired": False}, {"margin": 0.02}, {"margin": None}):
        said = refusal("--config", write(declared | other), "--out", "s")
        assert "before 4 runs finished" in said
    for wrong, message in (
        ({"paired": "yes"}, "expected true or false"),
        ({"margin": -1}, "expected a difference above 0"),
        ({"margin": True}, "expected a difference above 0"),
        ({"arms": {"a": {"seeds": [0, 1]}, "b": {"seeds": [2, 3]}}}, "need the same seeds"),
    ):
        assert message in refusal("--config", write(declared | wrong), "--out", "other")


def test_the_written_plan_repeats_the_sweep(folder):
    assert run("fake.py", "--grid", "freeze=none,all", "--set", "lr=1e-4", "--out", "o") == 0
    assert len(launches()) == 6
    assert run("--config", "o/sweep.yaml", "--out", "o") == 0
    assert len(launches()) == 6, "the plan that was written asks for other settings"


def test_a_dry_run_prints_the_commands_and_writes_nothing(folder, capsys):
    config = write({"script": "fake.py", "tune": {"lr": [1e-3, 1e-4]}, "seeds": 1})
    assert run("--config", config, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    out = "results/sweeps/given/runs"
    assert said[:3] == [
        f"python fake.py lr=0.001 seed=1000 out={out}/tune/lr=0.001",
        f"python fake.py lr=0.0001 seed=1000 out={out}/tune/lr=0.0001",
        f"python fake.py lr=TUNED seed=0 out={out}/seed_0",
    ]
    assert not launches() and not Path("results").exists()


def test_a_failed_run_is_listed_and_the_rest_is_run(folder, capsys):
    config = write(
        {"arms": {"good": {}, "bad": {"fail": True}, "killed": {"die": True}, "last": {"lr": 0.1}}}
    )
    assert run("fake.py", "--config", config, "--seeds", "1", "--out", "o") == 1
    said = capsys.readouterr().out
    assert "failed: 2" in said
    assert "  bad/seed_0: error: the data are made of soap\n" in said
    assert "  killed/seed_0: killed by SIGKILL" in said
    assert status("o/good/seed_0") == status("o/last/seed_0") == "finished"
    assert Path("reports.txt").read_text() == "table o\ncompare o/good/seed_0 o/last/seed_0\n"
    # the next error is that of the next session, in a log of its own
    bad = ["fake.py", "--config", write({"arms": {"bad": {"lrr": 1}}}), "--seeds", "1"]
    assert run(*bad, "--out", "o") == 1
    assert "  bad/seed_0: unknown setting lrr: see --help\n" in capsys.readouterr().out
    logs = [Path(f"o/claims/bad/seed_0/{number}.log").read_text() for number in (1, 2)]
    assert "made of soap" in logs[0] and "unknown setting" in logs[1]
    assert not Path("o/bad").exists(), "a run that failed is not published"


def test_a_finished_run_with_other_settings_is_refused_by_the_script(folder, capsys):
    assert run("fake.py", "--seeds", "1", "--out", "o", "--set", "lr=1e-3") == 0
    assert run("fake.py", "--seeds", "2", "--out", "o", "--set", "lr=1e-4") == 1
    assert "other settings: lr: 0.001 there, 0.0001 now" in capsys.readouterr().out
    assert status("o/runs/seed_1") == "finished", "a refusal is no reason to leave out the rest"


def test_a_settings_error_is_not_repeated_in_every_run(folder, capsys):
    assert run("fake.py", "--set", "lrr=1e-3", "--seeds", "50", "--out", "o") == 1
    said = capsys.readouterr().out
    assert "the first run failed before its first step" in said
    assert "unknown setting lrr" in said
    assert said.count("  started") == 1
    assert not Path("reports.txt").exists()


def test_runs_overlap_with_jobs_and_do_not_without(folder):
    def overlaps(out: str, jobs: int) -> bool:
        words = ["fake.py", "--set", "pace=0.1", "--seeds", "2", "--out", out, "--jobs", jobs]
        assert run(*words) == 0
        one, two = (json.loads(path.read_text()) for path in Path(out).glob("*/*/times.json"))
        return max(one[0], two[0]) < min(one[1], two[1])

    assert overlaps("two", 2) and not overlaps("one", 1)


@pytest.mark.parametrize(
    "number, code, jobs", [(signal.SIGTERM, 143, "2"), (signal.SIGINT, 130, "1")]
)
def test_a_signal_reaches_each_run_once_and_the_same_command_continues(folder, number, code, jobs):
    words = ["fake.py", "--set", "pace=0.3", "--seeds", "3", "--out", "o", "--jobs", jobs]
    process = start(*words)
    begun = [f"o/runs/seed_{seed}" for seed in range(int(jobs))]
    for run_folder in begun:
        wait_for(f"{attempt(run_folder)}/train/metrics/metrics.jsonl")
    os.killpg(process.pid, number)  # as a terminal does with Ctrl-C
    time.sleep(0.1)
    os.killpg(process.pid, number)  # an impatient second one is not passed on
    said, _ = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert said.endswith("stopped; the same command continues\n")
    for run_folder in begun:
        assert status(attempt(run_folder)) == "stopped" and not Path(run_folder).exists()
        signals = Path(attempt(run_folder), "signals.txt").read_text().split()
        assert signals == [str(int(signal.SIGTERM))]
    assert len(launches()) == int(jobs), "a run was begun after the signal"
    assert run(*words) == 0
    for seed in range(3):
        lines = Path(f"o/runs/seed_{seed}/train/metrics/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_run_that_was_stopped_by_others_is_not_called_finished(folder, capsys):
    process = start("fake.py", "--set", "pace=0.3", "--seeds", "1", "--out", "o")
    wait_for(attempt("o/runs/seed_0") + "/train/metrics/metrics.jsonl")
    pids = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True)
    os.kill(int(pids.stdout), signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "runs/seed_0: stopped, not finished: SIGTERM" in said


def test_errors_are_found_in_what_torchrun_prints():
    log = (
        "step 1 loss 1.0\n[rank 1] error: no such file\nx.csv: look there\n"
        "E1122 torch/distributed/elastic/multiprocessing/api.py:984] failed\n"
        "Traceback (most recent call last):\nChildFailedError: \n=====\n"
    )
    assert last_words(log) == "[rank 1] error: no such file x.csv: look there"
    assert last_words("Traceback:\n  File x\nValueError: 3 rows\n\n") == "ValueError: 3 rows"
    assert last_words("fine\n\x1b[31mthe end\n") == "[31mthe end"
    assert last_words("") == "no output"


# -------------------------------------------------------------------------------- tuning


def test_tuning_gives_each_arm_the_same_trials_and_its_seeds_the_best(folder, capsys):
    config = write(
        "script: fake.py\nseeds: 2\ntune: {lr: [1e-1, 1e-3, 1e-5]}\n"
        "arms: {one: {freeze: none}, two: {freeze: all}}\n"
    )
    assert run("--config", config, "--out", "o") == 0
    trials = [f"o/{arm}/tune/lr={v}" for arm in ("one", "two") for v in ("0.1", "0.001", "1e-05")]
    runs = [f"o/{arm}/seed_{seed}" for arm in ("one", "two") for seed in (0, 1)]
    assert launches() == trials + runs
    for r in runs:
        assert json.loads((Path(r) / "config.yaml").read_text())["lr"] == "0.001"
    told = {json.loads((Path(t) / "config.yaml").read_text())["seed"] for t in trials}
    assert told == {"1000"}
    tuned = yaml.safe_load(Path("o/tuned.yaml").read_text())
    assert tuned["two"]["chosen"] == {"lr": 0.001}
    # the lowest of all evaluations counts, not the last (which is .1 higher)
    assert tuned["two"]["val_loss"] == {"lr=0.1": 2.0, "lr=0.001": 0.0, "lr=1e-05": 2.0}
    assert "tuned one: lr=0.001" in capsys.readouterr().out
    assert run("--config", config, "--out", "o") == 0
    assert launches() == trials + runs


@pytest.mark.parametrize("name, chosen", [("val_accuracy", 1e-5), ("val_loss", 1e-3)])
def test_tuning_looks_at_the_weights_and_the_figure_that_count(folder, name, chosen, capsys):
    config = write(
        "script: fake.py\nseeds: 1\ntune: {lr: [1e-1, 1e-3, 1e-5]}\ntest_with: final\n"
        f"tune_by: {name}\narms: {{one: {{freeze: none}}}}\n"
    )
    assert run("--config", config, "--out", "o") == 0
    tuned = yaml.safe_load(Path("o/tuned.yaml").read_text())["one"]
    assert tuned["chosen"] == {"lr": chosen}
    if name == "val_loss":  # at the end it is .1 above its lowest
        assert tuned[name] == pytest.approx({"lr=0.1": 2.1, "lr=0.001": 0.1, "lr=1e-05": 2.1})
    assert f"{'lowest' if name == 'val_loss' else 'highest'} {name}" in capsys.readouterr().out


def test_tuning_by_a_figure_that_no_run_has_is_refused(folder):
    config = write("script: fake.py\nseeds: 1\ntune: {lr: [1e-3]}\ntune_by: val_f1\n")
    with pytest.raises(SystemExit, match="tune_by val_f1: the runs have val_loss, val_accuracy"):
        run("--config", config, "--out", "o")


def test_tuning_by_a_figure_without_a_better_side_is_refused_before_any_run(folder):
    config = {"script": "fake.py", "seeds": 1, "tune": {"lr": [1e-3]}, "tune_by": "val_share"}
    assert "tune_by val_share: is higher better, or lower?" in refusal("--config", write(config))


def test_tuning_knows_which_side_is_better_and_a_trial_without_the_figure_has_lost(folder, capsys):
    text = "script: fake.py\nseeds: 1\ntune: {lr: [1e-1, 1e-3, 1e-5]}\narms: {one: {}}\n"
    figure = '"val_accuracy": 0.9 - lr'
    assert figure in SCRIPT
    name = "val_expected_calibration_error"
    Path("fake.py").write_text(SCRIPT.replace("val_accuracy", name))
    assert run("--config", write(f"{text}tune_by: {name}\n"), "--out", "o") == 0
    assert f"tuned one: lr=0.1, the lowest {name}" in capsys.readouterr().out
    # predictions that are all the same have no correlation
    sometimes = '**({"val_pearson": 0.9 - lr} if lr < 0.01 else {})'
    Path("fake.py").write_text(SCRIPT.replace(figure, sometimes))
    assert run("--config", write(f"{text}tune_by: val_pearson\n"), "--out", "p") == 0
    tuned = yaml.safe_load(Path("p/tuned.yaml").read_text())["one"]
    assert tuned["chosen"] == {"lr": 1e-5} and tuned["val_pearson"]["lr=0.1"] != 0.8


def test_a_sweep_that_draws_its_noise_has_one_seed_of_its_own(folder):
    config = {"script": "fake.py", "noise": {"seed_init": 2, "seed_order": 2}}
    assert [arm.seeds for arm in plan("--config", write(config)).arms] == [[0]] * 4
    assert "seeds of its own" in refusal("--config", write({**config, "seeds": 3}))
    assert "seeds of its own" in refusal("fake.py", "--noise", "--seeds", "2")


def test_an_arm_may_be_tuned_over_values_of_its_own_but_not_over_more(folder):
    text = (
        "script: fake.py\nseeds: 1\ntune: {lr: [1e-3, 1e-1]}\narms:\n  one: {}\n"
        "  two: {deep: {er: true}, tune: {lr: [1e-4, 1e-2]}}\n"
    )
    planned = plan("--config", write(text))
    assert [list(planned.trials(arm)) for arm in planned.arms] == [
        ["lr=0.001", "lr=0.1"],
        ["lr=0.0001", "lr=0.01"],
    ]
    assert planned.arms[1].settings == {"deep.er": True}
    more = text.replace("[1e-4, 1e-2]", "[1e-4, 1e-2, 1]")
    with pytest.raises(SystemExit, match="tuned longer"):
        plan("--config", write(more))


def test_a_diverging_value_loses_and_a_broken_trial_leaves_the_arm_out(folder, capsys):
    config = write(
        "script: fake.py\nseeds: 1\ntune: {lr: [1e-3, 1e-1]}\n"
        "arms: {hot: {diverge: 4}, broken: {fail: true}}\n"
    )
    assert run("--config", config, "--out", "o") == 1
    assert status("o/hot/tune/lr=0.1") == "failed"
    tuned = yaml.safe_load(Path("o/tuned.yaml").read_text())
    assert list(tuned) == ["hot"] and tuned["hot"]["chosen"] == {"lr": 0.001}
    said = capsys.readouterr().out
    assert status("o/hot/seed_0") == "finished" and not Path("o/broken/seed_0").exists()
    assert "broken: its seeds were not run" in said and "hot/tune" not in said.split("failed:")[1]


def test_a_seed_that_diverges_is_an_outcome_and_not_tried_again(folder, capsys):
    words = ("fake.py", "--grid", "lr=1e-3,0.5", "--seeds", "2", "--out", "o")
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "seed_0  diverged after" in said and "FAILED" not in said
    assert "diverged: 2 of 4 runs: lr=0.5/seed_0, lr=0.5/seed_1" in said
    assert Path("reports.txt").read_text() == "table o\ncompare o/lr=0.001 o/lr=0.5\n"
    assert run(*words) == 0 and len(launches()) == 4
    assert "4 of 4 are finished already" in capsys.readouterr().out


def test_an_arm_whose_trials_all_diverge_says_so(folder, capsys):
    config = write("script: fake.py\nseeds: 1\ntune: {lr: [0.5, 0.9]}\narms: {hot: {}}\n")
    assert run("--config", config, "--out", "o") == 1
    assert "hot: its seeds were not run: all its trials diverged" in capsys.readouterr().out


def test_a_collapsed_run_is_not_said_to_be_fine(folder, capsys):
    Path("fake.py").write_text(
        SCRIPT.replace('record("finished")', 'record("finished", verdicts=["collapsed: all A"])')
    )
    assert run("fake.py", "--seeds", "1", "--out", "o") == 0
    assert "s, but collapsed: accuracy 0.700" in capsys.readouterr().out


# ------------------------------------------------------------------------------ controls


def test_controls_pass_at_chance(folder, capsys):
    assert run("fake.py", "--aa", "--seeds", "2", "--out", "o") == 0
    assert launches() == [
        *("o/first/seed_0", "o/first/seed_1", "o/second/seed_2", "o/second/seed_3"),
        *("o/shuffled/seed_0", "o/shuffled/seed_1"),
    ]
    labels = [json.loads((Path(r) / "config.yaml").read_text())["labels"] for r in launches()]
    assert labels == ["true"] * 4 + ["shuffled"] * 2
    assert Path("reports.txt").read_text() == "table o\ncompare o/first o/second\n"
    said = capsys.readouterr().out
    assert "shuffled/seed_1: accuracy 0.370 [0.340, 0.400], a constant answer 0.3600" in said
    assert "2 of 2 runs with shuffled labels at chance, as it must be" in said


def test_controls_fail_where_something_leaks(folder, capsys):
    assert run("fake.py", "--aa", "--seeds", "1", "--set", "leak=true", "--out", "o") == 1
    said = capsys.readouterr().out
    assert "ABOVE CHANCE: something leaks" in said
    assert "0 of 1 runs with shuffled labels at chance, NOT" in said


def test_a_control_that_failed_is_no_leak(folder, capsys):
    runs = []
    for name in ("good", "failed"):
        runs.append(SimpleNamespace(name=name, folder=Path(name)))
    metrics = Path("good/test/metrics/metrics.json")
    metrics.parent.mkdir(parents=True)
    facts = {"accuracy": 0.37, "accuracy_ci95": [0.34, 0.4], "constant_accuracy": 0.36}
    metrics.write_text(json.dumps(facts))
    assert sweep.judge_shuffled(runs)
    said = capsys.readouterr().out
    assert "1 of 1 runs with shuffled labels at chance, as it must be; 1 more cannot be" in said
    assert not sweep.judge_shuffled(runs[1:])
    assert "none of the runs with shuffled labels has a figure" in capsys.readouterr().out


def test_controls_of_a_script_without_labels_are_the_pair(folder, capsys):
    Path("fake.py").write_text(SCRIPT.replace("--labels {true,shuffled}", "--lr"))
    assert run("fake.py", "--aa", "--seeds", "1", "--out", "o") == 0
    assert launches() == ["o/first/seed_0", "o/second/seed_1"]
    assert "no shuffled labels" in capsys.readouterr().out


# ---------------------------------------------------------------------- a training script


def test_a_real_run_is_recognised_as_finished(
    folder, one_layer_bert, pair_csv, cache_folder, copies, capsys
):
    settings = f"model={one_layer_bert} data={pair_csv} max_length=32 epochs=0.6".split()
    settings += ["head_lr=null", "lr=1e-3", "precision=fp32", "device=cpu", "page=false"]
    words = [PROJECT / "run_5_models.py", "--set", *settings, "--seeds", "1", "--out", "o"]
    assert run(*words) == 0, Path("o/runs/seed_0.log").read_text()
    finished = (folder / "o/runs/seed_0/run.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run(*words) == 0
    assert "1 of 1 are finished already" in capsys.readouterr().out
    assert (folder / "o/runs/seed_0/run.json").stat().st_mtime_ns == finished


# ------------------------------------------------------------------------- refused early


OURS = """
import runs
from dataclasses import dataclass
from settings import Settings

@dataclass
class Config(Settings):
    pass

def main(config, given):
    raise AssertionError("it must not be run")

if __name__ == "__main__":
    runs.launch(main, Config)
"""


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--set", "lrr=1e-3"), "unknown setting lrr: did you mean 'lr'?"),
        (("--grid", "lr=1e-3,fast"), "lr"),
        (("--set", "script=other.py"), "script is not for settings, the sweep sets it"),
        (("--set", "batch=many"), "batch"),
    ],
)
def test_what_the_script_would_refuse_is_refused_before_a_dry_run_and_a_real_one(
    folder, words, problem, copies
):
    (folder / "ours.py").write_text(OURS)
    for dry in ((), ("--dry_run",)):
        assert problem in refusal("ours.py", *words, "--seeds", "1", *dry)
    assert not Path("results").exists()


def test_settings_that_are_tuned_are_checked_too(folder, copies):
    (folder / "ours.py").write_text(OURS)
    config = write({"script": "ours.py", "tune": {"lrr": [1e-3, 1e-4]}, "seeds": 1})
    assert "unknown setting lrr" in refusal("--config", config, "--dry_run")


def test_a_sweep_file_in_the_folder_of_the_sweep_stays_as_it_was_written(folder):
    Path("o").mkdir()
    Path("o/sweep.yaml").write_text("# why\nscript: fake.py\nseeds: 1\ngrid: {lr: [1e-3, 1e-4]}\n")
    assert run("--config", "o/sweep.yaml", "--out", "o") == 0
    assert Path("o/sweep.yaml").read_text().startswith("# why\n")
