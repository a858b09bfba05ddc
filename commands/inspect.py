"""`inspect` of train_headlines.py: what a run expects at a place, and of each token on the whole.

python train_headlines.py inspect --run_folder results/headlines/ours --batch 0 --position 10
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import console
from commands.titles import Opened, open_titles, shown, token_text, write_titles
from data import titles
from data.titles import TitleData
from data.tokens import Ragged, encode_texts
from device import to_device
from files import write_text
from models.decoding import Decoding

MOST_TOKENS = 20  # in the table and picture of frequencies


@dataclass
class InspectConfig:
    """Settings of `inspect`: next tokens at a place, token frequencies, samples."""

    run_folder: str = ""
    """run folder"""
    weights: Literal["final", "best"] = "final"
    """which of its weights"""
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
    folder = Path(config.output or Path(config.run_folder) / "inspect")
    write_text(folder / "inspect.txt", text)
    write_text(folder / "inspect.json", json.dumps(outputs, indent=1, ensure_ascii=False))
    for picture in (next_token_picture(place), frequency_picture(frequencies)):
        (folder / f"{picture.name.split('/')[1]}.png").write_bytes(picture.png())
    console.say(text, end="")
    console.say(f"\n{folder}: inspect.txt, inspect.json, next_tokens.png, frequencies.png")


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


@torch.no_grad()
def look_at_place(
    opened: Opened, rows: Ragged, batch: int, row: int, position: int
) -> dict[str, Any]:
    """What is read up to a place of the exercise's evaluation, and the ten likeliest next tokens.

    The last batch, which that evaluation leaves out, may be unfinished. ValueError for a place that
    there is not.
    """
    tokenizer, eos = opened.tokenizer, opened.tokenizer.eos_token_id
    tokens = titles.build_stream(rows, eos).tokens[1:]
    batches = math.ceil(len(tokens) / titles.OFFICIAL_SPAN)
    for name, value, count in (
        ("batch", batch, batches),
        ("row", row, titles.OFFICIAL_BATCH),
        ("position", position, titles.OFFICIAL_BLOCK),
    ):
        if not 0 <= value < count:
            raise ValueError(f"--{name} {value}: the validation titles have 0 to {count - 1}")
    start = batch * titles.OFFICIAL_SPAN + row * titles.OFFICIAL_BLOCK
    read = tokens[start : start + position + 2].astype(np.int64)
    if len(read) < position + 2:
        raise ValueError(
            f"--batch {batch} --row {row} --position {position}: the validation titles end before "
            f"it, they have {len(tokens):,} tokens"
        )
    ids = torch.from_numpy(read[None, :-1])
    shares = opened.model(ids.to(opened.device)).logits[0, -1].float().softmax(-1).cpu()
    best, likeliest = shares.topk(10)
    begins = (ids[0] == eos).nonzero().flatten().tolist()
    begins = begins[-1] if opened.model.config.within_titles and begins else 0
    actual = int(read[-1])
    return {
        "batch": batch,
        "row": row,
        "position": position,
        "read": shown(tokenizer.decode(ids[0])),
        "seen": shown(tokenizer.decode(ids[0, begins:])),
        "next": token_text(tokenizer, actual),
        "next_probability": float(shares[actual]),
        "likeliest": [
            {"token": token_text(tokenizer, token), "probability": p}
            for token, p in zip(likeliest.tolist(), best.tolist(), strict=True)
        ],
    }


def validation_batches(opened: Opened, rows: Ragged) -> Iterator[dict[str, Tensor]]:
    """Every validation token once, as the run's own evaluation reads it."""
    config, eos = opened.config, opened.tokenizer.eos_token_id
    data: Any = TitleData(rows, eos)
    if not config.within_titles:
        stream = titles.build_stream(rows, eos)
        data = titles.validation_windows(stream, config.max_length, eos)
    size = max(1, 4096 // int(np.mean(data.lengths)))
    for start in range(0, len(data.lengths), size):
        numbers = np.arange(start, min(start + size, len(data.lengths)))
        yield to_device(data.collate(numbers, None), opened.device)


@torch.no_grad()
def token_frequencies(opened: Opened, rows: Ragged) -> dict[str, Any]:
    """How often each token comes in the validation titles, and how often the model expects it.

    The latter is its probability, averaged over all places. In shares of all tokens.
    """
    from models import gpt

    size, eos = opened.model.config.vocab_size, opened.tokenizer.eos_token_id
    expected, counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size)
    weight = opened.model.lm_head.weight
    for batch in validation_batches(opened, rows):
        hidden = opened.model.model(batch["input_ids"]).last_hidden_state
        hidden, labels = gpt.at_targets(hidden, batch["labels"])
        for part in hidden.split(512):
            expected += (part @ weight.T).float().softmax(-1).sum(0).cpu().double()
        counts += torch.bincount(labels.cpu(), minlength=size)
    expected, data = (expected / counts.sum()).numpy(), (counts / counts.sum()).double().numpy()
    order = np.argsort(-data, kind="stable")[:MOST_TOKENS]

    def line(token: int) -> dict[str, Any]:
        text = token_text(opened.tokenizer, token)
        return {"token": text, "data": float(data[token]), "model": float(expected[token])}

    return {"tokens": int(counts.sum()), "eos": line(eos), "commonest": [line(t) for t in order]}


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


def next_token_picture(place: dict[str, Any]) -> Any:
    """The ten likeliest next tokens as bars."""
    from reports import plots

    tokens = place["likeliest"]
    labels = [repr(t["token"]) for t in tokens]
    shares = [t["probability"] for t in tokens]
    said = ", ".join(f"{label} {share:.1%}" for label, share in zip(labels, shares, strict=True))
    alt = f"The ten likeliest tokens after {place['seen'][-60:]!r}: {said}."

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colors = [plots.LIGHT["orange" if t["token"] == place["next"] else "blue"] for t in tokens]
        axes.barh(range(len(tokens)), [100 * share for share in shares], color=colors)
        axes.set_yticks(range(len(tokens)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("probability of the next token (%); orange: what came")

    return plots.Picture("inspect/next_tokens", alt, draw)


def frequency_picture(frequencies: dict[str, Any]) -> Any:
    """Shares of the commonest tokens in the data and in the model's expectation."""
    from reports import plots

    tokens = frequencies["commonest"]
    eos = frequencies["eos"]
    alt = (
        f"Shares of the {len(tokens)} commonest tokens in the data and as the model expects them; "
        f"<eos> {eos['data']:.2%} and {eos['model']:.2%}."
    )

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(tokens))
        for shift, name, color in ((-0.2, "data", "blue"), (0.2, "model", "orange")):
            shares = [100 * t[name] for t in tokens]
            axes.barh(places + shift, shares, 0.4, color=plots.LIGHT[color], label=name)
        axes.set_yticks(places, [repr(t["token"]) for t in tokens])
        axes.invert_yaxis()
        axes.set_xlabel("share of all validation tokens (%)")
        axes.legend()

    return plots.Picture("inspect/frequencies", alt, draw, height=5.0)
