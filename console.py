"""What a program says, and what it answers: that nobody can read a line ends no run.

    console.open_streams()      # at the start of a script or command
    console.say("step 3 …")     # for whoever looks on: lost where it cannot be written
    console.doing("evaluating") # on a terminal, until the next line
    console.answer(table)       # what a command was asked for: an error where it cannot be written

A console may be a pipe whose reader has left (| head), a file on a full disk, closed, or a terminal
that knows ASCII alone. After open_streams() none of these is an error for anything that is written
to sys.stdout and sys.stderr, also by progress bars, warnings and libraries.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any


class _Descriptor(io.FileIO):
    """Standard output or error. What cannot be written counts as written, or Python would try it
    again at the next line and at its end."""

    lost: OSError | None = None  # why

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            self.lost = error
            return len(data)
        if written is None:  # set to be non-blocking by another process of the terminal, and full
            self.lost = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return len(data)
        return written


def open_streams() -> None:
    """Make standard output and error such that writing to them does not fail.

    Streams that were put in place of the process's own stay.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except (
            OSError
        ):  # closed: the next file to be opened would get its number, and be written to
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
        stream = getattr(sys, name)
        if number == 0 or stream is not getattr(sys, f"__{name}__") or _descriptor(stream):
            continue
        how: dict[str, Any] = {"encoding": "utf-8"}
        if stream is not None:
            names = ("encoding", "line_buffering", "write_through")
            how = {each: getattr(stream, each) for each in names}
            with contextlib.suppress(OSError):
                stream.flush()
        raw = _Descriptor(number, "w", closefd=False)
        text = io.TextIOWrapper(io.BufferedWriter(raw), errors="replace", **how)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _descriptor(stream: Any) -> _Descriptor | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None


_shown = False  # whether a line of doing() stands there


def doing(what: str) -> None:
    """On a terminal, what takes seconds from here on; whatever is said next takes its place.

    Written by the first rank alone, and past Python's buffers: a signal's handler may call it.
    """
    global _shown
    with contextlib.suppress(OSError):
        if os.environ.get("RANK", "0") == "0" and os.isatty(2):
            os.write(2, f"\r{what} ...\x1b[K\r".encode("ascii", "replace"))
            _shown = True


def _clear() -> None:
    global _shown
    if _shown:
        _shown = False
        with contextlib.suppress(OSError):
            os.write(2, b"\r\x1b[K")


def say(text: object = "", end: str = "\n") -> None:
    """A line on standard output, above a progress bar if there is one; lost where that fails."""
    _clear()
    for spelling in (str(text), str(text).encode("ascii", "replace").decode()):
        try:
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(spelling, file=sys.stdout, end=end)
            else:
                print(spelling, end=end)
            sys.stdout.flush()
        except UnicodeEncodeError:
            continue
        except (OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: None
            pass
        return


def answer(text: object, end: str = "\n") -> None:
    """The result of a command on standard output.

    SystemExit(0) where its reader has left; OSError where it cannot be written for another reason.
    """
    _clear()
    descriptor = _descriptor(sys.stdout)
    if descriptor is not None:
        descriptor.lost = None
    try:
        print(text, end=end, flush=True)
        if descriptor is not None and descriptor.lost is not None:
            raise descriptor.lost
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        raise OSError(error.errno, f"standard output: {error.strerror}") from None
