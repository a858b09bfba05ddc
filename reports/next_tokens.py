"""Pictures of inspect.json: the likeliest next tokens, and how often tokens come."""

import json
import shlex
from typing import Any

import numpy as np

from reports import packed, plots
from reports.blocks import Block, Figure
from reports.folder import RunFolder, clean

# what `inspect` wrote of a place that was asked for, else what the run's test did
FILES = ("inspect/inspect.json", "test/analysis/inspect.json")


def next_tokens(run: RunFolder) -> list[Block]:
    """What a run of train_headlines.py expects."""
    path = next((run.path / name for name in FILES if packed.is_file(run.path / name)), None)
    if path is None:
        return []
    folder = shlex.quote(clean(str(run.path)))
    command = f"python train_headlines.py inspect --run_folder {folder}"
    blocks: list[Block] = []
    try:
        found = json.loads(packed.read_bytes(path))
        if place := found.get("place"):
            where = {name: int(place[name]) for name in ("batch", "row", "position")}
            caption = (
                "batch {batch}, row {row}, position {position} of the validation titles; ".format(
                    **where
                )
                + f"read: {clean(place['seen'])[-300:]}"
            )
            words = " ".join(f"--{name} {value}" for name, value in where.items())
            picture = next_token_picture(place)
            title = "The ten likeliest next tokens"
            blocks.append(Figure(title, caption, picture, f"{command} {words}"))
        frequencies = found["frequencies"]
        eos = frequencies["eos"]
        caption = (
            f"of {int(frequencies['tokens']):,} tokens of the validation titles; <eos> is "
            f"{eos['data']:.2%} of the data and expected in {eos['model']:.2%}"
        )
        picture = frequency_picture(frequencies)
        blocks.append(Figure("How often tokens come, and are expected", caption, picture, command))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.notes.append(f"{path.relative_to(run.path)} is not drawn: {type(error).__name__}")
    return blocks


def next_token_picture(place: dict[str, Any]) -> Any:
    """The ten likeliest next tokens as bars."""
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
