"""A judge's passport: simulated judges of known bias are found out, and corrected."""

import csv
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_judge import says, server

from commands import judge as judging
from commands import passports
from evaluation import asking, passport, questions
from settings import parse_settings

FILLER = "and so on " * 40


@pytest.fixture(autouse=True)
def key(monkeypatch, cache_folder):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1234567890")


def chance(*texts: str) -> float:
    """From 0 to 1, the same for the same texts."""
    return int(hashlib.sha256("|".join(texts).encode()).hexdigest()[:8], 16) / 2**32


def quality(response: str) -> float:
    return float(response.split()[1])


def write_answers(path, name: str, shift: float = 0.0, wordy: float = 0.5, count: int = 160):
    """Responses whose quality and length are unrelated: "quality 0.31 and so on …"."""
    lines = []
    for n in range(count):
        text = f"quality {chance(name, str(n)) + shift:.3f}"
        text += " " + FILLER[: int(400 * chance(name, "length", str(n)) * 2 * wordy)]
        lines.append({"id": f"r{n}", "instruction": f"do {n}", "output": "quality 0.500 done"})
        lines[-1]["model_response"] = text
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def people(a: str, b: str) -> str:
    apart = quality(a) - quality(b) + 0.4 * (chance("people", a, b) - 0.5)
    return "tie" if abs(apart) < 0.08 else "A" if apart > 0 else "B"


def votes_file(path, count: int = 160):
    one = write_answers(path.with_suffix(".1"), "one", count=count)
    other = write_answers(path.with_suffix(".2"), "other", count=count)
    lines = [
        {"id": a["id"], "prompt": a["instruction"], "winner": people(*texts)}
        | dict(zip(("response_a", "response_b"), texts, strict=True))
        for a, b in zip(one, other, strict=True)
        for texts in [(a["model_response"], b["model_response"])]
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def honest(first: str, second: str) -> float:
    return quality(first) - quality(second)


def drawn_to_length(first: str, second: str) -> float:
    return honest(first, second) + 0.004 * (len(first) - len(second))


def drawn_to_first(first: str, second: str) -> float:
    return honest(first, second) + 0.3


def guessing(first: str, second: str) -> float:
    return chance("guess", first, second) - 0.5


def simulated(judge):
    """A server: of two responses by `judge`; a score by how it likes the response beside the
    reference."""

    def answer(number: int, body: dict) -> bytes:
        parts = body["messages"][0]["content"].split("=====")
        texts = {part[16:].strip().partition("\n")[0]: part.partition("\n")[2] for part in parts}
        texts = {name: text.strip() for name, text in texts.items()}
        if "first response" in texts:
            apart = judge(texts["first response"], texts["second response"])
            return says("tie" if abs(apart) < 0.03 else "first" if apart > 0 else "second")
        apart = judge(texts["response of the model"], texts["correct output"])
        return says(str(round(min(max(50 + 40 * apart, 0), 100))))

    return server(answer)


def run_judge(site: str, *words: str) -> None:
    words = [*words, "--by=openai", f"--url={site}", "--judge_workers=2"]
    judging.run_judge(parse_settings(judging.JudgeConfig, words, "judge")[0])


BIASES = [
    (honest, set()),
    (drawn_to_length, {"drawn to the longer response, beyond people"}),
    (drawn_to_first, {"drawn to the response that stands first"}),
    (guessing, {"not shown to be better than chance on these votes"}),
]


@pytest.mark.parametrize("judge, wanted", BIASES, ids=[judge.__name__ for judge, _ in BIASES])
def test_a_judge_of_known_bias_is_found_out(judge, wanted, tmp_path, capsys):
    votes_file(tmp_path / "votes.jsonl")
    with simulated(judge) as (site, seen):
        words = (f"--passport={tmp_path / 'votes.jsonl'}", f"--output={tmp_path}")
        run_judge(site, *words, "--prompts=pair")
    assert len(seen) == 2 * 160
    found = json.loads((tmp_path / "passport_pair.json").read_text())
    assert set(passport.biases(found)) == wanted
    assert found["n"] == found["groups"] == 160 and found["prompt"] == questions.PAIR.version
    assert (found["order_agreement"] > 0.95) == (judge in (honest, drawn_to_length))
    said = capsys.readouterr().out
    assert "agrees with people on" in said and all(f"so: {line}" in said for line in wanted)
    with open(tmp_path / "passport_pair.csv", newline="") as table:
        lines = list(csv.DictReader(table))
    agreed = np.mean([line["people"] == line["judge"] for line in lines])
    assert found["agreement"] == pytest.approx(agreed)


@pytest.mark.parametrize("judge", [drawn_to_length, guessing], ids=lambda judge: judge.__name__)
def test_a_few_human_labels_correct_a_biased_judge(judge, tmp_path, capsys):
    """Wordy and worse answers: the length judge prefers them, the guessing one sees no difference;
    both corrected figures cover what people say of all rows."""
    ours = write_answers(tmp_path / "a.jsonl", "a", shift=-0.25, wordy=1.0)
    theirs = write_answers(tmp_path / "b.jsonl", "b", wordy=0.2)
    wins = {"A": 100.0, "B": 0.0, "tie": 50.0}
    texts = [(a["model_response"], b["model_response"]) for a, b in zip(ours, theirs, strict=True)]
    winners = [people(*pair) for pair in texts]
    truth = np.mean([wins[winner] for winner in winners])
    labels = [f"r{n},{winner}" for n, winner in enumerate(winners) if chance("label", str(n)) < 0.4]
    (tmp_path / "labels.csv").write_text("id,winner\n" + "\n".join(labels) + "\n")
    words = (f"--answers={tmp_path / 'a.jsonl'}", f"--against={tmp_path / 'b.jsonl'}")
    with simulated(judge) as (site, _):
        run_judge(site, *words, f"--labels={tmp_path / 'labels.csv'}")
    found = json.loads((tmp_path / "judge_pairs.json").read_text())
    low, high = found["judge_wins_ci95"]
    assert truth < 35 and low > truth  # the judge alone is wrong, and sure of it
    low, high = found["judge_wins_corrected_ci95"]
    assert low < truth < high and high - low < 25 and found["judge_wins_labels"] == len(labels)
    assert found["judge_wins_passport"] == "none"
    said = capsys.readouterr().out
    assert "has no passport" in said and f"what people said of {len(labels)} rows" in said


def test_a_passport_stands_beside_what_its_judge_says_and_beside_nothing_else(tmp_path, capsys):
    votes_file(tmp_path / "votes.jsonl", 60)
    write_answers(tmp_path / "a.jsonl", "a", count=12)
    with simulated(honest) as (site, seen):
        run_judge(site, f"--passport={tmp_path / 'votes.jsonl'}", "--limit=40")
        assert len(seen) == 4 * 40  # two questions, each about both responses or orders
        run_judge(site, f"--answers={tmp_path / 'a.jsonl'}")
        found = json.loads((tmp_path / "judge.json").read_text())
        assert found["judge_passport"].startswith("kappa 0.") and found["judge_kappa"] > 0.4
        assert found["judge_prompt"] == questions.SCORE.version
        assert f"its passport: {found['judge_passport']}" in capsys.readouterr().out
        run_judge(site, f"--answers={tmp_path / 'a.jsonl'}", "--judge_model=another")
        assert json.loads((tmp_path / "judge.json").read_text())["judge_passport"] == "none"


def test_other_words_are_another_question_and_need_a_passport_of_their_own():
    other = questions.Kind("score", questions.QUESTION + " ", "score", {}, questions.parse_score)
    assert other.version != questions.SCORE.version
    backend = object()
    files = {passports.passport_file(backend, kind.version) for kind in (other, questions.SCORE)}
    assert len(files) == 2


def test_both_orders_are_asked_and_a_lone_empty_answer_loses_without_a_question(tmp_path):
    pairs = [asking.Pair("1", "p", "quality 0.9", "quality 0.1"), asking.Pair("2", "p", "x", " ")]
    pairs += [asking.Pair("3", "p", "", "x"), asking.Pair("4", "p", "", "")]
    with simulated(drawn_to_first) as (site, seen):
        from evaluation import judge

        backend, cache = judge.OpenAI("m", site), asking.Cache(tmp_path / "c")
        wins = asking.compare_answers(pairs, backend, cache, say=lambda text: None)
    assert wins.tolist() == [[100, 100], [100, 100], [0, 0], [50, 50]] and len(seen) == 2


@pytest.mark.parametrize(
    "text, wanted",
    [
        *(("first", 100), ("Second.", 0), ("**Tie**", 50), ('{"better": "second"}', 0)),
        *(("The first response is better.", 100), ("Verdict: the second response", 0)),
        *(
            ("<think>second?</think>\nfirst", 100),
            ("```\ntie\n```", 50),
            ("<answer>tie</answer>", 50),
        ),
        *(("first or second", None), ("neither", None), ("1", None), ("", None), (None, None)),
        *(('{"better": "both"}', None), ('{"better": 1}', None), ("not the first", None)),
    ],
)
def test_only_first_second_or_tie_is_a_verdict(text, wanted):
    assert questions.parse_choice(text) == wanted


# ------------------------------------------------------------------------------ figures


def test_kappa_is_scikit_learns_and_the_slope_numpys():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    people_, verdicts = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    verdicts[:40] = people_[:40]
    lengths, shares = rng.integers(1, 400, (90, 2)), rng.random(90)
    opinions = passport.Opinions(
        people_, verdicts, shares, lengths, [f"{n // 2}" for n in range(90)]
    )
    found = passport.passport(opinions)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(people_, verdicts))
    x = np.log2((1 + lengths[:, 0]) / (1 + lengths[:, 1]))
    assert found["length_slope"] == pytest.approx(np.polyfit(x, shares, 1)[0])
    assert found["groups"] == 45 and "order_agreement" not in found
    low, high = found["kappa_ci95"]
    assert low < found["kappa"] < high


def test_corrected_means_are_prediction_powered_inference():
    """Against the formulas for independent rows; with all rows labelled the judge has no say."""
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 20, 400)
    judged = truth + rng.normal(8, 10, 400)
    labels = np.full(400, np.nan)
    labels[:80] = truth[:80]
    found = passport.corrected(judged, range(400), labels)
    y, f, rest = truth[:80], judged[:80], judged[80:]
    weight = np.cov(y, f, ddof=0)[0, 1] / judged.var() / (1 + 80 / 320)
    value = weight * rest.mean() + (y - weight * f).mean()
    error = np.sqrt(weight**2 * rest.var() / 320 + (y - weight * f).var() / 80)
    assert found.weight == pytest.approx(weight) and found.value == pytest.approx(value)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.03)
    everything = passport.corrected(judged, range(400), truth)
    assert everything.weight == 0 and everything.value == pytest.approx(truth.mean())
    assert np.isnan(passport.corrected(judged[:2], "ab", truth[:2]).low)
    assert "too few" in passport.corrected(judged[:2], "ab", truth[:2]).problem
    assert "do not differ" in passport.corrected(judged[:9], range(9), np.full(9, 50.0)).problem
    assert passport.corrected(judged, range(400), np.full(400, np.nan)) is None


@pytest.mark.parametrize("rows_each, share", [(1, 0.1), (5, 0.1)])
def test_intervals_of_corrected_means_cover(rows_each, share):
    """Labels drawn by row, so that groups of five straddle both samples: 5 % of 400 miss."""
    rng, missed = np.random.default_rng(2), 0
    for _ in range(400):
        groups = np.arange(300) // rows_each
        truth = rng.normal(size=300)[groups] + rng.normal(size=300)
        judged = truth + rng.normal(0.5, 1, 300)
        labels = np.where(rng.random(300) < share, truth, np.nan)
        found = passport.corrected(judged, groups, labels)
        missed += not found.low <= 0 <= found.high
    assert missed / 400 < 0.085


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "labels, problem",
    [
        ("id,human\nr0,101\n", "expected human, a number from 0 to 100"),
        ("id,human\nr0,good\n", "line 2.*expected human"),
        ("id,winner\nr0,A\n", "expected human, a number from 0 to 100$"),
        ("id,human\nother,5\n", "no line has the id of a row that is judged"),
    ],
)
def test_a_wrong_label_is_named(labels, problem, tmp_path):
    write_answers(tmp_path / "a.jsonl", "a", count=3)
    (tmp_path / "labels.csv").write_text(labels)
    words = (f"--answers={tmp_path / 'a.jsonl'}", f"--labels={tmp_path / 'labels.csv'}")
    with simulated(honest) as (site, seen), pytest.raises(ValueError, match=problem):
        run_judge(site, *words)
    assert not seen  # nothing was paid for


@pytest.mark.parametrize("change, problem", [("id", "2 of 3 and 3 ids"), ("instruction", "row r2")])
def test_answers_to_other_rows_are_not_compared(change, problem, tmp_path):
    lines = write_answers(tmp_path / "a.jsonl", "a", count=3)
    lines[2][change] = "other"
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (f"--answers={tmp_path / 'a.jsonl'}", f"--against={tmp_path / 'b.jsonl'}")
    with simulated(honest) as (site, seen), pytest.raises(ValueError, match=problem):
        run_judge(site, *words)
    assert not seen


def test_wins_have_an_interval_of_a_share_and_labels_find_rows_of_one_id(tmp_path):
    from commands.answers import read_labels

    always = asking.pair_metrics(np.full((20, 2), 100.0), range(20))
    low, high = always["judge_wins_ci95"]
    assert 80 < low < high == 100 and always["judge_wins"] == 100
    half = asking.pair_metrics(np.array([[100.0, 0.0]] * 9), range(9))
    assert half["judge_wins"] == 50 and half["judge_wins_order_agreement"] == 0
    lost = asking.pair_metrics(np.array([[100.0, np.nan]]), ["a"])
    assert lost == {"judge_wins_n": 0, "judge_wins_unscored": 1}
    (tmp_path / "labels.jsonl").write_text('{"id": 1, "human": 20}\n{"id": 1, "human": 40}\n')
    config = judging.JudgeConfig(answers="x", labels=str(tmp_path / "labels.jsonl"))
    found = read_labels(config, [{"id": "1"}, {"id": "2"}, {"id": "1"}])
    assert found[[0, 2]].tolist() == [30, 30] and np.isnan(found[1])
    unscored = np.full((3, 1), np.nan)
    rows = [{"group": "a"}] * 3
    assert judging.of_labels("judge", unscored, rows, found) == {"judge_labels": 0}


def test_settings_that_say_nothing_there_are_refused():
    for words in (["--passport=x", "--against=y"], ["--answers=x", "--prompts=pair"]):
        with pytest.raises(SystemExit, match="would change nothing"):
            parse_settings(judging.JudgeConfig, [*words, "--by=openai"], "judge")
    config = parse_settings(judging.JudgeConfig, ["--passport=x", "--answers=y"], "judge")[0]
    with pytest.raises(ValueError, match="give --run_folder FOLDER"):
        judging.run_judge(config)


def test_the_command_says_who_wins(tmp_path, capsys):
    write_answers(tmp_path / "a.jsonl", "a", shift=0.2, count=10)
    write_answers(tmp_path / "b.jsonl", "b", count=10)
    with simulated(honest) as (site, _):
        run_judge(site, f"--answers={tmp_path / 'a.jsonl'}", f"--against={tmp_path / 'b.jsonl'}")
    said = capsys.readouterr().out
    assert "of the wins against" in said and "both orders agree on" in said
    found = json.loads((tmp_path / "judge_pairs.json").read_text())
    assert found["judge_wins"] > 50 and sum(found["judge_wins_counts"].values()) == 10
    with open(tmp_path / "judge_pairs.csv", newline="") as table:
        assert next(csv.reader(table)) == ["id", "group", "a_when_first", "a_when_second"]


def test_a_judge_that_may_have_learned_the_votes_says_so(monkeypatch):
    """The rows of its training are not there any more."""
    rows = [SimpleNamespace(group="a", split="train"), SimpleNamespace(group="b", split="test")]
    for known, left, is_known in ((rows, ["b"], True), (None, ["a", "b"], False)):
        saved = SimpleNamespace(rows=known)
        monkeypatch.setattr(passports, "SavedRun", lambda *_, saved=saved: saved)
        votes, found = passports.unseen(rows, SimpleNamespace(run="run"), "votes.csv")
        assert [row.group for row in votes] == left and found is is_known
    facts = {"kappa": 0.4, "n": 9, "may_have_learned": True}
    assert "may have learned these very votes" in passport.biases(facts)
    monkeypatch.setattr(passports, "read_json", lambda file: facts)
    monkeypatch.setattr(passports, "passport_file", lambda *_: Path(__file__))
    said = passports.passport_facts("judge", "pair 1")["judge_passport"]
    assert said.startswith("kappa 0.40 (no interval) on 9 votes") and "may have learned" in said
