"""Several sweeps on one folder, as if each ran on a machine of its own: what tests share.

Each process of a "machine" gets a sitecustomize that gives it another name and boot, and on request
another clock, a volume without locks, and listings that are late. Renames are noted, so that
publications can be counted.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT, environment

# Obeys the run-folder contract, saves each third step, and is bit-identical however often it is cut
# off: what it writes is a function of its settings.
SCRIPT = """
import hashlib, json, os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {project!r})
from files import damage, write_folder, write_text

told = dict(word.split("=", 1) for word in sys.argv[1:])
out, seed, pace = Path(told.pop("out")), int(told["seed"]), float(told.get("pace", 0.1))
steps = int(told.get("steps", 12))
record = dict(schema_version=1, script=Path(sys.argv[0]).name, seed=seed, seconds=3.0, steps=steps,
              command=[Path(sys.argv[0]).name, *(f"{{k}}={{v}}" for k, v in told.items())])

def write(status, reason="", verdicts=()):
    facts = dict(record, status=status, exit_reason=reason, verdicts=verdicts)
    write_text(out / "run.json", json.dumps(facts, indent=1))

if (out / "run.json").exists():
    if json.loads((out / "run.json").read_text())["status"] == "finished":
        sys.exit(0)
write_text(out / "config.yaml", json.dumps(told))
weights, log = out / "train/weights", out / "train/metrics/metrics.jsonl"
whole = [f for f in sorted(weights.glob("step_????????")) if damage(f) is None]
state = json.loads((whole[-1] / "state.json").read_text()) if whole else dict(step=0, value="")
log.parent.mkdir(parents=True, exist_ok=True)
lines = log.read_text().splitlines() if log.exists() else []
write_text(log, "".join(f"{{line}}\\n" for line in lines[: state["step"]]))
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
write("running")
if told.get("fail") == "true":
    write("failed", "ValueError: soap")
    sys.exit("ValueError: the data are made of soap")

def save():
    write_folder(weights / f"step_{{state['step']:08d}}",
                 lambda folder: (folder / "state.json").write_text(json.dumps(state)))

with open(log, "a") as file:
    while state["step"] < steps:
        if signals:
            save()
            write("stopped", "SIGTERM")
            sys.exit(0)
        time.sleep(pace)
        text = f"{{state['value']}} {{sorted(told.items())}} {{state['step']}}"
        state = dict(step=state["step"] + 1, value=hashlib.sha256(text.encode()).hexdigest())
        loss = int(state["value"][:4], 16) / 65536
        line = dict(step=state["step"], train_loss=loss, lr=1.0, value=state["value"])
        if state["step"] % 3 == 0:
            line["val_loss"] = loss
        file.write(json.dumps(line) + "\\n")
        file.flush()
        if state["step"] % 3 == 0:
            os.fsync(file.fileno())
            save()
rows = "".join(f"r{{i}},r{{i}},{{i % 2}},{{int(state['value'][i], 16) % 2}},0.5,0.5\\n"
               for i in range(60))
write_text(out / "test/metrics/predictions.csv", "id,group,label,prediction,p_0,p_1\\n" + rows)
right = sum(int(state["value"][i], 16) % 2 == i % 2 for i in range(60)) / 60
metrics = dict(primary="accuracy", n=60, groups=60, accuracy=right, accuracy_ci95=[0.3, 0.7])
write_text(out / "test/metrics/metrics.json", json.dumps(metrics))
write("finished", "all steps done")
"""

MACHINE = """
import builtins, errno, fcntl, os, socket, sys, time

volume = os.environ["FAKE_VOLUME"]
name = os.environ["FAKE_MACHINE"]
socket.gethostname = lambda: name
sys.path.insert(0, {project!r})
import claims
sys.path.pop(0)
claims.machine = lambda: "boot of " + name

off = float(os.environ.get("FAKE_CLOCK", "0"))
if off:
    clock, local, text = time.time, time.localtime, time.strftime
    time.time = lambda: clock() + off
    time.strftime = lambda form, when=None: text(form, when or local(clock() + off))
if os.environ.get("FAKE_NO_LOCKS"):
    def refuse(*words):
        raise OSError(errno.ENOLCK, "no locks")
    fcntl.lockf = fcntl.flock = refuse
late = float(os.environ.get("FAKE_LATE", "0"))
if late:
    # the names in a folder as they were up to so many seconds ago
    known, scan = {{}}, os.scandir

    class Listing:
        def __init__(self, entries):
            self.entries = iter(entries)
        def __iter__(self):
            return self
        def __next__(self):
            return next(self.entries)
        def __enter__(self):
            return self
        def __exit__(self, *error):
            pass
        def close(self):
            pass

    def scandir(path="."):
        if isinstance(path, int) or volume not in os.path.abspath(os.fsdecode(path)):
            return scan(path)
        key, now = os.path.abspath(path), time.monotonic()
        if key not in known or now - known[key][0] > late:
            with scan(path) as entries:
                known[key] = now, list(entries)
        return Listing(known[key][1])

    os.scandir = scandir
    os.listdir = lambda path=".": [entry.name for entry in scandir(path)]
rename = os.rename
def noted(source, target, **more):
    rename(source, target, **more)
    target = os.path.abspath(target)
    if "/attempts/" in os.path.abspath(source) and "/attempts/" not in target:
        with open(volume + ".published", "a") as file:
            file.write(target + "\\n")
os.rename = noted
"""


class Machine:
    """A sweep.py with a name, a clock and a view of the volume of its own."""

    def __init__(self, folder: Path, name: str, words: list[str], **fakes: str):
        """folder: with fake.py; the volume is folder/volume, and OUT below it."""
        self.folder, self.name, self.words, self.fakes = folder, name, words, fakes
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        env = environment() | self.fakes
        env |= {"FAKE_MACHINE": self.name, "FAKE_VOLUME": str(self.folder / "volume")}
        env["PYTHONPATH"] = f"{self.folder / 'site'}:{os.environ.get('PYTHONPATH', '')}"
        env["ABLATE_STALE_SECONDS"] = self.fakes.get("ABLATE_STALE_SECONDS", "2")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "sweep.py"), *self.words],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except OSError:
            return []

    def send(self, number: int, children: bool) -> None:
        """A signal to the sweep, and to the scripts that it started."""
        for pid in (*(self.children() if children else ()), self.process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGCONT, children=True)
            self.send(signal.SIGKILL, children=True)
            self.process.wait()


def prepare(folder: Path) -> None:
    (folder / "fake.py").write_text(SCRIPT.format(project=str(PROJECT)))
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(MACHINE.format(project=str(PROJECT)))
    (folder / "volume").mkdir()


def published(folder: Path) -> list[str]:
    """The places to which something was published, once for each time."""
    path = folder / "volume.published"
    return path.read_text().split() if path.exists() else []


def contents(out: Path) -> dict[str, bytes]:
    """What the runs of a sweep wrote, by path, but for whose they are; its choices; its table."""
    files = {}
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out)
        own = inside.parts[0] in ("claims", "attempts") or path.suffix == ".log"
        if path.is_file() and not own and path.name not in (".attempt", ".lock", "sweep.yaml"):
            files[str(inside)] = path.read_bytes()
    words = [sys.executable, str(PROJECT / "report.py"), "table", str(out), "--json"]
    table = subprocess.run(words, capture_output=True, cwd=out.parent, env=environment())
    assert table.returncode == 0, table.stderr
    rows = json.loads(table.stdout)
    return files | {"table": json.dumps(rows).encode().replace(str(out).encode(), b"OUT")}
