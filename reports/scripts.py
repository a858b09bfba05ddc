"""The scripts as reports know them, which import none: which of them are one experiment, and what
one of them, asked in a process of its own, makes of settings."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files import PROJECT

# The preference scripts do one thing with other settings: what each of them fixes. The third has
# all settings of the others.
PREFERENCE = "preference"
FIXED: dict[str, dict[str, Any]] = {
    "run_1_distilbert.py": {"prompt": False},
    "run_2_appendprompt.py": {"prompt": True},
    "run_5_models.py": {},
}
WHOLE_SCRIPT = {PREFERENCE: "run_5_models.py"}
# ... and what is meant where a script, or an older run, has no such setting. Lightning's twin has
# a loop of its own, and the same settings.
UNSAID = {"prompt": True, "init": "pretrained", "freeze": "none", "cache_features": None}
WITH_PROMPT = (*FIXED, "run_6_light.py")


def resolved(script: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`script` and the settings; of scripts of one experiment its name, and all that it can be
    told: two of them differ in settings then, and not in the script."""
    if script not in WITH_PROMPT:
        return {"script": script, **settings}
    name = PREFERENCE if script in FIXED else script
    if settings.get("cache_features") is True:  # which was the default, and is rounding at most
        settings = {**settings, "cache_features": None}
    unsaid = {key: value for key, value in UNSAID.items() if key not in settings}
    return {"script": name, **settings, **unsaid, **FIXED.get(script, {})}


@dataclass
class Answer:
    """Of a script to one command line: all settings as they would be recorded, or why not."""

    settings: dict[str, Any]
    error: str = ""


# Imports of a script are heavy, so once for all questions: a JSON list of command lines a line.
ASK = """
import importlib.util, json, sys
from pathlib import Path
from settings import as_dict, flatten, parse_settings
path, out, sys.stdout = Path(sys.argv[1]), sys.stdout, sys.stderr
spec = importlib.util.spec_from_file_location(path.stem, path)
sys.modules[path.stem] = script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
for line in sys.stdin:
    answers = []
    for words in json.loads(line):
        try:
            aliases = getattr(script, "ALIASES", None)
            config, _ = parse_settings(script.Config, words, path.name, aliases)
            answers.append({"settings": flatten(as_dict(config))})
        except (SystemExit, ValueError) as error:
            answers.append({"settings": {}, "error": str(error)})
    print(json.dumps(answers, default=str), file=out, flush=True)
"""


def is_ours(script: Path) -> bool:
    """Whether it reads its settings as all of ours do: others are not asked."""
    return "runs.launch(" in script.read_text(encoding="utf-8")


class Asking:
    """A script that is asked what it makes of command lines, several times; a context manager."""

    def __init__(self, script: Path):
        self.script = script.resolve()

    def __enter__(self) -> "Asking":
        paths = os.pathsep.join([str(PROJECT), str(self.script.parent)])
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", ASK, str(self.script)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __call__(self, lines: Sequence[Sequence[str]]) -> list[Answer]:
        """What it makes of each list of words. ValueError, with all that it said, when it cannot
        be asked."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([list(line) for line in lines]) + "\n")
            self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            self._process.wait()
            self._errors.seek(0)
            raise ValueError(self._errors.read())
        return [Answer(**each) for each in json.loads(answer)]


def text_of(value: Any) -> str:
    """A value as a script's command line takes it: null, true, 1e-05, all, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def folder_name(label: str) -> str:
    """A label without what does not fit into the name of a folder."""
    return re.sub(r"[^\w.,=+-]+", "_", label).strip("._")
