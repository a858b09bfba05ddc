"""Scripts as copies of a process that has imported everything: seconds a start less.

    with open(log, "w") as file:
        run = forked.Process(["run_1_distilbert.py", "--lr=1"], env, file, file)
    run.wait(timeout=60)

A copy runs the script as `python SCRIPT WORDS` does, to the interpreter's own end; what is not
tested so is the time of its imports. Where torchrun itself is the point, tests start it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parent.parent
IMPORTS = (
    "core usage jsonargparse transformers models.bert models.gpt models.lora torch._dynamo "
    "transformers.models.bert.modeling_bert transformers.models.gpt2.modeling_gpt2 "
    "transformers.models.distilbert.modeling_distilbert reports.page scipy.stats "
    "experiments.preference experiments.classification experiments.language experiments.headlines "
    "experiments.instructions experiments.pretraining experiments.glue"
).split()


class Process:
    """A started script; as subprocess.Popen, as far as tests ask it."""

    _server: subprocess.Popen | None = None

    def __init__(self, words: list[str], env: dict[str, str], stdout: TextIO, stderr: TextIO):
        """words: of the command line, from the script's path on."""
        self.returncode: int | None = None
        asked = {"words": words, "env": env}
        self.pid = self._ask(asked, stdout.fileno(), stderr.fileno())

    @classmethod
    def _ask(cls, what: dict[str, Any], *descriptors: int) -> Any:
        if cls._server is None:
            ours, theirs = socket.socketpair()
            env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            env["PYTHONPATH"] = str(PROJECT)
            words = [sys.executable, __file__, str(theirs.fileno())]
            cls._server = subprocess.Popen(words, env=env, pass_fds=[theirs.fileno()], cwd=PROJECT)
            cls._socket, cls._lines = ours, ours.makefile("r")
            theirs.close()
        text = json.dumps(what).encode() + b"\n"
        cls._socket.sendall(f"{len(text):08d}".encode())
        cls._socket.sendall(text)
        if descriptors:
            socket.send_fds(cls._socket, [b"."], descriptors)
        return json.loads(cls._lines.readline())

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 180) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_ranks(
    words: list[str], env: dict[str, str], processes: int, log: Path, timeout: float
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a script on so many processes, as torchrun would start them:
    when one fails, the others are ended, and the exit code is 1."""
    placed = [dict(env)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = ({**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes))
        placed = [{**env, **{name: str(value) for name, value in r.items()}} for r in ranks]
    with open(log, "w+") as out, open(f"{log}.err", "w+") as err:
        running = [Process(words, each, out, err) for each in placed]
        end = time.monotonic() + timeout
        try:
            while None in (codes := [each.poll() for each in running]):
                if any(codes) or time.monotonic() > end:
                    break
                time.sleep(0.005)
            if processes > 1 and any(codes):
                for each in running:
                    each.send_signal(signal.SIGTERM)
                codes = [each.wait(30) for each in running]
            if None in codes:
                raise subprocess.TimeoutExpired(words, timeout)
        finally:
            for each in running:
                each.kill()
        out.seek(0), err.seek(0)
        code = codes[0] if processes == 1 else int(any(codes))
        return code, out.read(), err.read()


# ------------------------------------------------------------------------- the other side


def serve(connection: socket.socket) -> None:
    """Fork when asked; returns in a copy alone, which is to go on as the script."""
    while size := connection.recv(8, socket.MSG_WAITALL):
        asked = json.loads(connection.recv(int(size), socket.MSG_WAITALL))
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
            answer = os.fork()
            if answer == 0:
                connection.close()
                return become(asked["words"], asked["env"], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        connection.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)


def become(words: list[str], env: dict[str, str], descriptors: list[int]) -> None:
    """Streams, environment and command line of the script."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words


if __name__ == "__main__":
    import importlib
    import runpy

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests is not for it
    for name in IMPORTS:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1  # a thread would not survive a fork
    serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(BrokenPipeError):
        runpy.run_path(sys.argv[0], run_name="__main__")
