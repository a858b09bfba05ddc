"""Each script that takes a model of others, in this process, for a few steps on tiny rows."""

import importlib
import json
from pathlib import Path

from conftest import WORDS
from test_glue import write_task
from test_texts import write_csv
from tiny_instructions import write_rows

from settings import parse_settings

ALL_SCRIPTS = [
    *("run_1_distilbert", "run_2_appendprompt", "run_5_models"),
    *("eval_bert", "finetune_gpt2", "alpaca_sft"),
]


def write_data(root: Path) -> dict[str, Path]:
    """Rows for the scripts; those of pairs are conftest's."""
    write_task(root / "glue", "wnli")
    lines = [" ".join(WORDS[i % 30 :] + [str(i)]) for i in range(80)]
    labelled = [(line, "yes" if i % 2 else "no") for i, line in enumerate(lines)]
    return {
        "glue": root / "glue",
        "texts": write_csv(root / "texts.csv", labelled),
        "instructions": write_rows(root / "rows.json"),
    }


def words_of(script: str, data: dict[str, Path]) -> list[str]:
    """Settings for a few steps."""
    if script.startswith("run_"):
        return [f"--data={data['pairs']}", "--max_length=24", "--batch=32", "--epochs=0.4"]
    if script == "eval_bert":
        return ["--suite=wnli", f"--data={data['glue']}", "--max_length=64", "--epochs=1"]
    if script == "alpaca_sft":
        return [f"--data={data['instructions']}", "--batch=16", "--sample_tokens=2"]
    return [f"--task={data['texts']}", "--max_length=24", "--batch=32", "--attention_texts=0"]


def run(script: str, *words: object) -> dict:
    """A script in this process; its record."""
    given = [*map(str, words), "--page=false", "--device=cpu", "--precision=fp32"]
    module = importlib.import_module(script)
    module.main(*parse_settings(module.Config, given, script))
    out = next(word.removeprefix("--out=") for word in given if word.startswith("--out="))
    return json.loads((Path(out) / "run.json").read_text())
