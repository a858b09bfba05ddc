"""One rank of two raises, without torchrun to end the other: both end within a minute."""

import socket
import time
from pathlib import Path

import forked
import pytest
from conftest import environment

SCRIPT = Path(__file__).parent / "failing_rank.py"


@pytest.mark.parametrize(
    ("place", "rank", "said"),
    [
        ("step", 0, "a rank of two"),
        ("step", 1, "a rank of two"),
        ("loader worker", 1, "a rank of two"),
        ("evaluation", 1, "a rank of two"),
        ("rank 0 first", 0, "rank 0 failed while the others waited"),
        ("from rank 0", 0, "a rank of two"),
        ("on rank 0", 0, "a rank of two"),
        ("before they meet", 1, "a rank of two"),
    ],
)
def test_both_end_within_a_minute(place, rank, said, tiny_bert, pair_csv, cache_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"FAILS_AT": place, "FAILING_RANK": str(rank)}
    words = [str(SCRIPT), f"--model={tiny_bert}", f"--data={pair_csv}", "--max_length=32"]
    words += ["--batch=16", "--epochs=1", "--page=false", f"--out={tmp_path / 'run'}"]
    words += ["--workers=1"] if place == "loader worker" else []
    log = tmp_path / "log.txt"
    started = time.monotonic()
    with open(log, "w") as file:
        both = [
            forked.Process(words, environment(**shared, RANK=n, LOCAL_RANK=n), file, file)
            for n in ("0", "1")
        ]
    try:
        codes = [each.wait(60) for each in both]
    finally:
        for each in both:
            each.kill()
    assert time.monotonic() - started < 60
    assert 0 not in codes, log.read_text()
    assert said in log.read_text()


def test_waiting_for_rank_0_says_nothing(tiny_bert, pair_csv, cache_folder, tmp_path):
    """For five seconds: longer than the store's own wait is silent."""
    words = [str(SCRIPT), f"--model={tiny_bert}", f"--data={pair_csv}", "--max_length=32"]
    words += ["--batch=16", "--epochs=1", "--page=false", f"--out={tmp_path / 'run'}"]
    env = environment(FAILS_AT="slow rank 0", FAILING_RANK="0")
    code, _, said = forked.run_ranks(words, env, 2, tmp_path / "log", 120)
    assert code == 0 and "waitForInput" not in said and "timed out" not in said, said
