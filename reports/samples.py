"""What models answered to the same instructions: in time, and beside each other."""

import json
from typing import Any

from reports import packed
from reports.blocks import Block, Row, Text, cut, shortened
from reports.folder import RunFolder, clean

PARTS = {"baseline": "before", "train": "", "test": "after"}  # "": by the step of a line
MOST_DURING = 4  # answers of one run that are shown between those before and after

Asked = tuple[str, str]  # instruction, input


def answers_of(run: RunFolder) -> dict[Asked, dict[str, str]]:
    """Of <part>/analysis/samples.jsonl: for each instruction when → answer, in their order, and
    the reference. What cannot be read is noted."""
    asked: dict[Asked, dict[str, str]] = {}
    for part, when in PARTS.items():
        path = run.path / part / "analysis/samples.jsonl"
        if not packed.is_file(path):
            continue
        try:
            text = packed.read_bytes(path).decode("utf-8")
            for line in text.splitlines():
                row = json.loads(line)
                texts = asked.setdefault((row["instruction"], row["input"]), {})
                texts[when or f"step {int(row['step']):,}"] = shortened(row["response"]) or NOTHING
                if row.get("reference"):
                    texts["reference"] = shortened(row["reference"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            run.notes.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return {what: in_order(texts) for what, texts in asked.items()}


NOTHING = "(nothing)"


def in_order(texts: dict[str, str]) -> dict[str, str]:
    """before, some steps evenly apart, after, reference."""
    steps = [name for name in texts if name.startswith("step ")]
    every = max(1, -(-len(steps) // MOST_DURING))
    names = ["before", *steps[every - 1 :: every], "after", "reference"]
    return {name: texts[name] for name in names if name in texts}


def samples(run: RunFolder) -> list[Block]:
    """Of one run: each instruction with its answers in time."""
    return [row(what, texts) for what, texts in answers_of(run).items()]


def side_by_side(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    """Of several: what each answers in the end to what all of them were asked, and what the
    untrained model says where that is the same for all."""
    each = [answers_of(run) for run in runs]
    shared = [what for what in each[0] if all(what in other for other in each[1:])]
    rows: list[Block] = []
    for what in shared:
        before = {answers[what].get("before") for answers in each}
        texts = {"before training": before.pop()} if len(before) == 1 and None not in before else {}
        for label, answers in zip(labels, each, strict=True):
            found = answers[what]
            if not texts and "before" in found:
                texts[f"{label}, before"] = found["before"]
            if "after" in found:
                texts[label] = found["after"]
        if reference := next((a[what]["reference"] for a in each if "reference" in a[what]), None):
            texts["reference"] = reference
        rows.append(row(what, texts))
    if not rows:
        return []
    more = any(len(answers) > len(shared) for answers in each)
    note = "What all of them were asked" + ("; some were asked more." if more else ".")
    return [Text(note), *rows]


def row(what: Asked, texts: dict[str, Any]) -> Row:
    instruction, given = what
    given = {"input": shortened(given)} if given else {}
    return Row(cut(clean(str(instruction)), 300), {**given, **texts}, beside=True)
