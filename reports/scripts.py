"""The scripts as reports know them, which import none: which of them are one experiment, and what
one of them, asked in a process of its own, makes of settings."""

import json
import os
import re
import subprocess
import sys
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
UNSAID = {"prompt": True, "init": "pretrained", "freeze": "none", "cache_features": True}
WITH_PROMPT = (*FIXED, "run_6_light.py")


def resolved(script: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`script` and the settings; of scripts of one experiment its name, and all that it can be
    told: two of them differ in settings then, and not in the script."""
    if script not in WITH_PROMPT:
        return {"script": script, **settings}
    name = PREFERENCE if script in FIXED else script
    unsaid = {key: value for key, value in UNSAID.items() if key not in settings}
    return {"script": name, **settings, **unsaid, **FIXED.get(script, {})}


@dataclass
class Answer:
    """Of a script to one command line: all settings as they would be recorded, or why not."""

    settings: dict[str, Any]
    error: str = ""


# Imports of a script are heavy, so once for all command lines.
ASK = """
import importlib.util, json, sys
from pathlib import Path
from settings import as_dict, flatten, parse_settings
path, answers = Path(sys.argv[1]), []
lines, sys.stdout = json.load(sys.stdin), sys.stderr
spec = importlib.util.spec_from_file_location(path.stem, path)
sys.modules[path.stem] = script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
for words in lines:
    try:
        aliases = getattr(script, "ALIASES", None)
        config, _ = parse_settings(script.Config, words, path.name, aliases)
        answers.append({"settings": flatten(as_dict(config))})
    except (SystemExit, ValueError) as error:
        answers.append({"settings": {}, "error": str(error)})
json.dump(answers, sys.__stdout__, default=str)
"""


def is_ours(script: Path) -> bool:
    """Whether it reads its settings as all of ours do: others are not asked."""
    return "runs.launch(" in script.read_text(encoding="utf-8")


def ask(script: Path, lines: Sequence[Sequence[str]]) -> list[Answer]:
    """What the script makes of each list of words. ValueError (with all that was said, for whoever
    wants its last words) when it cannot be asked."""
    script = script.resolve()
    paths = os.pathsep.join([str(PROJECT), str(script.parent)])
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(script)],
        input=json.dumps([list(line) for line in lines]),
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [Answer(**answer) for answer in json.loads(done.stdout)]


def text_of(value: Any) -> str:
    """A value as a script's command line takes it: null, true, 1e-05, all, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def folder_name(label: str) -> str:
    """A label without what does not fit into the name of a folder."""
    return re.sub(r"[^\w.,=+-]+", "_", label).strip("._")
