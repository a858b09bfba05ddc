"""`judge --passport ROWS`: how far a judge agrees with people, and what moves it beside quality.

A passport is of one judge and of the words that it is asked with. It is kept in the cache, and
stands from then on beside every figure of that judge. A judge that scores answers is asked about
each response with the other one as the correct output; one that compares, in both orders.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import console
from commands.evaluate import EvaluateConfig, SavedRun
from commands.preference_judge import PreferenceJudge
from data import arena, instructions
from data.arena import PairRow
from data.rows import subset
from evaluation import asking, passport
from evaluation.passport import Opinions
from evaluation.questions import KINDS, SCORE, Answer
from files import cache_folder, csv_text, read_json, write_text

# figures of a passport that go into the record of whoever is judged
SHOWN = ("kappa", "agreement", "order_agreement", "first_place", "length_excess")


def identity_of(backend: Any) -> str:
    """What makes a judge the same one: model, server and fields, or the weights of a run."""
    return json.dumps(getattr(backend, "identity", None) or repr(backend))


def passport_file(backend: Any, version: str) -> Path:
    name = hashlib.sha256(f"{identity_of(backend)} {version}".encode()).hexdigest()[:16]
    return cache_folder() / "judge" / f"passport_{name}.json"


def passport_facts(backend: Any, version: str) -> dict[str, Any]:
    """What the record of a judged run says of its judge."""
    file = passport_file(backend, version)
    found = read_json(file) if file.is_file() else {}
    if "kappa" not in found:
        return {"judge_prompt": version, "judge_passport": "none"}
    names = [name for name in SHOWN if name in found]
    facts = {f"judge_{name}": found[name] for name in names}
    facts |= {f"judge_{n}_ci95": found[f"{n}_ci95"] for n in names if f"{n}_ci95" in found}
    ends = found.get("kappa_ci95")
    between = "(no interval)" if ends is None else "[{:.2f}, {:.2f}]".format(*ends)
    words = f"kappa {found['kappa']:.2f} {between} on {found['n']} votes"
    against = "".join(f"; {line}" for line in passport.biases(found))
    return facts | {"judge_prompt": version, "judge_passport": words + against}


def said_of_none() -> str:
    return (
        "note: this judge has no passport for this question: how far it agrees with people is not "
        "known (judge --passport ROWS, of pairs that people judged)"
    )


def issue(config: Any, backend: Any, ask: Callable[..., np.ndarray]) -> None:
    """Measure, keep and say. ask(questions of asking.py, what) asks the server."""
    pairs = arena.read_pairs(config.passport)
    for line in (pairs.reading, *arena.said_repairs(pairs.repairs)):
        console.say(line)
    rows, is_known = pairs.rows, True
    if isinstance(backend, PreferenceJudge):
        rows, is_known = unseen(rows, backend, config.passport)
    rows = subset(rows, config.limit)
    if isinstance(backend, PreferenceJudge):
        found = {backend.version: by_preference(rows, backend)}
    else:
        kinds = KINDS if config.prompts == "both" else [config.prompts]
        found = {}
        for name in kinds:
            asked = by_scores if name == SCORE.name else by_pairs
            found[KINDS[name].version] = asked(rows, ask)
    for version, (opinions, scored) in found.items():
        facts = {"judge": repr(backend), "prompt": version, "rows": Path(config.passport).name}
        facts |= {"data_fingerprint": arena.data_fingerprint(rows)}
        facts |= {"unscored": int((~scored).sum())}
        facts |= {} if is_known else {"may_have_learned": True}
        if opinions is None:
            console.say(
                f"passport of {backend!r} ({version}): none of {len(rows)} votes was judged"
            )
            continue
        facts |= passport.passport(opinions)
        write_text(passport_file(backend, version), json.dumps(facts, indent=1))
        console.say(f"passport of {backend!r} ({version}):")
        for line in passport.said(facts):
            console.say(f"  {line}")
        if facts["unscored"]:
            console.say(f"  {facts['unscored']} of {len(rows)} votes got no verdict")
        if config.output:
            folder, name = Path(config.output), version.split()[0]
            write_text(folder / f"passport_{name}.json", json.dumps(facts, indent=1))
            kept = [row for row, there in zip(rows, scored, strict=True) if there]
            write_text(folder / f"passport_{name}.csv", verdict_table(kept, opinions))


def verdict_table(rows: Sequence[PairRow], opinions: Opinions) -> str:
    names = ("A", "B", "tie")
    lines = [
        [row.id, row.group, names[row.label], names[verdict], f"{share:g}"]
        for row, verdict, share in zip(rows, opinions.verdicts, opinions.shares, strict=True)
    ]
    return csv_text(("id", "group", "people", "judge", "share_a"), lines)


def unseen(rows: list[PairRow], backend: PreferenceJudge, data: str) -> tuple[list[PairRow], bool]:
    """(those without prompts that the run was trained on or chosen by, whether these are known);
    ValueError if none is left."""
    known = SavedRun(EvaluateConfig(str(backend.run), data)).rows
    groups = {row.group for row in known or () if row.split in ("train", "val")}
    left = [row for row in rows if row.group not in groups]
    if len(left) < len(rows):
        console.say(f"left out: {len(rows) - len(left):,} votes on prompts that the judge learned")
    if not left:
        raise ValueError(f"{data}: the judge was trained on all of its prompts")
    return left, known is not None


Found = tuple[Opinions | None, np.ndarray]  # and which rows have a verdict (n,)


def opinions_of(
    rows: Sequence[PairRow],
    verdicts: np.ndarray,
    shares: np.ndarray,
    orders: np.ndarray | None = None,
) -> Found:
    """shares (n,): NaN for a row without a verdict."""
    there = ~np.isnan(shares)
    if not there.any():
        return None, there
    kept = [row for row, scored in zip(rows, there, strict=True) if scored]
    lengths = [[sum(map(len, side)) for side in (row.response_a, row.response_b)] for row in kept]
    return Opinions(
        np.array([row.label for row in kept]),
        verdicts[there],
        shares[there],
        np.array(lengths),
        [row.group for row in kept],
        None if orders is None else orders[there],
    ), there


def by_preference(rows: Sequence[PairRow], backend: PreferenceJudge) -> Found:
    p = backend.orders(rows)
    shares = (p @ [1.0, 0.0, 0.5]).mean(axis=0)
    return opinions_of(rows, p.mean(axis=0).argmax(axis=1), shares, p.argmax(axis=2).T)


def by_pairs(rows: Sequence[PairRow], ask: Callable[..., np.ndarray]) -> Found:
    pairs = [asking.Pair(row.id, *map(turns, texts_of(row))) for row in rows]
    wins = ask(asking.compare_answers, pairs) / 100
    orders, verdicts = passport.both_orders(wins)
    return opinions_of(rows, verdicts, wins.mean(axis=1), orders)


def by_scores(rows: Sequence[PairRow], ask: Callable[..., np.ndarray]) -> Found:
    answers = []
    for row in rows:
        prompt, a, b = map(turns, texts_of(row))
        prompt = instructions.format_prompt(prompt, "")
        answers += [Answer(f"{row.id}, A", prompt, b, a), Answer(f"{row.id}, B", prompt, a, b)]
    scores = asking.mean_of_repeats(ask(asking.score_answers, answers)).reshape(-1, 2)
    apart = scores[:, 0] - scores[:, 1]
    shares = np.where(np.isnan(apart), np.nan, (np.sign(apart) + 1) / 2)
    return opinions_of(rows, passport.verdicts_of(shares), shares)


def texts_of(row: PairRow) -> tuple[list[str], list[str], list[str]]:
    return row.prompt, row.response_a, row.response_b


def turns(texts: Sequence[str]) -> str:
    """One turn as it is, several with their numbers."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[turn {number}] {text}" for number, text in enumerate(texts, start=1))
