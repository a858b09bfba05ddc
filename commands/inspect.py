"""`inspect` of train_headlines.py: what a run expects at a place, and of each token on the whole.

python train_headlines.py inspect --run_folder results/headlines/ours --batch 0 --position 10
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import console
from commands.titles import open_titles, write_titles
from data import titles
from data.tokens import Ragged, encode_texts
from experiments.next_tokens import look_at_place, token_frequencies
from files import write_text
from models.decoding import Decoding
from settings import Section, refuse


@dataclass
class InspectConfig(Section):
    """Settings of `inspect`: next tokens at a place, token frequencies, samples."""

    ONLY_WITH = {"temperature": "samples", "seed": "samples"}
    LEAST = {"samples": 0}

    run_folder: str = ""
    """run folder"""
    weights: Literal["best", "final"] | None = None
    """which of its weights; null: those that it was tested with"""
    data: str = ""
    """where the titles of the run are now; empty: where they were"""
    batch: int = 0
    """which batch of 64 × 128 tokens of the validation titles, from 0"""
    row: int = 0
    """which of its 64 rows, from 0"""
    position: int = 10
    """after which of the row's 128 tokens the next is asked for, from 0"""
    samples: int = 10
    """titles to write"""
    temperature: float = 1.0
    """of the samples: 0 takes the likeliest token"""
    seed: int = 0
    """of the samples"""
    output: str | None = None
    """folder of inspect.txt, inspect.json and the pictures; null: inspect/ in the run folder"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def inspect(config: InspectConfig) -> None:
    """Print and write what the model expects, at one place and on the whole."""
    if config.temperature == 0:
        refuse(config, ["seed"], "it counts with --temperature")
    if config.data:
        titles.check_rows(config.data)
    opened = open_titles(config.run_folder, config.weights, config.device)
    held_out = validation_titles(config, opened.config)
    rows = Ragged.from_rows(
        encode_texts(opened.tokenizer, (t.text for t in held_out), len(held_out), "", quiet=True)
    )
    place = look_at_place(opened, rows, config.batch, config.row, config.position)
    frequencies = token_frequencies(opened, rows)
    decoding = Decoding(max_new_tokens=60, temperature=config.temperature, seed=config.seed)
    samples = write_titles(opened, "", config.samples, decoding)
    outputs = {"place": place, "frequencies": frequencies, "samples": samples}
    text = as_text(outputs)
    from reports.next_tokens import frequency_picture, next_token_picture

    folder = Path(config.output or Path(config.run_folder) / "inspect")
    write_text(folder / "inspect.txt", text)
    write_text(folder / "inspect.json", json.dumps(outputs, indent=1, ensure_ascii=False))
    for picture in (next_token_picture(place), frequency_picture(frequencies)):
        (folder / f"{picture.name.split('/')[1]}.png").write_bytes(picture.png())
    console.say(text, end="")
    console.say(f"\n{folder}: inspect.txt, inspect.json, next_tokens.png, frequencies.png")
    console.say(f"on the run's page: python report.py page {config.run_folder}")


def validation_titles(config: InspectConfig, settings: Any) -> list[titles.Title]:
    """Those of the run. ValueError if its source has other titles by now."""
    data = config.data or settings.data
    every, _ = titles.load_titles(data, settings.limit, settings.data_seed)
    _, held_out = titles.split_titles(every, settings.val_frac)
    record = json.loads((Path(config.run_folder) / "run.json").read_text(encoding="utf-8"))
    was, now = record.get("split_fingerprint"), titles.titles_fingerprint(held_out)
    if was != now:
        raise ValueError(
            f"{data} has other validation titles than those of the run (fingerprint {now}, not "
            f"{was}): --data names the file that the run was made with"
        )
    return held_out


def as_text(outputs: dict[str, Any]) -> str:
    place, frequencies = outputs["place"], outputs["frequencies"]
    eos = frequencies["eos"]
    more = eos["model"] / eos["data"] - 1
    lines = [
        f"batch {place['batch']}, row {place['row']}, position {place['position']}",
        f"  read:  {place['read']}",
        f"  seen:  {place['seen']}",
        f"  next:  {place['next']!r}, expected with {place['next_probability']:.2%}",
        "  the ten likeliest:",
        *(f"  {t['probability']:8.2%}  {t['token']!r}" for t in place["likeliest"]),
        "",
        f"tokens of the validation titles ({frequencies['tokens']:,}): share, and what the model "
        "expects on average",
        *(
            f"  {t['data']:8.3%} {t['model']:8.3%}  {t['token']!r}"
            for t in frequencies["commonest"]
        ),
        f"<eos>: {eos['data']:.3%} of the data, {eos['model']:.3%} expected: "
        f"{abs(more):.1%} too {'often' if more > 0 else 'seldom'}",
        "",
        "samples:",
        *(f"  {title}" for title in outputs["samples"]),
    ]
    return "\n".join(lines) + "\n"
