"""reports/page.py and plots.py: pages of runs in every state, read back as HTML and Markdown."""

import csv
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PROJECT, copied, environment

from reports import plots
from reports.blocks import escaped
from reports.page import write_page

HOSTILE = '<script>alert("x")</script>\x1b[31m\x00\u202e & $\\frac{ |pipe| ' + "w" * 3000
SECTIONS = [
    *("Verdicts", "Results", "Training", "Answers on the test rows", "Speed and memory"),
    *("What it got most wrong", "Settings and environment", "What made the figures"),
]


def training_lines(steps: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "step": step,
            "epoch": 2 * step / steps,
            "train_loss": 0.6 + 0.5 * 0.97**step + draw.gauss(0, 0.05),
            "lr": 1e-4 * (1 - step / steps),
            "lr_encoder": 1e-4 * (1 - step / steps),
            "lr_head": 1e-3 * (1 - step / steps),
            "grad_norm": draw.lognormvariate(0, 0.3),
            "grad_norms": {
                name: draw.lognormvariate(0, 0.3)
                for name in ("embeddings", *(f"layer {i}" for i in range(12)), "head")
            },
            "peak_memory_bytes": 2**30,
            "examples_per_second": draw.gauss(50, 3),
            "tokens_per_second": draw.gauss(4000, 300),
            "seconds": 0.7 * step,
        }
        for step in range(1, steps + 1)
    ]


def write_run(folder: Path, lines: list[dict], metrics: dict | None = None, **record) -> Path:
    """A run folder with these lines; `record` overrides run.json."""
    for part in ("train/metrics", "test/metrics", "test/analysis"):
        (folder / part).mkdir(parents=True)
    settings = {"model": "minilm", "data": "reviews", "lr": 1e-4, "epochs": 2.0, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "max_grad_norm": 1.0}))
    known = {"schema_version": 1, "status": "finished", "exit_reason": "all steps done"}
    known |= {"verdicts": [], "script": "run_x.py", "command": ["run_x.py", "--lr", "1e-4"]}
    known |= {"versions": {"torch": "2.13.0"}, "seconds": 70.0, "steps": len(lines)}
    (folder / "run.json").write_text(json.dumps(known | record))
    (folder / "train/metrics/metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    if metrics is not None:
        (folder / "test/metrics/metrics.json").write_text(json.dumps(metrics))
    return folder


def write_predictions(folder: Path, rows: list[dict]) -> None:
    with open(folder / "test/metrics/predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def classified(classes: list[str], count: int = 200) -> list[dict]:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        p = generator.dirichlet(np.ones(len(classes)))
        label = classes[int(generator.choice(len(classes), p=p))]
        rows.append({"id": number, "group": f"g{number // 2}", "label": label})
        rows[-1] |= {"prediction": classes[int(p.argmax())]}
        rows[-1] |= {f"p_{name}": share for name, share in zip(classes, p, strict=True)}
    return rows


METRICS = {
    **{"n": 200, "accuracy": 0.61, "accuracy_ci95": [0.54, 0.67], "log_loss": 0.8, "loss": 0.8},
    **{"log_loss_ci95": [0.7, 0.9], "loss_ci95": [0.7, 0.9], "constant_accuracy": 0.36},
    **{"constant_class": "A", "prior_entropy": 1.09, "best_step": 60, "confusion_matrix": [[1]]},
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished classifier with all that a page can show."""
    lines = training_lines(80)
    for step in (20, 40, 60, 80):
        lines.append({"step": step, "val_loss": 0.9 - 0.002 * min(step, 60), "val_accuracy": 0.6})
    folder = write_run(tmp_path / "minilm" / "finished", lines, METRICS)
    write_predictions(folder, classified(["A", "B", "tie"]))
    (folder / "baseline/metrics").mkdir(parents=True)
    (folder / "baseline/metrics/metrics.json").write_text('{"accuracy": 0.31, "n": 200}')
    worst = {"id": "row 7", "label": "A", "prediction": "B", "loss": 4.2}
    texts = {"prompt": "which?", "response_a": "this <b>one</b>", "response_b": "that"}
    (folder / "test/analysis/worst_rows.jsonl").write_text(json.dumps(worst | {"text": texts}))
    return folder


class Reader(HTMLParser):
    """What a browser would see: the text, tags that stay open, and all attributes."""

    VOID = ("meta", "br", "img", "hr", "input", "link")

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.attributes, self.open, self.headings = [], [], [], []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data
            if self.open[-1] == "h2":
                self.headings.append(data)


def page_of(*paths: Path, output: Path | None = None) -> Reader:
    return Reader(write_page(list(paths), output or paths[0].with_suffix(".html")))


def check_self_contained(page: Reader) -> None:
    assert not page.open
    assert not re.search(r"https?:", page.source)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "data", "srcset"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:60])
    assert re.findall(r"url\((?!#)", page.source) == [] and "@import" not in page.source
    # every picture says what it shows, and no two things have one id
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == page.tags.count("svg") and all(len(label) > 20 for label in labels)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [v[1:] for _, name, v in page.attributes if name == "href" and v.startswith("#")]
    assert set(used) | set(re.findall(r"url\(#([\w-]+)\)", page.source)) <= set(ids)


def test_sessions_say_what_was_another_machine(finished):
    record = json.loads((finished / "run.json").read_text())
    first = {"from_step": 0, "device_name": "A100", "versions": {"torch": "1"}}
    sessions = [first, first | {"from_step": 30, "device_name": "T4 <x>"}]
    sessions += [sessions[1] | {"from_step": 50}]
    (finished / "run.json").write_text(json.dumps(record | {"sessions": sessions}))
    page = page_of(finished)
    check_self_contained(page)
    assert "session 2from step 30, with another device_name T4 <x>" in page.text
    assert "session 3from step 50, with the same machine and versions" in page.text


def test_a_finished_run_shows_everything_with_the_verdicts_first(finished):
    page = page_of(finished)
    check_self_contained(page)
    assert page.headings == SECTIONS
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "61.0 %" in text and "95 %: 54.0 % to 67.0 %" in text
    assert "constant answer (A): 36.0 %" in text and "before training: 31.0 %" in text
    assert text.index("is better than a constant answer") < text.index("95 %:")
    titles = re.findall(r"<figcaption><b>([^<]*)", page.source)
    assert titles == [
        *("Loss", "Validation accuracy", "Learning rate", "Gradient norm"),
        *("Gradient norm of each layer", "Confusion matrix", "Calibration"),
        *("Tokens a second", "Memory"),
    ]
    assert "this <b>one</b>" in page.text and "label A, predicted B · loss 4.200" in page.text
    # SVG takes its colours from the style sheet, all of which are defined there
    inside = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert not any(light in inside for light in plots.LIGHT.values())
    defined = set(re.findall(r"(--\w+):", page.source))
    assert set(re.findall(r"var\((--\w+)\)", page.source)) <= defined


def test_pictures_lie_in_the_run_folder(finished):
    write_page([finished])
    train = {path.stem for path in (finished / "train/analysis").iterdir()}
    test = {path.stem for path in (finished / "test/analysis").glob("*.png")}
    assert {
        "loss",
        "learning_rate",
        "gradient_norm",
        "gradient_norm_layers",
        "peak_memory_bytes",
    } <= train
    assert test == {"confusion_matrix", "calibration"}
    assert all(
        path.read_bytes().startswith(b"\x89PNG") for path in finished.glob("t*/analysis/*.png")
    )


def test_what_the_machine_did_is_drawn(tmp_path):
    lines = training_lines(80)
    for line in lines[1::4]:
        line["machine"] = {"cpu_share": 0.9, "process_share": 0.6, "data_share": 0.05}
        line["machine"] |= {"memory_bytes": 2**29, "device_memory_bytes": 2**28}
    for line in lines:
        line["tokens"] = 100 * line["step"]
    folder = write_run(
        tmp_path / "r", lines, METRICS, checkpoint_bytes=2**30, checkpoint_seconds=4.0
    )
    page = page_of(folder)
    check_self_contained(page)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "CPU, median: 90%" in text and "waiting for data, median: 5%" in text
    assert "checkpoints: 1.00 GiB in 4 s" in text
    assert page.source.count("<b>Memory") == 1 and page.source.count("<b>How busy") == 1
    label = next(v for _, name, v in page.attributes if name == "aria-label" and v[:3] == "GiB")
    assert "of the process: from 0.5 to 0.5" in label and "on the device: from 0.25" in label
    # 80 steps of 0.7 s are two epochs
    rows = re.findall(r'<th scope="row">(\d)</th><td>([^<]*)</td><td>([^<]*)', page.source)
    assert ("1", "28.0 s", "4,000") in rows and ("2", "28.0 s", "4,000") in rows


def test_a_page_elsewhere_leaves_the_run_folder_as_it_was(finished, tmp_path):
    before = sorted(finished.rglob("*"))
    write_page([finished], tmp_path / "elsewhere.html")
    assert sorted(finished.rglob("*")) == before


def test_equal_runs_give_equal_bytes(finished, tmp_path):
    first = write_page([finished]).read_bytes()
    picture = (finished / "train/analysis/loss.png").read_bytes()
    assert write_page([finished]).read_bytes() == first
    assert (finished / "train/analysis/loss.png").read_bytes() == picture


def test_several_processes_draw_the_same_bytes(finished):
    written = []
    for processes in (1, 3):
        page = write_page([finished], processes=processes)
        files = [page, *sorted(finished.rglob("*.png"))]
        written.append({path: path.read_bytes() for path in files})
    assert len(written[0]) > 5 and written[0] == written[1]


def test_a_picture_that_cannot_be_drawn_is_an_error_in_any_process():
    def draw(figure):
        raise ValueError("cannot draw this")

    pictures = [plots.Picture(f"train/p{i}", "a picture", draw) for i in range(4)]
    with pytest.raises(ValueError, match="cannot draw this"):
        plots.draw_ahead(pictures, ["svg"], 2)


def test_a_page_waits_for_its_run(finished):
    """A line on standard input lets it begin; where there is none, the run has not been tested."""
    run = shutil.copytree(finished, finished.parent / "waited")
    command = copied([sys.executable, str(PROJECT / "report.py"), "page", str(run), "--wait"])
    for told, page in (("", False), ("now\n", True)):
        done = subprocess.run(
            command, input=told, capture_output=True, text=True, env=environment()
        )
        assert (done.returncode == 0) == page == (run / "report.html").exists(), done.stderr


def test_an_interrupted_run_with_a_torn_line(tmp_path):
    folder = write_run(
        tmp_path / "cut", training_lines(30), status="stopped", exit_reason="SIGTERM"
    )
    log = folder / "train/metrics/metrics.jsonl"
    log.write_text(log.read_text()[:-40])
    page = page_of(folder)
    check_self_contained(page)
    assert "stopped: SIGTERM" in page.text and "torn" in page.text
    assert "step 29 of 29" in page.text or "step 29 of 30" in page.text
    assert "the test rows are read once, at the end" in page.text
    assert page.headings == [SECTIONS[i] for i in (0, 2, 4, 6, 7)]


def test_a_collapsed_run_says_so_first_and_that_it_learned_nothing(tmp_path):
    metrics = METRICS | {"accuracy": 0.35, "accuracy_ci95": [0.29, 0.42], "log_loss": 1.2}
    metrics |= {"log_loss_ci95": [1.15, 1.25]}
    folder = write_run(tmp_path / "r", training_lines(5), metrics, verdicts=["collapsed: all A"])
    page = page_of(folder)
    bad = re.findall(r'<li class="bad">([^<]*)', page.source)
    assert bad[0] == "collapsed: all A"
    assert "not separable from a constant answer" in bad[1]
    assert "worse than a constant answer" in bad[2]
    assert 'class="good"' not in page.source


def test_a_run_of_a_later_version(tmp_path):
    folder = write_run(tmp_path / "r", training_lines(5), METRICS, schema_version=99, news=[1])
    page = page_of(folder)
    assert "later version (schema 99" in page.text and "61.0" in page.text


def test_steps_that_were_not_finite_are_counted(tmp_path):
    lines = training_lines(700)
    for line in lines[300:310]:
        line |= {"train_loss": None, "grad_norm": None, "grad_norms": {"head": None}}
    page = page_of(write_run(tmp_path / "r", lines, status="failed", exit_reason="diverged"))
    assert page.text.count("10 values were not finite") == 2


@pytest.mark.parametrize("missing", ["run.json", "config.yaml", "train", "test", "nothing but it"])
def test_missing_files_are_said_or_left_out(finished, missing):
    import shutil

    if missing == "nothing but it":
        for path in list(finished.iterdir()):
            if path.name != "run.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif (finished / missing).is_dir():
        shutil.rmtree(finished / missing)
    else:
        (finished / missing).unlink()
    page = page_of(finished)
    check_self_contained(page)
    assert page.headings[0] == "Verdicts"
    if missing != "test":
        assert "missing" in page.text or "no train/metrics" in page.text
    else:
        assert "without test/metrics/metrics.json" in page.text


@pytest.mark.parametrize("content", [b"", b"\xff\x00,\n1", b"[1]", b'{"accuracy": {}, "n": []}'])
def test_damaged_files_give_a_page(finished, content):
    for name in ("metrics/metrics.json", "metrics/predictions.csv", "analysis/worst_rows.jsonl"):
        (finished / "test" / name).write_bytes(content)
    (finished / "train/metrics/metrics.jsonl").write_bytes(content)
    check_self_contained(page_of(finished))


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    lines = training_lines(10)
    for line in lines:
        line["lr_" + HOSTILE] = 1e-3
        line["grad_norms"] = {HOSTILE: 1.0}
    lines.append({"step": 10, "val_loss": 0.5, "val_/../../" + HOSTILE: 0.5})
    metrics = METRICS | {HOSTILE: 0.5, f"{HOSTILE}_ci95": [0.4, 0.6], "constant_class": HOSTILE}
    folder = write_run(
        tmp_path / "top" / "run", lines, metrics, verdicts=[HOSTILE], script=HOSTILE,
        command=[HOSTILE], exit_reason=HOSTILE,
    )  # fmt: skip
    write_predictions(folder, classified([HOSTILE, "$x_1$", 'font: 1px "x" id="y"']))
    worst = {"id": HOSTILE, "label": HOSTILE, "prediction": 3, "loss": "x", "text": HOSTILE}
    worst["probabilities"] = {HOSTILE: 0.5}
    (folder / "test/analysis/worst_rows.jsonl").write_text(json.dumps(worst) + "\n[1]\n{torn")
    page = Reader(write_page([folder]))
    check_self_contained(page)
    assert '<script>alert("x")</script>' in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page.source)
    assert "2 lines of worst_rows.jsonl cannot be read" in page.text
    # a name from the data does not lead out of the run folder
    assert {path.name for path in tmp_path.iterdir()} == {"top"}
    assert {path.name for path in (tmp_path / "top").iterdir()} == {"run"}
    markdown = write_page([folder], tmp_path / "md", markdown=True).read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})bash\n.*?\n\1$", "", markdown, flags=re.M | re.S)  # as it was typed
    assert "<script>" not in outside.replace("\\<script\\>", "")


def test_language_model_and_regression_rows(tmp_path):
    generator = np.random.default_rng(0)
    metrics = {"n": 90, "perplexity": 29.41, "perplexity_ci95": [27.0, 32.0], "loss": 3.38}
    metrics |= {"tokenizer_exact": True}
    language = write_run(tmp_path / "lm", training_lines(20), metrics)
    rows = [
        {"id": i, "group": i, "loss_sum": x, "num_targets": 12, "num_chars": 50}
        for i, x in enumerate(generator.gamma(4, 10, 90))
    ]
    write_predictions(language, rows)
    page = page_of(language)
    check_self_contained(page)
    assert "Loss of the test rows" in page.text and "29.41" in page.text
    assert "tokenizer exactyes" in page.text  # two cells
    assert "Confusion" not in page.text

    metrics = {"n": 90, "pearson": 0.8, "pearson_ci95": [0.7, 0.9]}
    regression = write_run(tmp_path / "regression", training_lines(20), metrics)
    labels = generator.uniform(0, 5, 90)
    rows = [
        {"id": i, "group": i, "label": x, "prediction": x + generator.normal()}
        for i, x in enumerate(labels)
    ]
    write_predictions(regression, rows)
    page = page_of(regression)
    check_self_contained(page)
    assert "Predictions" in page.text and "Calibration" not in page.text


def test_two_runs_share_their_axes(finished, tmp_path):
    other = write_run(tmp_path / "electra" / "b", training_lines(50, seed=1), METRICS, seed=1)
    log = other / "train/metrics/metrics.jsonl"
    slow = [json.loads(line) | {"seconds": 3.0 * i} for i, line in enumerate(open(log))]
    log.write_text("".join(json.dumps(line) + "\n" for line in slow))
    page = page_of(finished, other, output=tmp_path / "both.html")
    check_self_contained(page)
    assert page.headings == [*SECTIONS[:3], SECTIONS[4], "What differs", SECTIONS[7]]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    loss = next(label for label in labels if label.startswith("Training loss against step"))
    assert "minilm/finished: from" in loss and "electra/b: from" in loss
    assert any(label.startswith("Training loss against training time") for label in labels)
    assert "report.py compare" in page.text and "fingerprint differs" not in page.text
    assert not (other / "train/analysis").exists()


def test_runs_on_other_test_rows_are_no_comparison(finished, tmp_path):
    one, other = (
        write_run(tmp_path / name, training_lines(5), METRICS, split_fingerprint=name)
        for name in "ab"
    )
    page = page_of(one, other, output=tmp_path / "both.html")
    assert "did not have the same test rows" in page.text
    page = page_of(finished, other, output=tmp_path / "older.html")  # which does not say
    assert "did not have the same" not in page.text


def test_each_figure_has_a_label_and_a_link_to_the_command_that_made_it(finished, tmp_path):
    place = {"batch": 0, "row": 0, "position": 10, "seen": "Show HN", "next": ": "}
    place["likeliest"] = [{"token": f"t{n}", "probability": 0.1} for n in range(10)]
    eos = {"token": "<eos>", "data": 0.05, "model": 0.07}
    found = {"place": place, "frequencies": {"tokens": 99, "eos": eos, "commonest": [eos]}}
    (finished / "test/analysis").mkdir(parents=True, exist_ok=True)
    (finished / "test/analysis/inspect.json").write_text(json.dumps(found))
    page = page_of(finished)
    assert "Next tokens" in page.headings and "expected in 7.00%" in page.text
    labels = {value for tag, name, value in page.attributes if name == "id"}
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    figures = [label for label in labels if label.startswith("figure-")]
    assert len(links) == len(figures) > 6 and {link[1:] for link in links} <= labels
    assert "inspect --run_folder" in page.text and "--position 10" in page.text
    text = write_page([finished], tmp_path / "md", markdown=True).read_text()
    for number in range(1, len(figures) + 1):
        assert f"### Figure {number}\n" in text
    assert set(re.findall(r"\(#command-(\d)\)", text)) == set(re.findall("### Command (.)", text))


def test_markdown_has_its_headings_and_files(finished):
    path = write_page([finished], markdown=True)
    assert path == finished / "report/page.md"
    text = path.read_text(encoding="utf-8")
    assert re.findall("^## (.*)", text, re.MULTILINE) == SECTIONS
    files = re.findall(r"^!\[\S.{20,}\]\((\S+)\)$", text, re.MULTILINE)
    assert len(files) == 9
    assert {path.name for path in path.parent.glob("*.png")} == set(files)
    widths = {line.count("|") for line in re.findall(r"^\| (?:accuracy|log loss) .*", text, re.M)}
    assert widths == {5}


def labels_of(page) -> list[str]:
    return [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]


def test_what_was_measured_once_is_a_number_and_no_plot(tmp_path):
    lines = [*training_lines(1), {"step": 1, "val_loss": 0.75, "val_accuracy": 0.625}]
    page = page_of(write_run(tmp_path / "r", lines, METRICS))
    assert not any("against step" in label for label in labels_of(page))
    for said in ("Loss: validation0.75001", "Validation accuracy62.5\N{NO-BREAK SPACE}%1"):
        assert said in page.text.replace("\n", "")
    lines = [*training_lines(9), {"step": 9, "val_loss": 0.75, "val_accuracy": 0.625}]
    page = page_of(write_run(tmp_path / "s", lines, METRICS))
    assert "points: validation" in page.text and "best, step" not in page.text
    assert not any(label.startswith("Validation accuracy") for label in labels_of(page))


def test_nothing_is_drawn_twice(tmp_path):
    lines = training_lines(60)
    for step in (20, 40, 60):
        loss = 3 - step / 40
        figures = {"val_loss": loss, "val_all_loss": loss, "val_perplexity": math.exp(loss)}
        figures |= {"val_bits_per_byte": loss / math.log(2), "val_response_loss": loss**2}
        figures |= {"val_f1_macro": 0.5, "val_matthews_correlation": 0.25}  # two that do not move
        lines.append({"step": step, **figures})
    page = page_of(write_run(tmp_path / "r", lines, METRICS))
    curves = [label.split(" against")[0] for label in labels_of(page) if " against step" in label]
    assert len(curves) == len({*curves})
    assert {"Loss", "Validation response loss", "Tokens a second"} <= {*curves}
    assert {"Validation f1 macro", "Validation matthews correlation"} <= {*curves}
    twice = {"Validation all loss", "Validation perplexity", "Validation bits per byte"}
    assert not {*twice, "Rows a second"} & {*curves}
    for name in twice:
        assert f"{name.lower()} is the same curve" in page.text


def test_of_two_tokenizers_each_unit_is_drawn(tmp_path):
    """Nats a token and a character go up and down together in each run, and not between them."""
    runs = []
    for name, characters in (("a", 3.3), ("b", 3.0)):
        losses = [(step, 3 - step / 40) for step in (20, 40, 60)]
        lines = [
            {"step": s, "val_loss": x, "val_nats_per_char": x / characters, "val_twice": 2 * x}
            for s, x in losses
        ]
        runs.append(write_run(tmp_path / name, [*training_lines(60), *lines], METRICS))
    page = page_of(*runs, output=tmp_path / "both.html")
    curves = {label.split(" against step")[0] for label in labels_of(page)}
    assert "Validation nats per char" in curves and "Validation twice" not in curves


@pytest.mark.parametrize(
    ("primary", "first"),
    [("response_loss", "response loss"), ("loss", "log loss"), ("accuracy", "accuracy")],
)
def test_the_figure_that_decides_stands_first(tmp_path, primary, first):
    metrics = METRICS | {"primary": primary, "response_loss": 1.5, "response_loss_ci95": [1.4, 1.6]}
    page = page_of(write_run(tmp_path / "r", [], metrics))
    tiles = re.findall(r'<div class="tile"><span>([^<]*)</span>', page.source)
    assert tiles[0].startswith(first) and len(tiles) == len({*tiles}) <= 4


def test_a_worst_row_shows_what_the_model_read(tmp_path):
    folder = write_run(tmp_path / "r", [], METRICS)
    row = {"id": "1", "label": "A", "loss": 2, "text": {"review": "read, and not this"}}
    row["read"] = {"text, as read": "[CLS] read, [SEP]"}
    (folder / "test/analysis/worst_rows.jsonl").write_text(json.dumps(row))
    page = page_of(folder)
    assert "[CLS] read, [SEP]" in page.text and "and not this" not in page.text


def test_escaped_text_reads_as_it_was():
    assert escaped("65.8 % of a_b | c") == r"65.8 % of a\_b \| c"
    assert escaped("1. x") == r"1\. x" and escaped("+++") == r"\+++"
    assert escaped("a\n# b") == r"a \# b"


def test_tasks_of_a_suite_are_listed(tmp_path):
    folder = write_run(tmp_path / "suite", [], status="finished")
    (folder / "test/metrics").rmdir()
    for task, score in (("RTE", 0.57), ("MRPC", 0.81)):
        (folder / task / "test/metrics").mkdir(parents=True)
        metrics = {"n": 277, "accuracy": score, "accuracy_ci95": [score - 0.05, score + 0.05]}
        (folder / task / "test/metrics/metrics.json").write_text(json.dumps(metrics))
    text = page_of(folder).text
    assert text.index("MRPC") < text.index("RTE") and "57.0" in text


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        write_page([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="no run folder"):
        write_page([tmp_path])


def test_a_long_run_has_a_small_page_soon(tmp_path):
    lines = training_lines(10_000)
    lines += [{"step": step, "val_loss": 0.7} for step in range(50, 10_001, 50)]
    folder = write_run(tmp_path / "r", lines, METRICS)
    write_predictions(folder, classified(["A", "B", "tie"], 5000))
    started = time.perf_counter()
    path = write_page([folder])
    assert time.perf_counter() - started < 15
    assert path.stat().st_size < 1_000_000


def test_bins_keep_the_mean_and_the_extremes():
    y = np.random.default_rng(0).normal(size=6000)
    y[60:70] = np.nan
    x, mean, low, high = plots.binned(np.arange(6000.0), y, 600)
    assert len(x) == 600 and x[0] == 4.5
    assert np.isnan(mean[6]) and np.isnan(low[6])
    assert np.nanmax(high) == np.nanmax(y) and np.nanmin(low) == np.nanmin(y)
    assert np.allclose(mean[0], y[:10].mean())


def test_smoothing_has_no_weight_on_a_start_value():
    assert np.allclose(plots.smoothed(np.full(200, 3.0)), 3.0)
    gap = plots.smoothed(np.array([1.0, np.nan, 1.0] * 50))
    assert np.isnan(gap[1]) and np.allclose(gap[np.isfinite(gap)], 1.0)


def test_a_spike_does_not_flatten_a_curve():
    y = np.r_[np.linspace(2, 1, 999), 1e6]
    curve = plots.Curve("loss", np.arange(1000.0), y, kind="smoothed")
    low, high, outside = plots.y_range([curve])
    assert high < 2.1 and outside >= 1
