"""bench.py: every row can be run, and a ratio without equal losses is void."""

import importlib

import pytest

import bench
import benchmarks


@pytest.mark.parametrize("name", bench.ROWS)
def test_every_row_has_two_sides_or_does_it_all(name):
    row = importlib.import_module(f"benchmarks.{name}")
    assert f"python bench.py {name}" in row.__doc__
    assert hasattr(row, "run") or (callable(row.ours) and callable(row.peer))


def pair(ours: float, peer: float, losses=(2.0, 2.0)) -> dict:
    found = zip(("ours", "peer"), (ours, peer), losses, strict=True)
    return {
        side: {"tokens_per_second": rate, "loss": loss, "peak_memory_gib": 1 + (side == "peer")}
        for side, rate, loss in found
    }


def test_a_summary_is_the_median_of_neighbours():
    pairs = [pair(10, 10), pair(30, 10), pair(40, 20)]
    text = bench.summary("row", pairs, "tokens_per_second", 0.1)
    assert text.startswith("row: 2.00 times the tokens per second (1.00 to 3.00 in 3 pairs)")
    assert "0.50 times the peak memory" in text
    text = bench.summary("row", [pair(10, 10, (2.0, 2.2))], "tokens_per_second", 0.1)
    assert text.startswith("VOID, the losses do not agree")


def test_rates_leave_the_warm_up_out(tmp_path):
    import json

    (tmp_path / "train/metrics").mkdir(parents=True)
    lines = [
        {"step": s, "train_loss": float(s), "seconds": 10.0 * (s <= 3) + s, "tokens": 5 * s}
        for s in range(1, 9)
    ]
    lines = [line | {"examples": line["step"]} for line in lines] + [{"step": 8, "val_loss": 1}]
    lines[2]["seconds"] = 3.0  # where the counted steps begin
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "train/metrics/metrics.jsonl").write_text(text)
    found = benchmarks.rates_of_run(tmp_path)
    assert found == {"tokens_per_second": 5.0, "examples_per_second": 1.0, "loss": 6.0}
