"""What train_headlines.py does besides training: look inside a run, write titles, leave for others.

python train_headlines.py inspect --run results/headlines/ours --batch 0 --position 10
python train_headlines.py generate --run results/headlines/ours --prompt "Show HN:" --count 5
python train_headlines.py export --run results/headlines/ours --output llama
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

import core
from models import gpt, pretrained
from tasks import headlines
from tasks.arena import strip_control
from tasks.fine_tuning import weights_folder

MOST_TOKENS = 20  # in the table and picture of frequencies


@dataclass
class Opened:
    """A saved run: its settings, model in evaluation mode, tokenizer."""

    config: Any
    model: gpt.SmallGPTForCausalLM
    tokenizer: Any
    device: torch.device


def open_run(run: str, weights: str, device: str = "auto") -> Opened:
    """ValueError where the folder holds no finished weights of train_headlines.py."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pretrained.quiet_transformers()
    if not run:
        raise ValueError("needs --run FOLDER, a run of train_headlines.py")
    record = Path(run) / "run.json"
    if not record.is_file():
        raise FileNotFoundError(f"{run}: no run of train_headlines.py (it has no run.json)")
    script = json.loads(record.read_text(encoding="utf-8")).get("script")
    if script != "train_headlines.py":
        raise ValueError(f"{run}: a run of {script}, not of train_headlines.py")
    folder = Path(weights_folder(run, weights))
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{run} has no {weights} weights: has the run been finished?")
    settings = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
    world = core.single_world(device)
    model = AutoModelForCausalLM.from_pretrained(folder).to(world.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Opened(SimpleNamespace(**settings), model, tokenizer, world.device)


def shown(text: str) -> str:
    """Text for a terminal: control characters and line ends cannot do anything."""
    return strip_control(text.replace("\n", "⏎"))


def token_text(tokenizer: Any, token: int) -> str:
    """A token as it is read; bytes that are no letter alone by their piece."""
    text = tokenizer.decode([token])
    return shown(tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text)


# ------------------------------------------------------------------------------- inspect


@dataclass
class InspectConfig:
    """Settings of `inspect`: next tokens at a place, token frequencies, samples."""

    run: str = ""
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
    opened = open_run(config.run, config.weights, config.device)
    titles = validation_titles(config, opened.config)
    rows = core.Ragged.from_rows(
        core.encode_texts(opened.tokenizer, (t.text for t in titles), len(titles), "", quiet=True)
    )
    place = look_at_place(opened, rows, config.batch, config.row, config.position)
    frequencies = token_frequencies(opened, rows)
    generator = torch.Generator(opened.device).manual_seed(config.seed)
    samples = write_titles(opened, "", config.samples, config.temperature, None, generator)
    found = {"place": place, "frequencies": frequencies, "samples": samples}
    text = as_text(found)
    folder = Path(config.output or Path(config.run) / "inspect")
    core.write_text(folder / "inspect.txt", text)
    core.write_text(folder / "inspect.json", json.dumps(found, indent=1, ensure_ascii=False))
    for picture in (next_token_picture(place), frequency_picture(frequencies)):
        (folder / f"{picture.name.split('/')[1]}.png").write_bytes(picture.png())
    print(text, end="")
    print(f"\n{folder}: inspect.txt, inspect.json, next_tokens.png, frequencies.png")


def validation_titles(config: InspectConfig, settings: Any) -> list[headlines.Title]:
    """Those of the run. ValueError if its source has other titles by now."""
    data = config.data or settings.data
    titles = headlines.load_titles(data, settings.limit, settings.data_seed)
    _, titles = headlines.split_titles(titles, settings.val_frac)
    record = json.loads((Path(config.run) / "run.json").read_text(encoding="utf-8"))
    was, now = record.get("split_fingerprint"), headlines.fingerprint(titles)
    if was != now:
        raise ValueError(
            f"{data} has other validation titles than those of the run (fingerprint {now}, not "
            f"{was}): --data names the file that the run was made with"
        )
    return titles


@torch.no_grad()
def look_at_place(
    opened: Opened, rows: core.Ragged, batch: int, row: int, position: int
) -> dict[str, Any]:
    """What is read up to a place of the exercise's evaluation, and the ten likeliest next tokens.

    The last batch, which that evaluation leaves out, may be unfinished. ValueError for a place that
    there is not.
    """
    tokenizer, eos = opened.tokenizer, opened.tokenizer.eos_token_id
    tokens = headlines.build_stream(rows, eos).tokens[1:]
    batches = math.ceil(len(tokens) / headlines.OFFICIAL_SPAN)
    for name, value, count in (
        ("batch", batch, batches),
        ("row", row, headlines.OFFICIAL_BATCH),
        ("position", position, headlines.OFFICIAL_BLOCK),
    ):
        if not 0 <= value < count:
            raise ValueError(f"--{name} {value}: the validation titles have 0 to {count - 1}")
    start = batch * headlines.OFFICIAL_SPAN + row * headlines.OFFICIAL_BLOCK
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
        **{"batch": batch, "row": row, "position": position},
        "read": shown(tokenizer.decode(ids[0])),
        "seen": shown(tokenizer.decode(ids[0, begins:])),
        **{"next": token_text(tokenizer, actual), "next_probability": float(shares[actual])},
        "likeliest": [
            {"token": token_text(tokenizer, token), "probability": p}
            for token, p in zip(likeliest.tolist(), best.tolist(), strict=True)
        ],
    }


def validation_batches(opened: Opened, rows: core.Ragged) -> Iterator[dict[str, Tensor]]:
    """Every validation token once, as the run's own evaluation reads it."""
    config, eos = opened.config, opened.tokenizer.eos_token_id
    data: Any = headlines.TitleData(rows, eos)
    if not config.within_titles:
        stream = headlines.build_stream(rows, eos)
        data = headlines.validation_windows(stream, config.max_length, eos)
    size = max(1, 4096 // int(np.mean(data.lengths)))
    for start in range(0, len(data.lengths), size):
        numbers = np.arange(start, min(start + size, len(data.lengths)))
        yield core.to_device(data.collate(numbers, None), opened.device)


@torch.no_grad()
def token_frequencies(opened: Opened, rows: core.Ragged) -> dict[str, Any]:
    """How often each token comes in the validation titles, and how often the model expects it.

    The latter is its probability, averaged over all places. In shares of all tokens.
    """
    size, eos = opened.model.config.vocab_size, opened.tokenizer.eos_token_id
    expected, counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size)
    weight = opened.model.lm_head.weight
    for batch in validation_batches(opened, rows):
        hidden = opened.model.model(batch["input_ids"]).last_hidden_state
        hidden, labels = gpt.at_targets(hidden, batch["labels"])
        for part in hidden.split(512):
            expected += (part @ weight.T).float().softmax(-1).sum(0).double().cpu()
        counts += torch.bincount(labels.cpu(), minlength=size)
    expected, data = (expected / counts.sum()).numpy(), (counts / counts.sum()).double().numpy()
    order = np.argsort(-data, kind="stable")[:MOST_TOKENS]

    def line(token: int) -> dict[str, Any]:
        text = token_text(opened.tokenizer, token)
        return {"token": text, "data": float(data[token]), "model": float(expected[token])}

    return {"tokens": int(counts.sum()), "eos": line(eos), "commonest": [line(t) for t in order]}


def as_text(found: dict[str, Any]) -> str:
    place, frequencies = found["place"], found["frequencies"]
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
        *(f"  {title}" for title in found["samples"]),
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


# -------------------------------------------------------------------- generate and export


@dataclass
class GenerateConfig:
    """Settings of `generate`: titles that a run's model writes."""

    run: str = ""
    """run folder"""
    weights: Literal["final", "best"] = "final"
    """which of its weights"""
    prompt: str = ""
    """how the titles begin"""
    count: int = 10
    """titles to write"""
    temperature: float = 1.0
    """0 takes the likeliest token, so that all are the same"""
    top_k: int | None = None
    """draw from this many likeliest tokens; null: from all"""
    seed: int = 0
    """of the draw"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def generate(config: GenerateConfig) -> None:
    opened = open_run(config.run, config.weights, config.device)
    generator = torch.Generator(opened.device).manual_seed(config.seed)
    for title in write_titles(
        opened, config.prompt, config.count, config.temperature, config.top_k, generator
    ):
        print(title)


def write_titles(
    opened: Opened,
    prompt: str,
    count: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> list[str]:
    """Titles that begin with the prompt, one a line. ValueError for a prompt without room."""
    tokenizer, model = opened.tokenizer, opened.model
    ids = [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    room = 60
    if model.config.positions == "learned":
        room = min(room, model.config.n_positions - len(ids))
    if room < 1 or count < 1:
        raise ValueError(f"--count {count}, prompt of {len(ids)} tokens: nothing left to write")
    start = torch.tensor([ids] * count, device=opened.device)
    written = model.generate(start, room, temperature, top_k, generator)[:, 1:].tolist()
    return [shown(headlines.decode_title(tokenizer, cut_at_eos(row, ids[0]))) for row in written]


def cut_at_eos(ids: Sequence[int], eos: int) -> Sequence[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


@dataclass
class ExportConfig:
    """Settings of `export`: the model as transformers' own Llama or Qwen3."""

    run: str = ""
    """run folder"""
    weights: Literal["final", "best"] = "final"
    """which of its weights"""
    output: str = ""
    """folder to write"""


def export(config: ExportConfig) -> None:
    """A folder that AutoModelForCausalLM opens without ours; refused where logits would differ."""
    if not config.output:
        raise ValueError("export needs --output FOLDER")
    opened = open_run(config.run, config.weights, "cpu")
    theirs = gpt.to_transformers(opened.model)
    size, eos = opened.model.config.vocab_size, opened.tokenizer.eos_token_id
    ids = torch.randint(0, size, (4, 24), generator=torch.Generator().manual_seed(0))
    ids[ids == eos] = (eos + 1) % size
    ids[:, 0] = eos  # one title a row
    with torch.no_grad():
        apart = (theirs(ids).logits - opened.model(ids).logits).abs().max().item()
    if apart > 1e-3:
        raise ValueError(f"the logits of the exported model are {apart:.2g} apart from ours")
    theirs.save_pretrained(config.output)
    opened.tokenizer.save_pretrained(config.output)
    kind = type(theirs).__name__
    print(f"{config.output}: {kind}, logits at most {apart:.1g} apart; a title begins with <eos>")
    if opened.tokenizer.decode(opened.tokenizer("a").input_ids) == " a":
        print("what the tokenizer decodes begins with a space (prefix_space): strip it")


COMMANDS: dict[str, tuple] = {
    "inspect": (inspect, InspectConfig),
    "generate": (generate, GenerateConfig),
    "export": (export, ExportConfig),
}
