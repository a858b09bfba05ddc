"""report.py site: what is on the page, that it is what other reports say, and that no text of a run
becomes more than text. How it behaves in a browser: tests/long/test_site_in_browser.py."""

import base64
import hashlib
import itertools
import json
import random
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from run_folders import classifier, write_run

import report as report_script
from evaluation import comparisons
from reports import compare, ranking, site, table
from reports.arms import Arm, build_arms
from reports.folder import load_runs

IMAGE = "<img src=x onerror=alert(1)>"
HOSTILE = "</script><script>alert(2)</script>\u202e\x1b[31m & \"'"


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.scripts += [""] * (tag == "script")
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)


def read(folder) -> tuple[Elements, dict]:
    page = Elements((folder / "index.html").read_text("utf-8"))
    assert len(page.scripts) == 2
    return page, json.loads(page.scripts[0])


def write_arms(top, arms, seeds=3, **facts):
    """arms: {name: strength}; another classifier in each run."""
    for number, (name, strength) in enumerate(arms.items()):
        for seed in range(seeds):
            rows = classifier(300, strength, 10 * number + seed)
            right = np.mean(
                [a == b for a, b in zip(rows["label"], rows["prediction"], strict=True)]
            )
            metrics = {"accuracy": float(right), "primary": "log_loss"}
            settings = {"lr": 1e-4 * (number + 1)} | facts.get("settings", {})
            about = {**facts, "settings": settings}
            write_run(top / name / f"seed_{seed}", rows, seed=seed, metrics=metrics, **about)
    return top


def arms_in(*paths) -> list[Arm]:
    return build_arms([*map(str, paths)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(runs, their site): a sweep with a margin, runs on another split, and hostile names."""
    top = tmp_path_factory.mktemp("site")
    arms = {"weak": 1.0, "again": 1.0, "strong": 2.0}
    write_arms(top / "runs/sweep", arms)
    plan = {"arms": {"weak": {}, "again": {}, "strong": {}}, "margin": 0.2}
    (top / "runs/sweep/sweep.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    other = {"split_fingerprint": "s2", "settings": {"model": HOSTILE}}
    write_arms(top / "runs/other", {IMAGE: 1.0, "plain": 1.1}, seeds=1, **other)
    page = b"<!DOCTYPE html>\n<html><head><script>alert(3)</script></head><body>page</body></html>"
    (top / "runs/sweep/weak/seed_0/report.html").write_bytes(page)
    (top / "runs/sweep/weak/seed_1/report.html").symlink_to("/etc/hostname")
    report_script.main(["site", str(top / "runs"), "--output", str(top / "site")])
    return top / "runs", top / "site"


def test_texts_of_runs_stay_text(made):
    page, data = read(made[1])
    assert "img" not in page.tags
    assert not [each for each in page.attributes if each[1].startswith("on")]
    assert any(IMAGE in text for text in page.texts)
    assert any(IMAGE in name for name in data["runs"]["names"])
    models = next(c for c in data["runs"]["columns"] if c["name"] == "model")
    shown = str(models["texts"])
    assert "</script><script>alert(2)</script>" in shown
    assert "\u202e" not in json.dumps(data, ensure_ascii=False) and "\x1b" not in shown


def test_the_page_loads_nothing_and_runs_its_own_script_alone(made):
    page, _ = read(made[1])
    policy = next(v for _, name, v in page.attributes if name == "content" and "script-src" in v)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not [each for each in page.attributes if each[1] in ("src", "style", "href")]
    script = page.scripts[1]
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch("):
        assert word not in script


def test_a_runs_own_page_is_copied_and_cannot_run_anything(made):
    _, data = read(made[1])
    [link] = filter(None, data["pages"])
    assert data["runs"]["names"][data["pages"].index(link)].endswith("weak/seed_0")
    copied = (made[1] / link).read_text()
    # the policy is read before anything of the page is
    assert copied.index("default-src 'none'") < copied.index("<script>")
    assert [file.name for file in (made[1] / "pages").iterdir()] == [link.split("/")[1]]


def test_figures_and_digits_are_the_tables(made):
    _, data = read(made[1])
    runs = load_runs([made[0]])
    for key, fold in (("arms", True), ("runs", False)):
        columns, lines = table.build_table(runs, fold=fold)
        known = table.cell_texts(columns, lines)
        for column in data[key]["columns"]:
            texts = column["texts"]
            if isinstance(texts, dict):
                texts = [texts["values"][i] for i in texts["at"]]
            if column["name"] != "model":
                assert texts == known[column["name"]]
        accuracy = next(c for c in data[key]["columns"] if c["name"] == "accuracy")
        assert accuracy["down"] and accuracy["figure"]
        assert accuracy["numbers"] == pytest.approx([line["accuracy"].value for line in lines])
    assert [len(data[key]["names"]) for key in ("arms", "runs")] == [5, 11]
    assert data["arm"] == sorted(data["arm"]) or set(data["arm"]) == set(range(5))


def test_verdicts_are_those_of_compare_with_the_plans_baseline_and_margin(made):
    runs = made[0] / "sweep"
    arms = site.arms_of(load_runs([made[0]]))
    found = site.comparisons_of([Arm(*pair) for pair in zip(*arms, strict=True)])
    of_sweep = next(each for each in found if each.title == "sweep sweep")
    assert of_sweep.baseline.endswith("weak")
    said = compare.build_report([str(runs / arm) for arm in ("weak", "again", "strong")])
    for ours, theirs in zip(of_sweep.verdicts, said.judged, strict=True):
        assert (ours.words, ours.p) == (theirs.decision, compare.show_p(theirs.p))
        assert ours.difference == compare.difference_text(theirs)
    assert [v.words for v in of_sweep.verdicts] == ["the same", "better"]
    text = (made[1] / "index.html").read_text()
    assert "the same, within 0.2" in text and "on these rows" in text


def test_one_odd_arm_does_not_take_the_others_verdicts(tmp_path):
    write_arms(tmp_path, {"a": 1.0, "b": 2.0, "c": 1.0})
    for seed in range(3):  # shuffled labels
        rows = classifier(300, 1.0, seed)
        rows["label"] = rows["label"][1:] + rows["label"][:1]
        write_run(tmp_path / f"c/seed_{seed}", rows, seed=seed, metrics={"primary": "log_loss"})
    [found] = site.comparisons_of(arms_in(tmp_path))
    assert [v.label for v in found.verdicts] == ["b"]
    assert any(note.startswith("c is not compared: ") for note in found.notes)
    ranked, left_out = ranking.rankings(arms_in(tmp_path))
    assert [[p.arm.label for p in each.places] for each in ranked] == [["b", "a"]] and not left_out


# --------------------------------------------------------------------------------- rankings


def test_letters_join_exactly_those_that_do_not_differ():
    # the classic case: the middle one is told apart from neither end
    assert ranking.letter_groups(3, [(0, 2)]) == [[0, 1], [1, 2]]
    assert ranking.letter_groups(3, []) == [[0, 1, 2]]
    assert ranking.letter_groups(3, [(0, 1), (0, 2), (1, 2)]) == [[0], [1], [2]]
    draw = random.Random(0)
    for _ in range(60):
        count = draw.randint(1, 8)
        pairs = list(itertools.combinations(range(count), 2))
        differ = {pair for pair in pairs if draw.random() < draw.random()}
        groups = ranking.letter_groups(count, sorted(differ), most=1000)
        for pair in pairs:
            assert (pair in differ) != any(set(pair) <= set(group) for group in groups)
        assert {i for group in groups for i in group} == set(range(count))
        assert not [a for a, b in itertools.permutations(groups, 2) if set(a) <= set(b)]
    assert ranking.letter_groups(30, itertools.combinations(range(30), 2)) == []  # 30 letters


def test_a_ranking_finds_the_planted_groups_and_keeps_splits_apart(tmp_path):
    write_arms(tmp_path / "one", {"weak": 1.0, "best": 3.0, "again": 1.0, "middle": 1.9})
    write_arms(tmp_path / "two", {"far": 5.0, "near": 5.0}, split_fingerprint="s2")
    found, left_out = ranking.rankings(arms_in(tmp_path))
    assert [len(each.places) for each in found] == [4, 2] and not left_out
    first, second = found
    assert [p.arm.label for p in first.places][:2] == ["best", "middle"]
    assert [p.groups for p in first.places] == [["a"], ["b"], ["c"], ["c"]]
    assert [p.among for p in first.places] == ["1", "2", "3–4", "3–4"]
    assert {p.arm.label for p in second.places} == {"far", "near"}
    assert first.over_seeds and first.best.label == "best"
    # six pairs share the 5 %, by Holm
    arms = [place.arm for place in first.places]
    pairs = compare.pairwise(arms, "log_loss")
    levels = comparisons.levels([pair.difference.p for pair in pairs.values()])
    assert [pair.level for pair in pairs.values()] == levels and min(levels) == 0.05 / 6
    more = compare.pairwise(arms[:3], "log_loss", unmade=3)  # as if the others had shown nothing
    assert min(pair.level for pair in more.values()) == 0.05 / 6
    assert all(pair.family == 6 for pair in more.values())


def test_what_diverged_is_last_and_a_race_has_no_letters(tmp_path):
    write_arms(tmp_path, {"fine": 1.0, "lost": 1.0})
    for seed in range(3):
        run = write_run(tmp_path / f"lost/seed_{seed}", None, seed=seed, status="failed",
                        verdicts=["diverged: the loss was not finite"])  # fmt: skip
        (run / "test/metrics/metrics.json").unlink()
        (run / "test/metrics/predictions.csv").unlink()
    [found], _ = ranking.rankings(arms_in(tmp_path / "fine", tmp_path / "lost"))
    assert [place.arm.label for place in found.places] == ["fine", "lost"]
    assert found.places[1].cell.value == "diverged"
    plan = {"arms": {"fine": {}, "lost": {}}, "race": {"max_seeds": 6}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    [found], _ = ranking.rankings(arms_in(tmp_path / "fine", tmp_path / "lost"))
    assert "race" in found.why and not found.letters and not found.places[0].peers


def test_a_ranking_says_that_its_rows_have_few_groups(tmp_path):
    for name, strength in (("a", 1.0), ("b", 2.0)):
        for seed in range(3):
            rows = classifier(120, strength, seed, per_group=15)
            write_run(tmp_path / name / f"seed_{seed}", rows, seed=seed)
    [found], _ = ranking.rankings(arms_in(tmp_path / "a", tmp_path / "b"))
    assert found.why.startswith("Only 8 groups")


# ------------------------------------------------------------------------- curves and files


def test_curves_are_thinned_to_means_and_keep_their_ends(tmp_path):
    run = write_run(tmp_path / "run", None, steps=1000)
    with open(run / "train/metrics/metrics.jsonl", "a") as log:
        for step in range(10, 1001, 10):
            log.write(json.dumps({"step": step, "val_loss": 2.0 / step, "val_words": "x"}) + "\n")
        log.write(json.dumps({"step": 1000, "val_f1": 0.5}) + "\n")
        log.write(json.dumps({"step": 1001, "val_loss": float("nan")}) + "\n")
    found = site.curves_of(load_runs([run]))
    assert found["names"] == ["train_loss", "val_loss", "val_f1"]
    [curve] = found["runs"]
    assert len(curve["train"]) == len(curve["x"]["step"]) == len(curve["x"]["tokens"]) == 300
    losses = 1 / np.arange(1, 1001)
    assert curve["train"][0] == pytest.approx(losses[:3].mean(), rel=1e-3)
    assert np.mean(curve["x"]["tokens"]) == pytest.approx(
        640 * np.mean(curve["x"]["step"]), rel=1e-3
    )
    assert curve["at"][-2:] == [1000, 1001]
    assert curve["val_loss"][-2:] == [0.002, None] and curve["val_f1"][-2:] == [0.5, None]
    json.dumps(found, allow_nan=False)
    few = site.curves_of_run(load_runs([run])[0], ["val_loss"], 20)
    assert len(few["train"]) == len(few["val_loss"]) == 20 and few["at"][0] == 10


def test_a_whole_number_is_looked_for_by_all_of_its_digits():
    values = [123456789, 123456788, 1234567890123, 0.123456789]
    column = site.column_data("seed", list(map(str, values)), [table.Cell(v) for v in values])
    assert column["numbers"] == [*values[:3], 0.12345679]


def test_rounded_numbers_are_short_and_json():
    assert json.dumps([site.rounded(x) for x in (1 / 3, 3.0, 1e-7, 123456.7)]) == (
        "[0.33333, 3, 1e-07, 123460]"
    )
    nothing = [site.rounded(x) for x in (float("nan"), float("inf"), None, "x", True, 10**400)]
    assert nothing == [None] * 6


@pytest.mark.parametrize("broken", ["a file", "another page"])
def test_what_is_not_ours_is_not_written_over(made, tmp_path, broken):
    place = tmp_path / "out"
    if broken == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "index.html").write_text("<p>mine")
    with pytest.raises(SystemExit, match="error: .*(--output|name a folder)"):
        report_script.main(["site", str(made[0]), "--output", str(place)])
    kept = place if broken == "a file" else place / "index.html"
    assert kept.read_text() in ("mine", "<p>mine")


def test_a_site_is_written_anew_and_of_runs_in_any_state(made, tmp_path, capsys):
    runs = tmp_path / "runs"
    write_run(runs / "no_log", None)
    (runs / "no_log/train/metrics/metrics.jsonl").unlink()
    torn = write_run(runs / "torn", classifier(50, 1.0, 0))
    (torn / "test/metrics/metrics.json").write_text('{"accuracy": ')
    (torn / "run.json").write_text(json.dumps({"status": "running", "command": 3}))
    (runs / "empty").mkdir()
    (runs / "empty/run.json").write_text("[]")
    for _ in range(2):
        report_script.main(["site", str(runs), "--output", str(tmp_path / "site")])
        assert "index.html" in capsys.readouterr().out
    _, data = read(tmp_path / "site")
    assert len(data["runs"]["names"]) == 3
