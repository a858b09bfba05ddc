"""A sweep to another machine and home again, by ssh and rsync, with a server of its own.

python -m pytest -s tests/long/test_push_pull.py      # needs sshd and rsync
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, environment
from many_sweeps import SCRIPT


@pytest.fixture
def server(tmp_path):
    """(words of ssh, a folder for `localhost:` paths)."""
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nPasswordAuthentication no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nPidFile {tmp_path}/pid\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([shutil.which("sshd"), "-D", "-f", str(config)])
    ssh = f"ssh -p {port} -i {tmp_path}/user -o StrictHostKeyChecking=no "
    ssh += "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    for _ in range(100):
        if subprocess.run([*ssh.split(), "localhost", "true"], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)
    away = tmp_path / "away on a volume"
    away.mkdir()
    yield ssh, away
    process.terminate()
    process.wait()


def test_there_and_back(server, tmp_path):
    """This very project, with a plan of two arms; the runs are made there, and reported here."""
    ssh, away = server
    home = tmp_path / "home"
    words = ["git", "clone", "--quiet", f"file://{PROJECT}", str(home)]
    subprocess.run(words, check=True)
    (home / "fake.py").write_text(SCRIPT.format(project=str(home)))
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "add", "."], cwd=home, check=True)
    subprocess.run(["git", *who, "commit", "-qm", "fake"], cwd=home, check=True)
    rows = tmp_path / "my rows ö.csv"
    rows.write_text("text,label\nfine,1\n")
    content = {"script": "fake.py", "seeds": 3, "pace": 0.02, "data": str(rows)}
    content["arms"] = {"one": {}, "two": {"freeze": "all"}}
    (home / "plan.yaml").write_text(yaml.safe_dump(content))
    plan = ["--config", "plan.yaml", "--out", "results/sweeps/o"]

    def sweep(folder: Path, *words: str, code: int = 0) -> str:
        command = [sys.executable, "sweep.py", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                              env=environment())  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    remote = f"localhost:{away}/ablate"
    started = time.monotonic()
    print(sweep(home, "push", remote, "--ssh", ssh, *plan))
    print(f"push: {time.monotonic() - started:.1f} s")
    there = away / "ablate"
    out = "results/sweeps/o"
    said = sweep(there, "--config", f"{out}/sweep.yaml", "--out", out)
    assert said.count("finished in") == 6
    started = time.monotonic()
    said = sweep(home, "pull", remote, "--ssh", ssh, *plan)
    print(said, f"pull: {time.monotonic() - started:.1f} s")
    assert "6 runs came home and are as they were there, 0 were here" in said
    assert not list((home / out).rglob("step_*"))
    # all are finished here, too, though the rows have another name there
    again = sweep(home, *plan)
    assert "6 of 6 are finished already" in again or "started" in again
    with_them = sweep(home, "pull", remote, "--ssh", ssh, *plan)
    assert "0 runs came home and are as they were there, 6 were here" in with_them
    assert os.listdir(away) == ["ablate"]
