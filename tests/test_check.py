"""The check of a new machine: its items on a CPU, and what it makes of those that fail."""

import json

import pytest

from benchmarks import _items, check


@pytest.mark.parametrize("name", ["machine", "masks", "checkpoints"])
def test_items_say_what_they_found(name):
    found = _items.look(name, "cpu", 1)
    assert found.pop("ok") is True and found


def test_an_item_that_raises_is_a_line_like_the_others(monkeypatch):
    def broken(place):
        _items.close("loss", 2.0, 1.0, 1e-4)

    monkeypatch.setitem(_items.ITEMS, "broken", _items.Item(broken, 1))
    found = _items.look("broken", "cpu", 1)
    assert found == {"ok": False, "error": "AssertionError: loss: 2 beside 1"}


def test_one_that_hangs_or_crashes_stops_no_other(monkeypatch, capsys, tmp_path):
    """Each in a process of its own, which knows no item of this name."""
    monkeypatch.setitem(_items.ITEMS, "crashes", _items.Item(lambda place: {}, 10))
    monkeypatch.setitem(_items.ITEMS, "hangs", _items.Item(lambda place: {}, 0))
    monkeypatch.setitem(_items.ITEMS, "of NVIDIA", _items.Item(lambda place: {}, 0, ("cuda",)))
    monkeypatch.setattr(check, "find_device", lambda asked: ("cpu", 1))
    output = tmp_path / "check.jsonl"
    code = check.main(["--items=crashes,hangs,of NVIDIA", f"--output={output}"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [json.loads(line) for line in output.read_text().splitlines()]
    crashed, hung, left_out, verdict = said
    assert code == 1 and verdict["failed"] == ["crashes", "hangs"] and verdict["passed"] == 0
    assert "KeyError" in crashed["error"]
    assert hung["error"] == "not ready after 0 s"
    assert left_out["ok"] is None and left_out["left_out"] == "of NVIDIA's GPUs alone"


@pytest.mark.parametrize(
    ("name", "device", "count", "reason"),
    [
        ("waits", "xpu", 1, "of NVIDIA's GPUs alone"),
        ("waits", "cuda", 1, ""),
        ("speed", "cpu", 1, "of GPUs alone"),
        ("speed", "xpu", 1, ""),
        ("sharded", "cuda", 1, "needs two GPUs"),
        ("sharded", "cuda", 2, ""),
        ("sharded", "cpu", 1, ""),  # two processes
    ],
)
def test_what_a_machine_cannot_show_is_left_out(name, device, count, reason):
    assert check.why_left_out(name, device, count) == reason


def test_all_items_take_about_ten_minutes():
    total = sum(item.seconds for item in _items.ITEMS.values())
    assert 500 <= total <= 700


def test_an_unknown_item_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit):
        check.main(["--items=speeed"])
    assert "expected some of machine, smoke" in capsys.readouterr().err
