"""Alpaca-style rows of made-up words, and tiny decoders with room for the template."""

import json
import random
from pathlib import Path

from conftest import WORDS
from tiny_models import build_tiny_gpt2, build_tiny_llama

from data.instructions import format_prompt

ROWS = 60


def alpaca_rows(count: int = ROWS) -> list[dict]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        given = " ".join(draw.choices(WORDS, k=3)) if number % 3 == 0 else ""
        output = " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))
        rows.append({"instruction": f"write {number}", "input": given, "output": output})
    return rows


def write_rows(path: Path, count: int = ROWS) -> Path:
    path.write_text(json.dumps(alpaca_rows(count)))
    return path


def texts() -> list[str]:
    return [
        format_prompt(row["instruction"], row["input"] or "x") + row["output"]
        for row in alpaca_rows()
    ]


def build_models(root: Path) -> dict[str, Path]:
    models = {
        "gpt2": build_tiny_gpt2(root / "gpt2", texts(), positions=256),
        "llama": build_tiny_llama(root / "llama", texts()),
    }
    path = models["llama"] / "config.json"  # rotary: any number of positions
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 256}))
    return models
