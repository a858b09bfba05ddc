"""One sweep of several: what it does as others claim, end, fail, fall silent or wake; limits, and
what it says to others. Whole sweeps that are killed: tests/long/test_many_sweeps.py."""

import http.server
import importlib
import json
import os
import shlex
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import yaml
from test_sweep import SCRIPT, attempt, launches, status, write

import claims
import sweep
from claims import Claims
from files import PROJECT
from reports.folder import find_runs, load_run
from reports.ledger import looking_runs
from reports.packed import pack
from settings import parse_settings
from sweeps import on_slurm
from sweeps.limits import Limits
from sweeps.notices import without_secrets
from sweeps.on_slurm import minutes_of
from sweeps.plan import signals_to_handle
from sweeps.status import Sweep, summary, watch

OTHER = {"host": "other", "machine": "another boot", "pid": 7, "began": "1"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with fake.py to sweep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "10")
    (tmp_path / "fake.py").write_text(SCRIPT)
    (tmp_path / "report.py").write_text("")
    monkeypatch.setattr(sweep, "REPORT", tmp_path / "report.py")
    return tmp_path


def run(*words: str) -> int:
    return sweep.main([str(word) for word in ("fake.py", "--out", "o", *words)])


class Other:
    """Another machine with a claim on o/<name>, which beats until it is told to do something."""

    def __init__(self, name: str, number: int = 1):
        self.work = Claims(Path("o"), Path(name))
        self.claim = claims.Claim(Path("o"), Path(name), number, f"token {number}")
        self.claim.folder.mkdir(parents=True, exist_ok=True)
        facts = {"token": self.claim.token, **OTHER}
        (self.claim.folder / f"{number}.json").write_text(json.dumps(facts))
        self.claim.attempt.mkdir(parents=True)
        (self.claim.attempt / claims.TOKEN).write_text(json.dumps({"token": self.claim.token}))

    def do(self, action, beat_seconds: float = 1.0) -> threading.Thread:
        """Beat for so long, then do it."""

        def work() -> None:
            end = time.monotonic() + beat_seconds
            while time.monotonic() < end:
                self.beat()
                time.sleep(0.05)
            action()

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def beat(self) -> None:
        self.claim._beats += 1
        facts = {"beat": self.claim._beats, "seconds": 1.0, **OTHER}
        claims.write_text(
            self.claim.folder / f"{self.claim.number}.beat", json.dumps(facts), shared=True
        )

    def publish(self) -> None:
        """A run as fake.py writes it."""
        shutil.copytree("o/runs/seed_0", self.claim.attempt, dirs_exist_ok=True)
        record = json.loads((self.claim.attempt / "run.json").read_text())
        record["command"] = [word.replace("seed=0", "seed=1") for word in record["command"]]
        (self.claim.attempt / "run.json").write_text(json.dumps(record | {"seed": 1}))
        assert self.claim.publish(Path("o", self.claim.name))
        self.claim.end("finished")


def test_what_another_machine_runs_is_waited_for_and_not_run_twice(folder, capsys):
    other = Other("runs/seed_1")
    thread = other.do(other.publish, beat_seconds=1.5)
    assert run("--seeds", "3") == 0
    thread.join()
    assert launches() == ["o/runs/seed_0", "o/runs/seed_2"]
    said = capsys.readouterr().out
    assert "2/3  runs/seed_1  is being run by other (process 7)" in said
    assert "2/3  runs/seed_1  finished on other" in said
    assert not Path("o/attempts/1/runs/seed_1").exists()


def test_a_silent_machine_is_taken_over_where_it_was(folder, monkeypatch):
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "0.6")
    other = Other("runs/seed_0")
    begun = other.claim.attempt / "train/metrics"
    begun.mkdir(parents=True)
    (begun / "metrics.jsonl").write_text('{"step": 1, "val_loss": null}\n{"step": 2}\n')
    assert run("--seeds", "1") == 0
    lines = Path("o/runs/seed_0/train/metrics/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert json.loads(Path("o/runs/seed_0", claims.TOKEN).read_text())["number"] == 2
    assert Path("launches.txt").read_text().split() == ["o/attempts/2/runs/seed_0"]
    # it wakes: what it publishes comes too late, and what it writes is its own
    (begun / "metrics.jsonl").parent.mkdir(parents=True, exist_ok=True)
    assert not other.claim.publish(Path("o/runs/seed_0"))
    assert [each.path.name for each in find_runs("o")] == ["seed_0"]


def test_what_fails_elsewhere_is_not_tried_again_in_this_call(folder, capsys):
    other = Other("runs/seed_1")
    thread = other.do(lambda: other.claim.end("failed", "error: no soap"), beat_seconds=0.8)
    assert run("--seeds", "2") == 1
    thread.join()
    assert launches() == ["o/runs/seed_0"]
    assert "runs/seed_1: on other (process 7): error: no soap" in capsys.readouterr().out
    assert run("--seeds", "2") == 0, "the same command tries again"
    assert launches()[1:] == ["o/runs/seed_1"]


def test_what_is_stopped_elsewhere_is_free(folder):
    other = Other("runs/seed_1")
    thread = other.do(lambda: other.claim.end("stopped"), beat_seconds=0.5)
    assert run("--seeds", "2") == 0
    thread.join()
    assert launches() == ["o/runs/seed_0", "o/runs/seed_1"]


def test_a_sweep_that_was_taken_over_stops_its_run_and_publishes_nothing(
    folder, capsys, monkeypatch
):
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "1.5")

    def take_over() -> None:
        while not Path(attempt("o/runs/seed_0"), "train/metrics/metrics.jsonl").exists():
            time.sleep(0.02)
        taken = Other("runs/seed_0", 2)
        taken.do(lambda: taken.claim.end("stopped"), beat_seconds=1.0).join()

    thread = threading.Thread(target=take_over)
    thread.start()
    assert run("--seeds", "1", "--set", "pace=0.5") == 0
    thread.join()
    said = capsys.readouterr().out
    assert "given up after" in said and "is being run by other (process 7)" in said
    assert json.loads(Path("o/runs/seed_0", claims.TOKEN).read_text())["number"] == 3
    assert said.count("finished in") == 1


def test_a_run_that_had_ended_when_its_owner_died_is_published_as_it_is(folder):
    assert run("--seeds", "1") == 0
    os.rename("o/runs/seed_0", attempt("o/runs/seed_0"))
    (Path("o/claims/runs/seed_0/1.end")).unlink()
    assert run("--seeds", "1") == 0
    assert len(launches()) == 1, "it was run again"
    assert status("o/runs/seed_0") == "finished" and not Path(attempt("o/runs/seed_0")).exists()


def test_a_run_that_an_older_version_left_in_its_place_goes_on(folder):
    place = Path("o/runs/seed_0")
    assert run("--seeds", "1") == 0
    shutil.rmtree("o/claims")
    record = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    lines = (place / "train/metrics/metrics.jsonl").read_text().splitlines()
    (place / "train/metrics/metrics.jsonl").write_text(lines[0] + "\n")
    (place / claims.TOKEN).unlink()
    assert run("--seeds", "1") == 0
    assert status("o/runs/seed_0") == "finished"
    assert (place / "train/metrics/metrics.jsonl").read_text().splitlines() == lines


def test_what_the_script_calls_finished_is_a_result(folder, monkeypatch, capsys):
    """Its words were others, and the script says that they meant the same."""
    assert run("--seeds", "1", "--set", "lr=1e-3") == 0
    said: list[tuple] = []
    monkeypatch.setattr(sweep, "report", lambda *words: said.append(words))
    Path("fake.py").write_text("")
    assert run("--seeds", "1", "--set", "lr=1e-3", "parts=null") == 0
    assert "1/1  runs/seed_0  finished in" in capsys.readouterr().out
    assert said == [("table", "o")] and status("o/runs/seed_0") == "finished"


def test_no_reader_counts_what_is_not_published(folder):
    assert run("--seeds", "2") == 0
    other = Other("runs/seed_2")
    for name in ("runs/seed_2", "runs/seed_1"):
        shutil.copytree("o/runs/seed_0", Path("o/attempts/9", name))
    names = ["runs/seed_0", "runs/seed_1"]
    found = find_runs("o")
    assert [each.name for each in found] == names
    assert found[0].notes[-1].startswith("beside it, a run that has not ended, or failed, is left")
    assert [each.name for each in looking_runs(["."])] == names
    packed = pack(Path("o"))
    shutil.rmtree("o")
    assert [each.name for each in find_runs(packed.with_suffix(""))] == names
    assert other.claim.number == 1
    Path("p/claims").mkdir(parents=True)
    (Path("p/attempts/1/runs/seed_0")).mkdir(parents=True)
    Path("p/attempts/1/runs/seed_0/run.json").write_text("{}")
    with pytest.raises(ValueError, match="none of its 1 runs has ended"):
        find_runs("p")


# ------------------------------------------------------------------------ status and watch


def test_status_says_who_does_what_and_how_much_is_left(folder, capsys, monkeypatch):
    write({"script": "fake.py", "seeds": 4, "arms": {"one": {}, "two": {"fail": True}}}, "s.yaml")
    assert run("--config", "s.yaml", "--seeds", "1", "--price", "3600", "--max_cost", "1e6") == 1
    shutil.copy("s.yaml", "o/sweep.yaml")
    Other("one/seed_1").beat()
    other = Other("one/seed_2")
    load = other.claim.attempt / "train/metrics"
    load.mkdir(parents=True)
    lines = [{"step": step, "train_loss": 1.0, "seconds": 2.0 * step} for step in (1, 2, 3)]
    (load / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (other.claim.attempt / "run.json").write_text('{"total_steps": 63, "status": "running"}')
    capsys.readouterr()
    assert sweep.main(["status", "o"]) == 0
    said = capsys.readouterr().out
    assert "o: 8 runs: 1 finished, 2 running, 1 failed, 4 waiting" in said
    assert "one/seed_2  other" in said and "3 of 63" in said and "2 min" in said
    assert "two/seed_0  failed  error: the data are made of soap" in said
    assert "left: 5 to start, about" in said and "with 2 at a time" in said
    assert "cost so far: " in said
    assert max(map(len, said.splitlines())) <= 80
    watch(Path("o"), once=True)
    assert capsys.readouterr().out == said
    # who looks on sees a machine fall silent, whatever its clock says
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "0.6")
    looking = Sweep.open(Path("o"))
    looking.states()
    time.sleep(0.7)
    assert "2 silent" in summary(looking, looking.states())[0]


def test_watch_says_what_changes_until_nothing_is_left(folder, capsys):
    write({"script": "fake.py", "seeds": 2}, "s.yaml")
    assert run("--config", "s.yaml", "--seeds", "1") == 0
    shutil.copy("s.yaml", "o/sweep.yaml")
    other = Other("runs/seed_1")
    thread = other.do(other.publish, beat_seconds=0.5)
    capsys.readouterr()
    watch(Path("o"), every_seconds=0.1)
    thread.join()
    said = capsys.readouterr().out
    assert said.startswith("o: 2 runs: 1 finished, 1 running")
    assert "runs/seed_1  finished  (other)" in said and said.endswith("nothing is left\n")


def test_status_of_what_is_no_sweep_is_one_line(folder):
    with pytest.raises(SystemExit, match="no sweep.yaml"):
        sweep.main(["status", "nothing"])


def test_a_run_of_a_sweep_can_be_watched_where_it_is(folder):
    other = Other("runs/seed_0")
    (other.claim.attempt / "run.json").write_text('{"status": "running"}')
    assert claims.newest_attempt(Path("o/runs/seed_0")) == other.claim.attempt
    assert load_run(other.claim.attempt).name == "runs/seed_0"
    assert claims.newest_attempt(Path("nothing/at/all")) is None


# ------------------------------------------------------------------------------- limits


def test_no_run_is_started_that_would_not_fit_the_hours(folder, capsys):
    words = ["--seeds", "3", "--set", "pace=0.3"]
    assert run(*words, "--hours", 1.6 / 3600) == 0
    assert launches() == ["o/runs/seed_0"]
    said = capsys.readouterr().out
    assert "no further run was started, 2 runs are left: " in said and "hours have passed" in said
    assert run(*words, "--hours", 1) == 0 and len(launches()) == 3


def test_the_cost_of_all_machines_and_calls_is_limited(folder, capsys):
    words = ["--seeds", "4", "--set", "pace=0.1", "--price", "3600"]  # one a second
    assert run("--seeds", "1", *words[2:], "--max_cost", "100") == 0
    [took] = sweep_seconds("runs/seed_0")
    other = Other("runs/seed_3")
    other.claim.end("stopped")
    facts = {"price": 7200, "jobs": 1, "token": "token 1", **OTHER}
    (other.claim.folder / "1.json").write_text(json.dumps(facts))
    (other.claim.folder / "1.end").write_text(json.dumps({"outcome": "stopped", "seconds": 2.0}))
    # spent: what the first took, and 4 on the other machine; two more of its length do not fit
    assert run(*words, "--max_cost", 4 + 2.05 * took) == 0
    assert launches() == ["o/runs/seed_0", "o/runs/seed_1"]
    assert "are spent" in capsys.readouterr().out


def sweep_seconds(name: str) -> list[float]:
    return [facts["seconds"] for facts in Claims(Path("o"), Path(name)).history()]


def test_limits_count_what_is_running(folder):
    assert run("--seeds", "1", "--jobs", "2") == 0
    plan = sweep.Plan(sweep.parse_arguments(["fake.py", "--out", "o", "--seeds", "3"]))
    every = plan.every_run()
    [took] = sweep_seconds("runs/seed_0")
    limits = Limits(2, None, 7200.0, 2.5 * took)
    assert limits.refusal(every[2], every, {}) == ""
    assert "go to what is running" in limits.refusal(every[2], every, {"runs/seed_1": 0.1 * took})
    assert Limits(1).refusal(every[2], every, {}) == ""


# ---------------------------------------------------------------------------- schedulers


def test_who_is_told_to_leave_does_not_wait(folder, capsys):
    Other("runs/seed_1").beat()
    assert run("--seeds", "3", "--leave") == 0
    assert launches() == ["o/runs/seed_0", "o/runs/seed_2"]
    assert "1 runs are left to others, and no other is free" in capsys.readouterr().out


def test_an_engine_gets_the_plan_as_commands(folder, monkeypatch):
    given = []
    engine = types.SimpleNamespace(submit=lambda *words: given.append(words) or ["7_0", "7_1"])
    monkeypatch.setitem(sys.modules, "sweeps.on_slurm", engine)
    monkeypatch.setenv("ABLATE_NOTIFY", "https://host/other")
    words = ["--seeds", "3", "--jobs", "2", "--on", "slurm", "--slurm", "time=90", "partition=a"]
    assert run(*words, "--hours", "1.5", "--notify", "https://host/secret") == 0
    [(commands, jobs, options)] = given
    assert len(commands) == 2 and options == {"time": "90", "partition": "a"}
    assert jobs == Path("o/jobs") and not launches()
    assert commands[0][1:] == [
        *(str(PROJECT / "sweep.py"), "--config", "o/sweep.yaml", "--out", "o", "--jobs", "2"),
        *("--hours", "1.5", "--leave"),
    ]
    assert os.environ["ABLATE_NOTIFY"] == "https://host/secret"
    monkeypatch.delenv("ABLATE_NOTIFY")
    # a job is that command, and the same one without --on has the table
    assert sweep.main(commands[0][2:]) == 0 and len(launches()) == 3
    with pytest.raises(SystemExit, match="all runs are finished"):
        run(*words)
    for wrong, message in (
        (["--on", "k8s"], "expected slurm or local"),
        (["--slurm", "gpus=1"], "--slurm is for --on slurm"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*wrong)


@pytest.mark.parametrize(
    "text, minutes",
    [("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("1-12", 2160), ("1-0:30", 1470),
     ("0-1:00:30", 60.5)],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert minutes_of(text) == minutes


def test_options_that_cannot_be_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected minutes"):
        minutes_of("4h")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="startup.sh setup --slurm"):
        on_slurm.submit([["true"]], tmp_path, {})
    known = types.SimpleNamespace(register_pickle_by_value=lambda module: None)
    monkeypatch.setitem(sys.modules, "cloudpickle", known)
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace())
    with pytest.raises(ValueError, match="no more than the 120 s to save in"):
        on_slurm.submit([["true"]], tmp_path, {"time": "2"})


def test_torchrun_passes_on_the_signals_of_a_cluster(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert signals_to_handle() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert signals_to_handle() == "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--price", "1"], "go together"),
        (["--max_cost", "1"], "go together"),
        (["--hours", "-1"], "expected more than 0"),
        (["--stale", "0"], "expected more than 0"),
        (["--notify", "ftp://x"], "expected http://"),
        (["--notify", "hooks"], "expected http://"),
    ],
)
def test_limits_that_make_no_sense_are_one_line(folder, words, message):
    with pytest.raises(SystemExit, match=message):
        run(*words)


# ------------------------------------------------------------------------------ notices


@pytest.fixture
def posts():
    """(address of a server, the lines that were posted to it)."""
    lines: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            lines.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()

        def log_message(self, *words) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", lines
    server.shutdown()
    server.server_close()


def test_failures_and_the_end_are_posted_without_secrets(folder, posts, monkeypatch, capsys):
    url, lines = posts
    monkeypatch.setenv("JUDGE_API_KEY", "abcdef-secret")
    Path("fake.py").write_text(
        SCRIPT.replace("made of soap", "at https://me:pw@host/x?sig=1 abcdef-secret").replace(
            'record("finished")', 'record("finished", verdicts=["collapsed: all A"])'
        )
    )
    arms = {"one": {}, "two": {"fail": True}, "hot": {"lr": 0.5}}
    config = write({"script": "fake.py", "seeds": 1, "arms": arms})
    assert run("--config", config, "--notify", f"{url}/T0/secret-hook") == 1
    events = [(line["event"], line.get("run")) for line in lines]
    assert events == [
        ("collapsed", "one/seed_0"), ("failed", "two/seed_0"), ("diverged", "hot/seed_0"),
        ("ended", None),
    ]  # fmt: skip
    assert lines[1]["reason"] == "error: the data are at https://host/x <JUDGE_API_KEY>"
    assert lines[-1]["text"] == "o: ended with exit code 1, 2 of 3 runs are finished"
    assert lines[-1]["failed"] == 1 and lines[-1]["host"]
    assert "secret-hook" not in Path("o/sweep.yaml").read_text()
    # that nobody hears it is a warning, which does not say the address
    for address in (f"{url}/broken/secret-hook", "http://127.0.0.1:9/secret-hook"):
        assert run("--config", config, "--notify", address) == 1
    said = capsys.readouterr().out
    assert "warning: --notify: 127.0.0.1 was not told that ended: 500" in said
    assert "was not told that ended: URLError" in said and "secret-hook" not in said


def test_keys_are_known_by_their_shape(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "short")
    assert without_secrets("sk-abcdefgh1234 hf_abcdefgh12 short") == "sk-… hf_… short"


def test_a_dash_in_a_value_stays(folder):
    args = sweep.parse_arguments(["fake.py", "--out=my-sweep", "--max-cost=2", "--price", "1"])
    assert args.out == "my-sweep" and args.max_cost == 2.0


RECIPES = sorted(p for p in (PROJECT / "configs/clouds").iterdir() if "volume" not in p.name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_commands_of_recipes_are_commands_of_ours_and_write_to_the_volume(path, monkeypatch):
    """The clouds' own words in them were read by SkyPilot and dstack: docs/many_machines.md."""
    monkeypatch.chdir(PROJECT)
    recipe = yaml.safe_load(path.read_text())
    commands = recipe.get("commands") or [recipe["setup"], recipe["run"]]
    volumes = recipe["volumes"]
    where = next(iter(volumes)) if isinstance(volumes, dict) else volumes[0]["path"]
    setup, command = (shlex.split(text.replace("\\\n", " ")) for text in commands)
    assert setup == ["bash", "startup.sh", "setup"] and command[0] == ".venv/bin/python"
    if command[1] == "sweep.py":
        out = sweep.Plan(sweep.parse_arguments(command[2:])).out
    else:
        name = command[1].removesuffix(".py")
        out = parse_settings(importlib.import_module(name).Config, command[2:])[0].out
    assert str(out).startswith(f"{where}/")
    cache = recipe.get("envs", {}).get("ABLATE_CACHE") or recipe["env"][0].partition("=")[2]
    assert cache.startswith(f"{where}/")
