"""Scripts as copies of a process that has imported everything: seconds a start less.

    with open(log, "w") as file:
        run = forked.Process(["run_1_distilbert.py", "--lr=1"], env, file, file)
    run.wait(timeout=60)

A copy runs the script as `python SCRIPT WORDS` does, to the interpreter's own end; what is not
tested so is the time of its imports. Where torchrun itself is the point, tests start it; its
workers are copies nevertheless, by forked_worker.py, which torchrun takes for the interpreter.
"""

import contextlib
import gc
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parent.parent
IMPORTS = (
    "core usage jsonargparse transformers models.bert models.gpt models.lora torch._dynamo "
    "transformers.models.bert.modeling_bert transformers.models.gpt2.modeling_gpt2 "
    "transformers.models.distilbert.modeling_distilbert reports.page scipy.stats "
    "experiments.preference experiments.classification experiments.language experiments.headlines "
    "experiments.instructions experiments.pretraining experiments.glue runs commands.evaluate "
    "commands.features commands.predict commands.reproduce docstring_parser sentencepiece attr "
    "transformers.convert_slow_tokenizer transformers.models.auto.tokenization_auto "
    "transformers.models.bert.tokenization_bert sklearn.metrics"
).split()
POLL = 0.02  # seconds between two looks at whether a process has ended


class Process:
    """A started script; as subprocess.Popen, as far as tests ask it."""

    def __init__(self, words: list[str], env: dict[str, str], stdout: TextIO, stderr: TextIO):
        """words: of the command line, from the script's path on. Its input is empty."""
        self.returncode: int | None = None
        self._connection = connect(address())
        self._lines = self._connection.makefile("r")
        self.pid = self._ask({"words": words, "env": env}, stdout.fileno(), stderr.fileno())

    def _ask(self, what: dict[str, Any], *descriptors: int) -> Any:
        text = json.dumps(what).encode() + b"\n"
        self._connection.sendall(f"{len(text):08d}".encode() + text)
        if descriptors:
            socket.send_fds(self._connection, [b"."], descriptors)
        return json.loads(self._lines.readline())

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
            time.sleep(POLL)
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
                time.sleep(POLL)
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


def spawn(function: Callable, arguments: tuple, nprocs: int, timeout: float = 180) -> None:
    """As torch.multiprocessing.spawn, with copies: function(rank, *arguments) in each of them."""
    with tempfile.TemporaryDirectory() as folder:
        what = Path(folder) / "what"
        what.write_bytes(pickle.dumps((function.__module__, function.__name__, arguments)))
        words = [str(Path(__file__).with_name("call.py")), str(what)]
        with open(what.with_name("log"), "w+") as log:
            ranks = [
                Process([*words, str(rank)], dict(os.environ), log, log) for rank in range(nprocs)
            ]
            end = time.monotonic() + timeout
            while None in (codes := [each.poll() for each in ranks]) and time.monotonic() < end:
                if any(codes):  # one failed: the others would wait for it
                    break
                time.sleep(POLL)
            for each in ranks:
                each.kill()
            log.seek(0)
            assert codes == [0] * nprocs, f"exit codes {codes}\n{log.read()}"


# ------------------------------------------------------------------------- the other side

ADDRESS = "ABLATE_FORKED"  # variable with the name of the server's socket
INTERPRETER = sys.executable


def address() -> str:
    """Of the server of this test session, started when it is first asked for; pytest-xdist's
    workers have one together. It ends with the process that started them."""
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    name = f"ablate-tests-{session}"
    if os.environ.get(ADDRESS) != name:
        with contextlib.suppress(OSError):  # another worker was first
            start(name, session)
        os.environ[ADDRESS] = name
    return name


def start(name: str, session: int, **more: str) -> subprocess.Popen:
    """A new server on the socket of this name, which ends with the process `session`. more:
    environment with which it imports. OSError: there is one of this name."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"\0{name}")
    listening.listen(64)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}
    env["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's: a thread survives no fork
    env["PYTHONPATH"] = str(PROJECT)
    words = [INTERPRETER, __file__, str(listening.fileno()), str(session)]
    server = subprocess.Popen(words, env=env, pass_fds=[listening.fileno()], cwd=PROJECT)
    listening.close()
    return server


def variables(folder: Path) -> dict[str, str]:
    """With which torchrun starts copies, too; folder: for the program that asks for them."""
    shim = folder / "python"
    if not shim.exists():
        worker = Path(__file__).with_name("forked_worker.py").read_text()
        shim.write_text(f"#!{INTERPRETER} -SE\n{worker}")  # without site-packages: 15 ms
        shim.chmod(0o755)
    return {"PYTHON_EXEC": str(shim), ADDRESS: address()}


def connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):  # another worker is just starting it
            connection.connect(f"\0{name}")
            return connection
        time.sleep(POLL)
    raise ConnectionRefusedError(f"no server answers at {name}")


def serve(listening: socket.socket, session: int) -> None:
    """Fork when asked; returns in a copy alone, which is to go on as the script. What a client
    started ends with its connection."""
    choose = selectors.DefaultSelector()
    alive = os.pidfd_open(session)
    choose.register(alive, selectors.EVENT_READ)
    choose.register(listening, selectors.EVENT_READ)
    children: dict[socket.socket, int] = {}
    while True:
        for key, _ in choose.select():
            if key.fileobj == alive:
                os._exit(0)
            if key.fileobj is listening:
                choose.register(listening.accept()[0], selectors.EVENT_READ)
                continue
            connection = key.fileobj
            try:
                if not (size := connection.recv(8, socket.MSG_WAITALL)):
                    raise ConnectionError
                asked = json.loads(connection.recv(int(size), socket.MSG_WAITALL))
                if "poll" in asked:
                    pid, status = os.waitpid(asked["poll"], os.WNOHANG)
                    answer = os.waitstatus_to_exitcode(status) if pid else None
                    if pid:
                        children.pop(connection, None)
                else:
                    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
                    answer = os.fork()
                    if answer == 0:
                        choose.close()
                        os.close(alive)
                        for each in (listening, *children, connection):
                            each.close()
                        return become(asked["words"], asked["env"], descriptors)
                    children[connection] = answer
                    for descriptor in descriptors:
                        os.close(descriptor)
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:  # the client is gone
                choose.unregister(connection)
                connection.close()
                if pid := children.pop(connection, 0):
                    with contextlib.suppress(ProcessLookupError, ChildProcessError):
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)


def become(words: list[str], env: dict[str, str], descriptors: list[int]) -> None:
    """Streams (output and error, or input too), environment and command line of the script."""
    if len(descriptors) == 2:
        descriptors = [os.open(os.devnull, os.O_RDONLY), *descriptors]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(env.get("PWD_OF_CALLER", PROJECT))
    sys.argv = words


if __name__ == "__main__":
    import importlib
    import runpy

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests is not for it
    for name in IMPORTS:
        importlib.import_module(name)
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("bert")  # a thousand regular expressions
    assert len(os.listdir("/proc/self/task")) == 1  # a thread would not survive a fork
    gc.collect(), gc.freeze()  # or each copy's collector would write to all of it
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(BrokenPipeError):
        if sys.argv[0] == "-c":
            exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
