"""report.py site in a headless Chromium (apt-get install chromium): keys, widths, size, speed."""

import functools
import http.server
import json
import math
import random
import statistics
import threading

import pytest
import yaml
from browser import Browser
from run_folders import classifier, write_run

import report

IMAGE = "<img src=x onerror=document.title=1>"
WIDTHS = (390, 800, 1400)
STATUS = "document.getElementById('status').textContent"
NAMES = "[...document.querySelectorAll('#table tbody th')].map(e => e.textContent)"
SORT = """(() => {
    const button = document.querySelectorAll('#table thead button')[%d];
    document.body.offsetHeight;
    const start = performance.now();
    button.click();
    document.body.offsetHeight;
    return performance.now() - start;
})()"""


def make_run(folder, number, seed, steps, **facts):
    """A run whose losses fall, with three figures of validation."""
    draw = random.Random(100 * number + seed)
    strength = 0.8 + 0.06 * (number % 17)
    rows = classifier(150, strength, 10 * number + seed)
    right = sum(map(str.__eq__, rows["label"], rows["prediction"])) / 150
    ends = {"accuracy_ci95": [right - 0.08, right + 0.08], "log_loss_ci95": [0.5, 0.9]}
    metrics = {"accuracy": right, "log_loss": 0.7 + draw.gauss(0, 0.01), "f1_macro": right - 0.01}
    settings = {"lr": 10.0 ** -(number % 5), "model": ["minilm", "bert"][number % 2]}
    settings |= {"batch": 2 ** (number % 4), "weight_decay": number / 1000}
    write_run(folder, rows, seed=seed, metrics=metrics | ends | {"primary": "log_loss"},
              settings=settings | facts.pop("settings", {}), **facts)  # fmt: skip
    lines = []
    for step in range(1, steps + 1):
        loss = math.exp(-step / 100) + strength / 8 + draw.gauss(0, 0.05)
        lines.append({"step": step, "train_loss": loss, "tokens": 640 * step, "seconds": step / 5})
        if step % (steps // 20) == 0:
            loss += draw.gauss(0, 0.01)
            lines.append({"step": step, "val_loss": loss, "val_accuracy": 1 - loss / 2})
            lines[-1] |= {"val_f1_macro": 1 - loss / 2.1}
    log = folder / "train/metrics/metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The site of 500 runs: 100 settings of five seeds."""
    top = tmp_path_factory.mktemp("many")
    for number in range(100):
        for seed in range(5):
            make_run(top / f"runs/arm_{number:03d}/seed_{seed}", number, seed, 400)
    report.main(["site", str(top / "runs"), "--output", str(top / "site")])
    return top / "site/index.html"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The site of a sweep with a page, and of runs with hostile and with very long names."""
    top = tmp_path_factory.mktemp("few")
    for number, name in enumerate(("base", "other", "third")):
        for seed in range(3):
            make_run(top / f"runs/sweep/{name}/seed_{seed}", number, seed, 100)
    plan = {"arms": {"base": {}, "other": {}, "third": {}}}
    (top / "runs/sweep/sweep.yaml").write_text(yaml.safe_dump(plan))
    page = top / "runs/sweep/base/seed_0/report.html"
    page.write_text("<!DOCTYPE html>\n<title>own</title><script>document.title = 'ran'</script>own")
    hostile = {
        "split_fingerprint": "s2",
        "settings": {"data": "</script><script>alert(1)</script>"},
    }
    make_run(top / "runs" / IMAGE / "seed_0", 5, 0, 100, **hostile)
    make_run(top / "runs" / ("w" * 200) / "seed_0", 6, 0, 100, **hostile)
    report.main(["site", str(top / "runs"), "--output", str(top / "site")])
    return top / "site/index.html"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def test_500_runs_are_small_and_sorted_at_once(many, browser):
    assert many.stat().st_size < 5e6
    browser.open(many)
    browser.click("#view-runs")
    assert browser.run(STATUS).startswith("500 of 500 runs")
    for column in range(8):
        took = [browser.run(SORT % column) for _ in range(5)]
        assert statistics.median(took) < 100, (column, took)
    # all of them, in order, once they are scrolled to
    browser.run("document.querySelector('#table-box button').click()")
    browser.click("#table tbody tr")
    browser.press("End")
    names = browser.run(NAMES)
    assert len(names) == 500 and (names == sorted(names) or names == sorted(names)[::-1])
    assert browser.run("document.activeElement.closest('tr').rowIndex") == 500


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_no_page_is_wider_than_its_window(many, few, browser, width, dark):
    for page in (many, few):
        browser.open(page, width=width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
        browser.click("#choose-all")
        assert browser.run("document.documentElement.scrollWidth") == width
        wide = browser.run(
            "(e => e.scrollWidth > e.clientWidth)(document.querySelector('#table-box'))"
        )
        assert wide or width == 1400
        assert browser.run("document.querySelectorAll('#chart path').length") > 4
        text = browser.run("getComputedStyle(document.body).color")
        ground = browser.run("getComputedStyle(document.documentElement).backgroundColor")
        brightness = [sum(map(int, each.strip("rgb()").split(","))) for each in (text, ground)]
        assert (brightness[0] > brightness[1]) == dark
    assert not browser.said


def test_all_of_it_can_be_done_with_keys(few, browser):
    browser.open(few)
    focused = "document.activeElement"
    seen = []
    for _ in range(12):
        browser.press("Tab")
        seen.append(browser.run(f"{focused}.id || {focused}.textContent || {focused}.type"))
        assert browser.run(f"getComputedStyle({focused}).outlineStyle") != "none", seen
        if seen[-1] == "log_loss":
            break
    assert {"view-arms", "view-runs", "search", "choose-all", "setting"} <= set(seen), seen
    heading = f"{focused}.closest('th').getAttribute('aria-sort')"
    browser.press("Enter")
    assert browser.run(heading) == "ascending"
    rising = browser.run(NAMES)
    browser.press(" ")
    assert browser.run(heading) == "descending" and browser.run(NAMES) == rising[::-1]
    assert browser.run("document.querySelectorAll('[aria-sort=none]').length") > 3
    browser.run("document.querySelector('#choose-none').click()")
    while browser.run(f"{focused}.closest('tbody')?.tagName ?? ''") != "TBODY":
        browser.press("Tab")
    browser.press(" ")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press(" ")
    chosen = "[...document.querySelectorAll('#table tbody tr.chosen')].map(e => e.rowIndex)"
    assert browser.run(chosen) == [1, 3]
    browser.press("ArrowUp")
    assert browser.run(f"{focused}.closest('tr').rowIndex") == 2
    legend = "[...document.querySelectorAll('#legend .name')].map(e => e.textContent)"
    names = browser.run(NAMES)
    assert {name.split(" ×")[0] for name in browser.run(legend)} == {names[0], names[2]}


def test_search_and_filters_choose_lines(many, browser):
    browser.open(many)

    def found(words: str) -> int:
        browser.run("(e => { e.value = ''; e.focus() })(document.querySelector('#search'))")
        browser.write(words)
        return int(browser.run(STATUS).split()[0])

    assert found("arm_01") == 10
    assert found("bert arm_01") == 5 and found("nothing like it") == 0
    assert found("lr = 1e-4") == 20 and found("lr = 1e-4, model=bert") == 10
    assert found("weight_decay >= 0.09") == 10 and found("weight_decay<0.09") == 90
    assert found("model != bert") == 50 and found(" ") == 100
    browser.run("(e => { e.value = '1'; e.dispatchEvent(new Event('change')) })"
                "(document.querySelector('#picks select'))")  # fmt: skip
    assert browser.run(STATUS).startswith("50 of 100")
    browser.click("#choose-none")
    browser.click("#choose-all")
    assert "250 runs chosen" in browser.run(STATUS)
    assert (
        browser.run("document.getElementById('drawn').textContent")
        == "The first 30 of 50 are drawn."
    )


def test_seeds_are_a_band_and_buttons_below_choose_too(few, browser):
    browser.open(few)
    browser.click("#choose-none")
    assert browser.run("document.querySelectorAll('#chart .band').length") == 0
    browser.click("button[data-arm]")
    assert browser.run("document.querySelectorAll('#chart .band').length") == 1
    assert browser.run("document.querySelector('#legend .name').textContent").endswith(" × 3")
    value = browser.run("document.querySelector('#legend .value').textContent")
    mean, low, high = map(float, value.replace("[", "").replace("]", "").replace(",", "").split())
    assert low < mean < high
    browser.click("#bands")
    assert browser.run("document.querySelectorAll('#chart .band').length") == 0
    assert browser.run("document.querySelectorAll('#legend li').length") == 3
    for select in ("figure", "over"):
        for i in range(browser.run(f"document.getElementById('{select}').options.length")):
            browser.run(f"(e => {{ e.selectedIndex = {i}; e.dispatchEvent(new Event('change')) }})"
                        f"(document.getElementById('{select}'))")  # fmt: skip
            assert browser.run("document.querySelectorAll('#chart .curve').length") == 3
    browser.click("#log")
    assert browser.run("document.querySelectorAll('#chart .curve').length") == 3
    assert not browser.said


def test_names_and_settings_of_others_do_nothing(few, browser):
    browser.asked.clear()
    browser.open(few)
    browser.click("#view-runs")
    browser.click("#choose-all")
    assert any(IMAGE in name for name in browser.run(NAMES))
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title") == "runs"
    assert set(browser.asked) == {few.as_uri()}
    [link] = browser.run("[...document.querySelectorAll('#table a')].map(e => e.href)")
    own = few.parent / "pages" / link.split("/")[-1]
    browser.open(own)
    assert browser.run("document.body.textContent.trim()") == "own"
    assert (
        browser.run("document.title") == "own"
        and browser.run("document.compatMode") == "CSS1Compat"
    )
    browser.said.clear()  # it says that a script was not run


def test_a_web_server_serves_it_as_it_is(few, browser):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=few.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        assert browser.run(STATUS).startswith("5 of 5 settings")
        browser.open(few)
        server.shutdown()
