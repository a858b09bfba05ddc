"""The command `attention`: what the tokens of texts of your choice read, drawn on the run's page.

python finetune_gpt2.py attention --run_folder results/gpt2/… --texts "A dull film." --layers 0,11
python finetune_gpt2.py attention --run_folder gpt2 --texts texts.txt --heads all --out maps.jsonl
"""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import console
from commands.verdicts import note_failures
from data.records import lines
from files import PROJECT, write_text
from models import attention, causal, pretrained
from settings import Section


@dataclass
class Config(Section):
    """Settings of the command `attention`."""

    WRITES_A_FILE = True
    LEAST = {"tokens": 1}

    run_folder: str = ""
    """run folder, or any causal model or encoder: a local folder or a hub id"""
    texts: str = ""
    """a text, or a file with one on each line"""
    layers: str = "some"
    """some (the lowest, the middle, the highest), all, or numbers from 0 on: 0,5,11"""
    heads: str = "mean"
    """mean of all heads, all, or numbers from 0 on: 0,3"""
    tokens: int = attention.MOST_TOKENS
    """tokens of each text at most"""
    weights: Literal["best", "final"] | None = None
    """which weights of a run folder; null: those that it was tested with"""
    out: str | None = None
    """file of the maps; null: test/analysis/attention.jsonl of the run, whose page is made anew"""


def numbers(words: str, what: str, count: int) -> list[int]:
    """[0, 5] of "0,5"; all of them of "all"."""
    if words == "all":
        return list(range(count))
    parts = words.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--{what} {words}: expected numbers such as 0,3, or all")
    for part in parts:
        attention.check_number(what.removesuffix("s"), int(part), count)
    return [int(part) for part in parts]


def show_attention(config: Config) -> None:
    """Write the maps. ValueError, OSError for what is missing or not there."""
    if not config.run_folder or not config.texts:
        raise ValueError('attention needs --run_folder FOLDER and --texts "…" (or a file of texts)')
    is_run = (Path(config.run_folder) / "train/weights").is_dir()
    if not is_run:
        pretrained.check_model(config.run_folder)
    if not is_run and config.out is None:
        raise ValueError(
            f"{config.run_folder} is no run folder: name a file for the maps with --out"
        )
    note_failures(config.run_folder)
    source = pretrained.weights_folder(config.run_folder, config.weights)
    shape = causal.load_config(source)
    tokenizer = causal.load_tokenizer(source, config=shape)
    classes = None
    if any("Classification" in kind for kind in shape.architectures or []):
        classes = [shape.id2label[number] for number in sorted(shape.id2label)]
    elif causal.is_encoder(shape):
        classes = ("none", "some")  # a head that is not read
    model = causal.load_model(source, shape, classes, attention="eager", tokenizer=tokenizer)
    layers, heads = shape.num_hidden_layers, shape.num_attention_heads
    if config.layers == "some":
        chosen_layers = attention.some_layers(layers)
    else:
        chosen_layers = numbers(config.layers, "layers", layers)
    chosen_heads = [] if config.heads == "mean" else numbers(config.heads, "heads", heads)
    limit = min(config.tokens, pretrained.max_positions(shape) or config.tokens)
    options = (chosen_layers, chosen_heads, limit)
    texts = [
        (text, *attention.attention_maps(model, tokenizer, text, *options))
        for text in read_texts(config.texts)
    ]
    path = Path(config.out or Path(config.run_folder) / "test/analysis/attention.jsonl")
    write_text(path, attention.maps_text(texts))
    console.say(f"attention: {sum(len(maps) for *_, maps in texts)} maps in {path}")
    if is_run and config.out is None:
        report = [sys.executable, str(PROJECT / "report.py"), "page", config.run_folder]
        subprocess.run(report, check=False)


def read_texts(texts: str) -> list[str]:
    """The lines of a file, or the one text itself."""
    try:
        there = Path(texts).is_file()
    except OSError:  # too long for the name of a file
        there = False
    if not there:
        return [texts]
    rows = [line.rstrip("\r\n") for line in lines(Path(texts), Counter()) if line.strip()]
    if not rows:
        raise ValueError(f"{texts}: no text in it")
    return rows
