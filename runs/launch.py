"""From the command line to a script's main, or to one of its commands."""

import dataclasses
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import console
from files import DiskFull, cache_advice, packed_at, require_writable
from settings import (
    SOURCES,
    Aliases,
    Section,
    Settings,
    as_dict,
    parse_settings,
    read_so_far,
    require_read,
)

RUNS = ("run_folder", "model", "base", "against", "by")  # settings that may name one


def launch(
    main: Callable,
    kind: type[Settings],
    commands: dict[str, tuple] | None = None,
    aliases: Aliases | None = None,
) -> None:
    """Run a script; errors of the user's making become one line, and so does a signal.

    commands: first word → (function, its settings) or (function, its settings, their aliases).
    aliases: other names of settings → ours.
    """
    console.open_streams()
    end_by_signals()
    argv, prog = sys.argv[1:], Path(sys.argv[0]).name
    commands = commands or {}
    word = argv[0] if argv else ""
    if commands and re.fullmatch(r"\w+", word) and word not in commands:
        near = difflib.get_close_matches(word, commands, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(commands)}"
        raise SystemExit(f"{prog}: '{word}' is no command: {hint}")
    if {"-h", "--help"} & set(argv):
        return say_help(main, kind, commands, argv, prog)
    try:
        if word in commands:
            action, settings, *own_aliases = commands[word]
            own, typed = (own_aliases or [None])[0], f"{prog} {word}"
            require_one_process(settings, typed)
            config, _ = parse_settings(settings, argv[1:], typed, own, SOURCES)
            require_unpacked(config)
            check_output(config)
            action(config)
            if os.environ.get("RANK", "0") == "0":  # the others may have had nothing to do
                require_read(config, read_so_far(config))
        else:
            config, given = parse_settings(kind, argv, prog, aliases, SOURCES)
            check_output(config)
            main(config, given)
    except KeyboardInterrupt as stop:
        name = str(stop) or "SIGINT"
        print(f"{prog}: stopped by {name}", file=sys.stderr)
        raise SystemExit(128 + signal.Signals[name]) from None
    except (ValueError, OSError, DiskFull, ModuleNotFoundError) as error:
        if os.environ.get("ABLATE_DEBUG"):
            raise
        rank = int(os.environ.get("RANK", "0"))
        where = f"[rank {rank}] " if rank else ""
        raise SystemExit(f"{where}error: {error}{cache_advice(error)}") from None


def require_one_process(settings: type[Section], command: str) -> None:
    """ValueError for a command under torchrun whose processes would each do all of it, and write
    over each other. IN_PARALLEL: of settings, that they share it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not getattr(settings, "IN_PARALLEL", False):
        raise ValueError(f"{command}: {size} processes would each do all of it: without torchrun")


def require_unpacked(config: Section) -> None:
    """ValueError where a run that a command opens lies in a packed folder, as reports read them.
    READS_PACKED: of settings, that this command does so, too."""
    if getattr(config, "READS_PACKED", False):
        return
    named = {name: value for name, value in as_dict(config).items() if name in RUNS and value}
    for name, value in named.items():
        if found := packed_at(Path(value)):
            file, folder = found
            raise ValueError(
                f"--{name} {value} lies in a packed folder: unpack it first (python -m zipfile -e "
                f"{file} {folder.parent}); weights are in it where a bundle was made with them"
            )


def say_help(
    main: Callable, kind: type[Settings], commands: dict[str, tuple], argv: list[str], prog: str
) -> None:
    """--help of a script or of its command, and --help all."""
    from usage import help_text

    about, names = sys.modules[main.__module__].__doc__ or "", list(commands)
    if argv[0] in commands:
        action, kind, *_ = commands[argv[0]]
        about, names, prog = action.__doc__ or "", [], f"{prog} {argv[0]}"
    if os.environ.get("RANK", "0") == "0":
        console.answer(help_text(kind, prog, about, names, "all" in argv))


def check_output(config: Section) -> None:
    """OSError where what is asked for could not be written, before hours of work for it."""
    for field in dataclasses.fields(config):
        path = getattr(config, field.name) if field.name in ("out", "output") else None
        if path and path != field.default and os.environ.get("RANK", "0") == "0":
            require_writable(path, folder=not config.WRITES_A_FILE)
            for other in dataclasses.fields(config):
                read = getattr(config, other.name) if other.name != field.name else None
                there = isinstance(read, str) and os.path.isfile(read) and os.path.isfile(path)
                if there and os.path.samefile(read, path):
                    raise OSError(f"--{field.name} {path} is the file of --{other.name}, too")


def end_by_signals() -> None:
    """SIGTERM and a terminal that closes end a command as Ctrl-C does, so that what it has begun
    to write is cleared away. A signal that is ignored (nohup) stays so; a run has its own ways."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
