"""Races: boundaries that are exact, arms that are dropped, and looks that are counted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PROJECT
from scipy.stats import t as student

import sweep
from benchmarks import race as simulated
from evaluation import comparisons, sequential
from evaluation.stats import Influence
from reports import compare
from sweeps.plan import seeds_of_race
from sweeps.status import Sweep, summary

# Trains nothing: 40 titles' losses, of which the setting `gain` takes something; seeds add noise.
SCRIPT = """
import json, random, sys
from pathlib import Path

told = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
out, seed = Path(told["out"]), int(told["seed"])
with open("launches.txt", "a") as file:
    file.write(f"{out.parent.name} {seed}\\n")
(out / "test/metrics").mkdir(parents=True, exist_ok=True)
record = dict(status="finished", seed=seed, script="fake.py", seconds=36.0, verdicts=[],
              command=[Path(sys.argv[0]).name, *sys.argv[1:]])
if seed in json.loads(told.get("lost", "[]")):
    record |= dict(status="failed", verdicts=["diverged: NaN"])
    (out / "run.json").write_text(json.dumps(record))
    sys.exit("diverged")
common, own, rows = random.Random(seed), random.Random(out.parent.name + str(seed)), []
level = 2 + 0.1 * common.gauss(0, 1) + 0.01 * own.gauss(0, 1) - float(told.get("gain", 0))
row_noise = float(told.get("rows", 0.001))
for row in range(40):
    luck = random.Random(f"{told.get('gain')} {row}").gauss(0, row_noise)
    value = level + luck + 0.001 * own.gauss(0, 1)
    rows.append(f"r{row},r{row},{50 * value},50,50")
(out / "test/metrics/predictions.csv").write_text(
    "id,group,loss_sum,num_targets,num_chars\\n" + "\\n".join(rows) + "\\n")
(out / "test/metrics/metrics.json").write_text(json.dumps({"n": 40, "primary": "loss"}))
(out / "config.yaml").write_text(json.dumps(told))
(out / "run.json").write_text(json.dumps(record))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(SCRIPT)
    (tmp_path / "report.py").write_text("")  # its words are tested elsewhere
    monkeypatch.setattr(sweep, "REPORT", tmp_path / "report.py")
    return tmp_path


def write(arms: dict, **more) -> str:
    Path("given.yaml").write_text(yaml.safe_dump({"script": "fake.py", "arms": arms, **more}))
    return "given.yaml"


def run(*words: str) -> int:
    return sweep.main([str(word) for word in words])


def launches() -> list[str]:
    return Path("launches.txt").read_text().splitlines()


def looks(out: str = "o") -> list[dict]:
    return [json.loads(line) for line in Path(out, "looks.jsonl").read_text().splitlines()]


def refusal(*words) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    return str(caught.value.code)


# --------------------------------------------------------------------------- the boundary


def test_paired_p_is_that_of_the_t_test():
    from scipy.stats import ttest_1samp

    x = np.random.default_rng(0).normal(0.3, 1, (4, 9))
    found = sequential.paired_p(x)
    for k in range(3, 10):
        assert found[:, k - 3] == pytest.approx(ttest_1samp(x[:, :k], 0, axis=1).pvalue)


@pytest.mark.parametrize("most, alpha", [(4, 0.05), (10, 0.045), (10, 0.015), (20, 0.05)])
def test_the_levels_of_all_looks_together_are_alpha(most, alpha):
    levels = np.array([sequential.nominal_level(k, most, alpha) for k in range(3, most + 1)])
    p = sequential.paired_p(np.random.default_rng(99).normal(size=(40_000, most)))
    rate = (p < levels).any(axis=1).mean()
    assert abs(rate - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / 40_000)
    assert (np.diff(levels) > 0).all() and alpha / (most - 2) < levels[-1] < alpha


def test_a_race_of_one_look_is_the_plain_test():
    assert sequential.nominal_level(3, 3, 0.05) == 0.05
    with pytest.raises(ValueError, match="looks from 3 to 10"):
        sequential.nominal_level(11, 10)


def test_unplanned_looks_have_an_error_rate():
    assert sequential.error_rate([2]) == sequential.error_rate([]) == comparisons.ALPHA
    assert sequential.error_rate([8]) == pytest.approx(0.05, abs=0.005)
    few, many = sequential.error_rate([3, 6], True), sequential.error_rate(range(3, 33), True)
    assert 0.07 < few < 0.1 and 0.25 < many < 0.33  # thirty looks: 29 % (docs/statistics.md)


def contrast_of(differences: np.ndarray, row_std: float) -> comparisons.Difference:
    """Paired, of two arms on 100 rows whose own share of the difference has this deviation."""
    draw = np.random.default_rng(1)
    own = draw.normal(0, row_std / 10, 100)
    own -= own.mean()
    lever = np.full(100, 0.01)
    a = [Influence(2.0, np.zeros(100), lever) for _ in differences]
    b = [Influence(2.0 + d, own, lever) for d in differences]
    return comparisons.contrast([a, b], [-1.0, 1.0], np.arange(100), paired=True)


def test_rows_that_cannot_decide_are_told_from_seeds_that_can():
    seeds = np.array([0.01, -0.02, 0.015, -0.012, 0.004])
    levels = {5: 0.002, 50: 0.01}

    def why(shift: float, row_std: float, margin: float | None = None) -> str:
        return sequential.in_vain(contrast_of(seeds + shift, row_std), 5, levels, margin)

    assert why(0.0, 0.05) == "rows"
    assert why(0.007, 0.001) == ""  # more seeds tell
    assert why(0.3, 0.05) == ""  # it is decided
    # with a margin far above what rows hide, seeds may yet show that both are the same
    assert why(0.0, 0.05, margin=0.5) == ""
    assert why(0.0, 0.05, margin=0.05) == "rows"


def test_an_arm_is_given_up_that_the_seeds_of_the_race_will_hardly_decide():
    levels = sequential.levels_of_race(6, 1)
    nothing, something = np.array([0.3, -0.4, 0.2]), np.array([0.3, 0.9, 0.5])

    def why(seeds: np.ndarray, margin: float | None = None) -> str:
        return sequential.in_vain(contrast_of(seeds, 0.001), len(seeds), levels, margin)

    assert why(nothing) == "seeds" and why(something) == ""
    assert why(nothing, margin=2.0) == ""  # that both are the same may yet be shown
    assert why(nothing, margin=0.1) == "seeds"
    assert (
        sequential.in_vain(contrast_of(nothing, 0.001), 3, {3: 0.05}, None) == ""
    )  # the last look
    # the plain reference: what the three seeds that are left would have to bring, drawn
    draw = np.random.default_rng(0)
    spread = nothing.std(ddof=1)
    true = nothing.mean() + draw.standard_t(2, 20_000) * spread / np.sqrt(3)
    rest = true[:, None] + spread * draw.normal(size=(20_000, 3))
    p = sequential.paired_p(np.concatenate([np.tile(nothing, (20_000, 1)), rest], 1))
    assert (p < np.array(list(levels.values()))).any(1).mean() < 0.2


def test_null_races_are_rarely_false_and_a_difference_takes_fewer_runs():
    """A small part of benchmarks/race.py, whose table is on the page."""
    null = simulated.races(6, row_share=0.25, repeats=400)
    assert null.false / 400 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert null.seeds < 4  # of six: what is hopeless is given up
    large = simulated.races(8, row_share=0.0, difference=2.0, repeats=200)
    assert large.right > 180 and large.seeds < 6.5
    planned = simulated.races(6, row_share=0.0, difference=1.68, repeats=1000)  # .80 at five seeds
    assert planned.right > 770 and planned.seeds < 5.05


# ------------------------------------------------------------------------------ the sweep


def test_a_race_drops_what_is_settled_and_is_not_run_twice(folder, capsys):
    arms = {"base": {}, "much": {"gain": 0.5}, "none": {"gain": 0.0}}
    words = ["--config", write(arms), "--race", "--max_seeds", "6", "--out", "o"]
    assert run(*words) == 0
    said = capsys.readouterr().out
    runs = launches()
    much = sum(line.startswith("much") for line in runs)
    none = sum(line.startswith("none") for line in runs)
    assert much < none and runs[:6] == [
        *("base 0", "base 1", "base 2", "much 0", "much 1", "much 2"),
    ], runs  # fmt: skip
    assert f"race: much: better, settled with {much} seeds" in said
    hardly = "" if none == 6 else ", and all 6 of this race would hardly decide it"
    assert f"race: none: undecided with {none} seeds{hardly}\n" in said
    assert f"race: {len(runs)} runs of the 18 that" in said
    assert yaml.safe_load(Path("o/sweep.yaml").read_text())["race"] == {"max_seeds": 6}
    verdicts = [line["race"].get("much", {}).get("verdict") for line in looks()]
    assert verdicts[much - 3] == "better" and set(verdicts[much - 2 :]) == {None}
    # again: nothing is run, nothing is looked at, and the same is said
    before = Path("o/looks.jsonl").read_text()
    assert run(*words) == 0 and launches() == runs
    assert Path("o/looks.jsonl").read_text() == before
    assert f"race: much: better, settled with {much} seeds" in capsys.readouterr().out
    # who watches it is not told to wait for seeds that it does not need
    watched = Sweep.open(Path("o"))
    assert summary(watched, watched.states())[-1] == "nothing is left"
    assert len(watched.states()) == len(runs)
    # compare says what the race said, by the seeds that both arms have
    found = compare.build_report(["o/base", "o/much", "o/none"])
    level = {r.arm.label: (r.decision, r.num_seeds, r.level) for r in found.judged}
    expected = sequential.levels_of_race(6, 2)
    assert level["much"] == ("better", much, expected[much])
    assert level["none"][:2] == ("undecided", none)
    assert "A race that was declared" in "\n".join(found.as_json()["notes"])
    # a look that was without an arm, whose run had failed then, is made up for
    was = looks()
    lines = [{**x, "race": {k: v for k, v in x["race"].items() if k != "none"}} for x in was]
    Path("o/looks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run(*words) == 0 and launches() == runs
    assert f"race: none: undecided with {none} seeds{hardly}\n" in capsys.readouterr().out
    again = [x["race"]["none"] for x in looks() if "none" in x["race"]]
    assert again == [x["race"]["none"] for x in was if "none" in x["race"]]


def test_a_race_that_was_cut_off_ends_as_the_whole_one(folder, capsys, monkeypatch):
    arms = {"base": {}, "small": {"gain": 0.03}, "none": {"gain": 0.0}}
    words = ["--config", write(arms), "--race", "--margin", "0.02", "--max_seeds", "7"]
    assert run(*words, "--out", "whole") == 0
    whole = looks("whole")
    capsys.readouterr()
    # no hour is left for a fourth seed; then there is more time
    assert run(*words, "--out", "cut", "--hours", "0.09") == 0
    said = capsys.readouterr().out
    assert "hours do not suffice for another seed; the same command goes on" in said
    assert len(looks("cut")) == 1 and len(whole) > 1
    assert run(*words, "--out", "cut") == 0
    assert looks("cut") == whole
    # the look that a kill tore in half is made again
    text = Path("cut/looks.jsonl").read_text()
    Path("cut/looks.jsonl").write_text(text[: len(text) - 30])
    assert run(*words, "--out", "cut") == 0
    assert Path("cut/looks.jsonl").read_text().splitlines()[-1] == text.splitlines()[-1]


def test_where_rows_alone_leave_it_open_the_race_stops(folder, capsys):
    arms = {"base": {"rows": 0.5}, "other": {"gain": 0.01, "rows": 0.5}}
    assert run("--config", write(arms), "--race", "--out", "o") == 0
    assert "more rows are needed, not more seeds" in capsys.readouterr().out
    assert len(launches()) < 20


def test_a_seed_that_diverges_in_a_race_is_counted(folder, capsys):
    arms = {"base": {}, "other": {"gain": 0.5, "lost": "[1]"}}
    assert run("--config", write(arms), "--race", "--max_seeds", "5", "--out", "o") == 0
    assert len(launches()) == 10  # by ranks, when all seeds are there
    found = compare.build_report(["o/base", "o/other"]).judged[0]
    assert found.decision == "undecided" and found.level == sequential.ranks_level(1)
    lost = {"base": {"lost": "[0,1,2,3,4,5]"}, "other": {"gain": 0.5}}
    assert run("--config", write(lost), "--race", "--max_seeds", "6", "--out", "p") == 0
    assert "race: other: better, settled with 6 seeds" in capsys.readouterr().out


def test_a_race_is_declared_before_the_first_result(folder):
    config = write({"base": {}, "other": {"gain": 0.5}})
    assert run("--config", config, "--seeds", "2", "--out", "o") == 0
    assert 'race: {"max_seeds": 10}' in refusal("--config", config, "--race", "--out", "o")
    assert run("--config", config, "--race", "--max_seeds", "4", "--out", "p") == 0
    for words in (["--race", "--max_seeds", "9"], [], ["--race", "--margin", "1"]):
        assert "before" in refusal("--config", config, *words, "--out", "p")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--race", "--max_seeds", "2"], "expected 3 to"),
        (["--race", "--hours", "0"], "--hours 0"),
        (["--max_seeds", "5"], "are for --race"),
        (["--race", "--margin", "-1"], "above 0"),
        (["--race", "--aa"], "no race"),
        (["--race", "--seeds", "5"], "adds them one by one, up to --max_seeds"),
    ],
)
def test_mistakes_in_a_race_are_one_line(folder, words, message):
    assert message in refusal("--config", write({"a": {}, "b": {"gain": 1}}), *words)
    assert not Path("launches.txt").exists()


@pytest.mark.parametrize(
    "given, seeds",
    [(3, [0, 1, 2, 3, 4]), ([7, 5], [7, 5, 8, 9, 10]), ("4,", [4, 5, 6, 7, 8]),
     ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5])],
)  # fmt: skip
def test_the_seeds_of_a_race_are_those_that_are_named_and_more(given, seeds):
    assert seeds_of_race(given, 5) == seeds


def test_an_arms_own_seeds_are_those_of_all_in_a_race(folder):
    config = write({"a": {"seeds": [3, 4]}, "b": {"gain": 1, "seeds": [3, 4]}})
    made = sweep.Plan(sweep.parse_arguments(["--config", config, "--race", "--max_seeds", "4"]))
    assert [arm.seeds for arm in made.arms] == [[3, 4, 5, 6]] * 2
    other = write({"a": {"seeds": [3, 4]}, "b": {"gain": 1}})
    assert "need the same seeds" in refusal("--config", other, "--race")


def test_a_race_of_one_arm_is_refused(folder):
    assert "one arm alone" in refusal("fake.py", "--race")


# ------------------------------------------------------------------- looks without a race


def test_looks_that_nobody_planned_are_counted_in_the_verdict(folder, capsys):
    config = write({"base": {}, "other": {"gain": 0.004}})
    for seeds in ("3", "3", "5"):
        assert run("--config", config, "--seeds", seeds, "--out", "o") == 0
    assert [len(line["seeds"]["base"]) for line in looks()] == [3, 5]
    first, second = (compare.build_report([f"o/{a}" for a in arms]).judged[0]
                     for arms in (("base", "other"), ("other", "base")))  # fmt: skip
    expected = sequential.error_rate([3, 5])
    for found in (first, second):
        assert "Looked 2 times, with 3 and 5 seeds an arm" in found.sentence
        assert f"the true error rate is about {expected:.0%}, not 5%" in found.sentence
        assert found.as_json()["looks"] == [3, 5] and found.error_rate == expected > 0.06
    # of the first three seeds alone only one look was made
    three = [f"o/{arm}/seed_{seed}" for arm in ("base", "other") for seed in range(3)]
    assert "Looked" not in compare.build_report(three).judged[0].sentence


def test_two_writers_lose_no_line_and_a_torn_one_counts_for_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 7, "torn": "\xc3')
    code = (
        "import sys; from pathlib import Path; from files import appending\n"
        "for _ in range(50):\n"
        "    with appending(Path(sys.argv[1])) as (lines, add):\n"
        "        add({'n': len(lines)})\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT) for _ in range(2)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    from files import json_lines

    assert [line["n"] for line in json_lines(path.read_bytes())] == list(range(101))


def test_two_writers_of_one_file_do_not_take_each_others_away(tmp_path):
    """Two runs of one sweep make the same tokenizer at the same time."""
    code = (
        "import sys; from pathlib import Path; from files import write_text\n"
        "for _ in range(200): write_text(Path(sys.argv[1]), 'whole', True)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "cached.json")]
    writers = [subprocess.Popen(words, cwd=PROJECT) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["cached.json"]


def test_student_quantiles_of_the_first_look_are_far_out():
    """Three seeds settle only what is large: no verdict rests on two degrees of freedom alone."""
    level = sequential.levels_of_race(10, 1)[3]
    assert student.ppf(1 - level / 2, 2) > 15
