"""In place of the interpreter: `SHIM SCRIPT WORDS`, or `SHIM -c CODE WORDS`, runs as a copy that
forked.py's server makes.

It passes signals on, ends as the copy ends, and takes the copy along when it is killed.
"""

import json
import os
import signal
import socket
import sys
import time

words = [word for word in sys.argv[1:] if word != "-u"]
if not (words[0].endswith(".py") or words[0] == "-c"):  # -m
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
connection = socket.socket(socket.AF_UNIX)
connection.connect("\0" + os.environ["ABLATE_FORKED"])
lines = connection.makefile("r")


def ask(what: dict, *descriptors: int) -> object:
    text = json.dumps(what).encode() + b"\n"
    connection.sendall(b"%08d" % len(text) + text)
    if descriptors:
        socket.send_fds(connection, [b"."], descriptors)
    return json.loads(lines.readline())


env = {**os.environ, "PWD_OF_CALLER": os.getcwd()}
pid = ask({"words": words, "env": env}, 0, 1, 2)


def pass_on(number: int, frame: object) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, pass_on)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    signal.signal(signal.SIGHUP, pass_on)
while (code := ask({"poll": pid})) is None:
    time.sleep(0.02)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
