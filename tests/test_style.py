"""What counting says of two answers, and the opponent that answers from it."""

import csv
import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS

import report
import run_5_models
from benchmarks import votes
from commands import features as command
from commands import predict
from data import arena, probes
from data.style import NAMES, exchanged, style_features
from evaluation.blending import blend, fit_weights
from evaluation.metrics import SWAP
from experiments.pair_answers import probe
from experiments.saved_pairs import open_run, other_run, partner, require_finished
from models import features
from reports.folder import load_run
from reports.one_run import page_of_run
from settings import parse_settings


def pair(prompt: str, a: str, b: str, label: int | None = 0, number: int = 0) -> arena.PairRow:
    group = arena.prompt_hash([prompt])
    return arena.PairRow(str(number), [prompt], [a], [b], label, group, "train")


def counted(row: arena.PairRow) -> dict[str, float]:
    return dict(zip(NAMES, style_features([row])[0].tolist(), strict=True))


def test_features_are_what_one_counts_by_hand():
    a = "# Plan\n\n- **Buy** 2 apples\n- See https://x.org\n\n1. Go, `run`!"
    row = pair("What should I buy?", a, "I'm sorry, I cannot say")
    values = counted(row)

    def logs(name: str) -> float:
        return round(math.expm1(values[name]))

    assert logs("characters_a") == len(a) and logs("characters_b") == 23
    assert (logs("words_a"), logs("words_b")) == (11, 6)  # plan buy 2 apples see https x org 1 …
    assert (logs("lines_a"), logs("paragraphs_a")) == (5, 2)
    assert (logs("bullets_a"), logs("numbered_a"), logs("headings_a")) == (2, 1, 1)
    assert (logs("bold_a"), logs("links_a"), logs("inline_code_a")) == (1, 1, 1)
    assert values["digits_a"] == pytest.approx(2 / len(a))
    assert (logs("commas_a"), logs("exclamations_a"), values["finished_a"]) == (1, 1, 1.0)
    assert (logs("refusals_a"), logs("refusals_b"), logs("first_person_b")) == (0, 2, 2)
    assert values["finished_b"] == 0 and values["capital_first_b"] == 1
    # what, should, i, buy: of the prompt's four words A has "buy", B has "i"
    assert values["of_prompt_a"] == values["of_prompt_b"] == 1 / 4
    assert values["characters_difference"] == pytest.approx(
        values["characters_a"] - values["characters_b"], abs=1e-6
    )
    assert values["turns"] == pytest.approx(math.log(2)) and values["equal"] == 0


def test_repetition_language_and_copies_are_seen():
    values = counted(pair("Say hello in Greek", "go go go go go go", "Καλημέρα σας"))
    assert values["distinct_words_a"] == pytest.approx(1 / 6)
    assert values["repeated_pairs_a"] == pytest.approx(4 / 5) and values["repeated_pairs_b"] == 0
    assert values["foreign_b"] == pytest.approx(11 / 12) and values["other_language_a"] == 0
    copied = counted(pair("Rewrite: a b c", "a b c", "a b c"))
    assert copied["in_prompt_a"] == copied["equal"] == copied["common_words"] == 1


ODD = ["", " \n", "\ud800 half", "😀" * 50, "a" * 5000, "```\ncode\n```", "|a|b|\n|-|-|", "٣ ½ ²"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_has_finite_features_that_exchange_exactly(text):
    row = pair("why", text, "because it is so")
    back = replace(row, response_a=row.response_b, response_b=row.response_a)
    one, other = style_features([row]), style_features([back])
    assert np.isfinite(one).all() and one.shape == (1, len(NAMES))
    assert np.array_equal(exchanged(one), other)
    turns = replace(row, prompt=["why", "and"], response_a=[text, "x"], response_b=["y", ""])
    assert np.isfinite(style_features([turns])).all()


def planted(count: int, kind: str, ties: float = 0.1, seed: int = 0) -> list[arena.PairRow]:
    """Votes by length alone, or by one word whatever the length; a few prompts have many rows."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        sides = [draw.choices(WORDS, k=draw.randint(3, 30)) for _ in range(2)]
        better = int(len(sides[1]) > len(sides[0]))
        if kind == "word":
            better = draw.randint(0, 1)
            for side, words in enumerate(sides):
                words.insert(draw.randint(0, len(words)), "right" if side == better else "wrong")
        label = 2 if draw.random() < ties else better
        prompt = f"question {number // 2}"
        rows.append(pair(prompt, *(" ".join(words) for words in sides), label, number))
    return rows


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "ROUNDS", (30, 60))
        patch.setattr(features, "FOLDS", 3)
        yield


@pytest.fixture(scope="module")
def by_length(few_trees):
    return features.fit(planted(300, "length"), seed=1)


def loss(p: np.ndarray, rows: list[arena.PairRow]) -> float:
    return float(-np.log(p[np.arange(len(rows)), [row.label for row in rows]]).mean())


def test_it_learns_length_and_style_alone_learns_no_word(by_length):
    rows = planted(200, "length", seed=5)
    constant = 0.9  # of 45, 45 and 10 in a hundred, about .95
    assert loss(by_length.probabilities(rows), rows) < constant - 0.2
    by_word = planted(300, "word")
    rows = planted(200, "word", seed=5)
    with_words, without = (
        loss(features.fit(by_word, words=each).probabilities(rows), rows) for each in (True, False)
    )
    assert with_words < constant - 0.3 and without > constant


def test_exchanged_answers_exchange_the_probabilities_to_the_last_bit(by_length):
    rows = planted(70, "word", seed=9)
    back = [replace(row, response_a=row.response_b, response_b=row.response_a) for row in rows]
    p = by_length.probabilities(rows)
    assert np.array_equal(by_length.probabilities(back)[:, SWAP], p)
    assert np.array_equal(by_length.probabilities(rows[33:40]), p[33:40]), "by itself, too"
    assert p.sum(axis=1) == pytest.approx(1) and (p > 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_trees_as_arrays_answer_as_scikit_learn_does(classes):
    from sklearn.ensemble import HistGradientBoostingClassifier

    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 5)).astype(np.float32)
    labels = (x[:, 0] + draw.normal(size=400) > 0).astype(int) + (classes > 2) * (x[:, 1] > 1)
    grown = HistGradientBoostingClassifier(max_iter=30, early_stopping=False).fit(x, labels)
    forest = features.Forest.of(grown)
    staged = list(grown.staged_predict_proba(x))
    for rounds, p in zip((5, 30), forest.probabilities(x, [5, 30]), strict=True):
        assert p[:, :classes] == pytest.approx(staged[rounds - 1], abs=1e-12)
        assert classes == 3 or (p[:, 2] == 0).all()


def test_folds_keep_groups_whole():
    groups = [f"g{number % 7}" for number in range(50)]
    fold = features.folds_of(groups)
    assert set(fold) == set(range(features.FOLDS))
    assert len({(group, number) for group, number in zip(groups, fold, strict=True)}) == 7


def test_rows_without_ties_and_rows_that_teach_nothing():
    rows = planted(60, "length", ties=0)
    p = features.fit(rows, words=False).probabilities(rows)
    assert (p[:, 2] < 0.05).all() and (p[:, 2] > 0).all()
    two = features.fit(rows, words=False, classes=2).probabilities(rows)
    assert two.shape == (60, 2) and two.sum(axis=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="no ties"):
        features.fit([replace(row, label=2) for row in rows])
    with pytest.raises(ValueError, match="two prompts"):
        features.fit([replace(row, group="one") for row in rows])


def write_rows(rows: list[arena.PairRow], path):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b", *arena.WINNER_COLUMNS])
        for row in rows:
            texts = (json.dumps(turns) for turns in (row.prompt, row.response_a, row.response_b))
            writer.writerow([row.id, *texts, *(int(row.label == k) for k in range(3))])
    return path


def run_features(*words: str) -> None:
    command.features(parse_settings(command.Config, words, "features")[0])


def test_the_command_writes_a_run_that_answers_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_rows(planted(200, "length"), tmp_path / "votes.csv")
    run_features(f"--data={data}", "--out=run", "--words=false")
    assert "finished: run" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/test/metrics/metrics.json").read_text())
    assert metrics["flip_consistency"] == 1 and metrics["rounds"] in features.ROUNDS
    with open(tmp_path / "run/test/metrics/predictions.csv", newline="") as file:
        lines = {line["id"]: line for line in csv.DictReader(file)}
    asked = predict.PredictConfig(run_folder="run", data=str(data), output="submission.csv")
    predict.predict(asked)
    with open("submission.csv", newline="") as file:
        answers = {line["id"]: line for line in csv.DictReader(file)}
    assert len(answers) == 200 and len(lines) == metrics["n"]
    for number, line in lines.items():
        assert float(answers[number]["winner_model_a"]) == float(line["p_A"])
    saved = tmp_path / "run/train/weights/best"
    facts = json.loads((saved / features.FILE).read_text())
    (saved / features.FILE).write_text(json.dumps(facts | {"columns": ["other"]}))
    with pytest.raises(ValueError, match="no whole folder"):
        open_run("run", None)
    with pytest.raises(ValueError, match="the features of this version are others"):
        features.load(saved)


@pytest.mark.parametrize("given", ["--minus_one=a", "--data=reviews --limit=300 --split=row"])
def test_a_setting_that_the_command_has_no_use_for_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    data = write_rows(planted(60, "length"), tmp_path / "votes.csv")
    with pytest.raises(ValueError, match="was given, but nothing in this run uses it"):
        run_features(f"--data={data}", "--out=run", *given.split())


def test_weights_of_a_blend_are_those_that_a_search_finds():
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 3, 400)
    good = np.exp(draw.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels])
    noise = np.exp(draw.normal(size=(400, 3)))
    answers = [p / p.sum(axis=1, keepdims=True) for p in (good, noise)]
    weights = fit_weights(answers, labels)

    def cost(pair):
        right = blend(answers, pair)[np.arange(400), labels]
        return -np.log(right).sum() + ((np.array(pair) - 0.5) ** 2).sum() / 2

    grid = [(a, b) for a in np.linspace(0, 2, 41) for b in np.linspace(0, 2, 41)]
    best = min(grid, key=cost)
    assert weights == pytest.approx(best, abs=0.051) and cost(weights) <= cost(best)
    back = blend([p[:, SWAP] for p in answers], weights)
    assert np.array_equal(back[:, SWAP], blend(answers, weights))


def test_methods_are_put_beside_each_other_by_folds(few_trees, tmp_path, capsys):
    data, kept = write_rows(planted(200, "length"), tmp_path / "votes.csv"), tmp_path / "losses.csv"
    votes.main([str(data), "--folds=2", f"--losses={kept}"])
    said = capsys.readouterr().out
    assert "200 rows" in said and said.endswith(votes.table(*votes.read_losses(kept)[1:]) + "\n")
    _, groups, losses = votes.read_losses(kept)
    assert losses["features"].mean() < losses["constant"].mean() - 0.2
    rows, _ = arena.load_arena(str(data))
    folds: list[set[str]] = []

    def train(learns, test, seed):
        folds.append({row.id for row in test})
        assert not {row.group for row in learns} & {row.group for row in test}
        sure = np.eye(3)[[row.label for row in test]] * 0.94 + 0.02
        return {"": sure, votes.ALONE: sure[:, SWAP]}

    found = votes.losses_by_folds(rows, 3, train)
    assert sum(map(len, folds)) == len(set().union(*folds)) == 200
    assert found[""] == pytest.approx(-np.log(0.96)) and found[votes.ALONE].max() > 3
    votes.main([str(data), "--folds=2", f"--losses={kept}", "--seeds=2"])
    names = list(votes.read_losses(kept)[2])
    assert names == ["constant", "style", "features", "style #1", "features #1"]
    lines = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines == ["constant", "style, 2 seeds", "features, 2 seeds"]


def test_intervals_over_seeds_and_prompts_miss_as_often_as_they_say():
    """Two arms alike, whose seeds spread as far as their rows do."""
    draw, groups, misses, by_rows = np.random.default_rng(5), np.repeat(np.arange(40), 2), 0, 0
    for _ in range(600):
        shared = draw.normal(size=80) + np.repeat(draw.normal(size=40), 2)
        losses = {
            arm + (votes.SEED + str(seed) if seed else ""): 3
            + shared
            + draw.normal(scale=0.15)
            + draw.normal(scale=0.8, size=80)
            for arm in ("features", "other")
            for seed in range(3)
        }
        found = votes.apart(losses, "other", "features", groups)
        low, high = found.interval()
        misses += not low < 0 < high
        every = {name: losses[name] for name in ("features", "other")}  # as if one seed were all
        low, high = votes.apart(every, "other", "features", groups).interval()
        by_rows += not low < 0 < high
    assert 0.02 < misses / 600 < 0.07 < 0.15 < by_rows / 600


@pytest.fixture(scope="module")
def blended(few_trees, tiny_bert, tmp_path_factory):
    """(folder with votes by length, the opponent's run and a tiny encoder's joined with it)"""
    folder = tmp_path_factory.mktemp("blended")
    data = write_rows(planted(400, "length"), folder / "votes.csv")
    run_features(f"--data={data}", f"--out={folder}/opponent")
    words = [f"--model={tiny_bert}", f"--data={data}", "--max_length=32", "--epochs=0.3"]
    words += ["--head=davidson", "--pooling=mean", "--features=true", "--swap=augment"]
    words += [f"--blend={folder}/opponent", f"--out={folder}/run", "--device=cpu", "--page=false"]
    run_5_models.main(*parse_settings(run_5_models.Config, words, "run_5_models"))
    return folder, words


def test_a_run_is_joined_with_the_opponent_and_predict_writes_both(blended, monkeypatch):
    folder, _ = blended
    monkeypatch.chdir(folder)
    metrics = json.loads((folder / "run/test/metrics/metrics.json").read_text())
    joined = metrics["blend"]
    assert joined["run"] == "../opponent" and len(joined["weights"]) == 2
    opponent = json.loads((folder / "opponent/test/metrics/metrics.json").read_text())
    # an encoder of a few steps knows nothing: the join is as good as the opponent alone
    assert metrics["log_loss"] == pytest.approx(opponent["log_loss"], abs=0.1)
    assert metrics["log_loss"] < joined["log_loss_alone"]
    predict.predict(
        predict.PredictConfig(run_folder="run", data="votes.csv", output="submission.csv")
    )
    with open("submission.csv", newline="") as file:
        answers = {line["id"]: line for line in csv.DictReader(file)}
    with open("run/test/metrics/predictions.csv", newline="") as file:
        for line in csv.DictReader(file):
            told = [float(line[f"p_{name}"]) for name in ("A", "B", "tie")]
            given = [float(answers[line["id"]][name]) for name in arena.WINNER_COLUMNS]
            assert given == pytest.approx(told, abs=1e-5)


def test_both_runs_of_a_blend_move_together_and_another_partner_is_refused(blended, tmp_path):
    folder, _ = blended
    joined = json.loads((folder / "run/test/metrics/metrics.json").read_text())["blend"]
    for name in ("run", "opponent"):
        weights = "train/weights/best"
        shutil.copytree(folder / name / weights, tmp_path / name / weights)
        shutil.copy(folder / name / "run.json", tmp_path / name)
    assert partner(tmp_path / "run", joined).resolve() == tmp_path / "opponent"
    assert partner(folder / "run", joined).resolve() == folder / "opponent"
    (tmp_path / "deep").mkdir()
    (tmp_path / "run").rename(tmp_path / "deep/run")  # it lies above, now
    assert partner(tmp_path / "deep/run", joined) == tmp_path / "opponent"
    older = {"run": str(folder / "opponent")}  # an absolute path, and no digest
    assert partner(tmp_path / "deep/run", older) == folder / "opponent"
    manifest = tmp_path / "opponent" / weights / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(ValueError, match="has other weights than those"):
        partner(tmp_path / "deep/run", joined)
    shutil.rmtree(tmp_path / "opponent")
    with pytest.raises(ValueError, match="which is not there: put that run's folder where it lay"):
        partner(tmp_path / "deep/run", joined)


def test_a_bundled_blend_answers_as_it_did(blended, tmp_path, monkeypatch, capsys):
    folder, _ = blended
    monkeypatch.chdir(folder)
    words = ["--weights=best", f"--output={tmp_path}/both.zip"]
    report.main(["bundle", "run", *words])
    assert "note: run answers joined with opponent, which is not in it" in capsys.readouterr().out
    report.main(["bundle", "run", "opponent", *words])
    assert "note" not in capsys.readouterr().out
    shutil.unpack_archive(tmp_path / "both.zip", tmp_path)
    for run in ("run", tmp_path / "both/run"):
        asked = {"run_folder": str(run), "data": "votes.csv", "output": f"{tmp_path}/answers.csv"}
        predict.predict(predict.PredictConfig(**asked))
        (tmp_path / "answers.csv").rename(tmp_path / f"{Path(run).parent.name or 'here'}.csv")
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "both.csv").read_bytes()


def test_votes_by_length_end_in_style_only(blended):
    folder, _ = blended
    found = json.loads((folder / "run/test/metrics/metrics.json").read_text())["beyond_style"]
    assert found["verdict"] in ("style only", "undecided") and found["gain_ci95"][0] <= 0
    page = page_of_run(load_run(folder / "run"))
    texts = [block.text for block in page.blocks if hasattr(block, "text")]
    assert any(text.startswith(found["verdict"].capitalize()) for text in texts)
    assert any(text.startswith("Blended with") for text in texts)
    turned = found["probes"]
    assert turned["swapped"] == 0 and turned["n"] > 0 and 0 <= turned["padded"] <= 1
    assert any("padded with empty words" in text for text in texts)


def test_a_run_of_another_split_is_no_partner(blended, tmp_path):
    folder, words = blended
    words = [*words, "--test_frac=0.3", f"--out={tmp_path}/run"]
    config, given = parse_settings(run_5_models.Config, words, "run_5_models")
    with pytest.raises(ValueError, match="another split"):
        run_5_models.main(config, given)
    words = [*words, f"--blend={tmp_path}/nowhere"]
    with pytest.raises(ValueError, match="no finished run"):
        run_5_models.main(*parse_settings(run_5_models.Config, words, "run_5_models"))


def test_a_partner_that_could_not_be_joined_is_refused_before_training(blended, tmp_path):
    """It is asked once all training is done."""
    folder, _ = blended
    for name in ("run", "opponent"):
        shutil.copytree(folder / name, tmp_path / name)
    run, opponent = tmp_path / "run", tmp_path / "opponent"
    facts = json.loads((opponent / "run.json").read_text())
    assert other_run(str(run), facts) == run and other_run(str(opponent), facts) == opponent
    two = ["A", "B"]
    with pytest.raises(ValueError, match="--blend .*trained on other classes .A, B, tie"):
        other_run(str(opponent), facts | {"classes": two})
    with pytest.raises(ValueError, match="--teacher .*trained on other classes"):
        require_finished("--teacher", opponent, two)
    file = run / "test/metrics/metrics.json"
    file.write_text(file.read_text().replace('"tested_with": "best"', '"tested_with": "final"'))
    with pytest.raises(ValueError, match="the weights are those of the final"):
        other_run(str(run), facts)
    shutil.copy(folder / "run/test/metrics/metrics.json", file)
    (opponent / "train/weights/best/features.json").write_text("{}")
    with pytest.raises(ValueError, match="is no whole folder of saved weights"):
        other_run(str(opponent), facts)
    with pytest.raises(ValueError, match="has other weights than those"):
        other_run(str(run), facts)


def test_probes_change_length_and_marks_alone():
    row = pair("why", "# A\n\n- **one** `two`\n1. [x](http://y.z)", "short")
    assert probes.plain(row).response_a == ["A\n\none two\nx"]
    assert probes.plain(row).response_b == row.response_b
    longer = probes.padded(row, 1)
    assert longer.response_a == row.response_a and longer.response_b[0].startswith("short ")
    assert len(longer.response_b[0]) > len(row.response_a[0])
    assert len(probes.padded(pair("why", "", "x" * 900), 0).response_a[0]) > 900


def test_a_judge_by_length_turns_when_the_other_answer_is_padded(by_length):
    rows = planted(80, "length", seed=4)

    def answer(asked):
        p = by_length.probabilities(asked)
        return p, p[:, SWAP]

    found = probe(answer, rows, *answer(rows))
    assert found["padded"] > 0.6 and found["swapped"] == 0 and found["n_plain"] == 0
