"""One rank of two raises, without torchrun to end the other: it ends within a minute.

All runs wait at the same time: some of them for seconds.
"""

import contextlib
import socket
import time
from pathlib import Path

import forked
import pytest
from conftest import environment

SCRIPT = Path(__file__).parent / "failing_rank.py"
ONE_OF_TWO = "a rank of two"
PLACES = {  # (where, rank): what it says
    ("step", 0): ONE_OF_TWO,
    ("step", 1): ONE_OF_TWO,
    ("loader worker", 1): ONE_OF_TWO,
    ("evaluation", 1): ONE_OF_TWO,
    ("rank 0 first", 0): "rank 0 failed while the others waited",
    ("from rank 0", 0): ONE_OF_TWO,
    ("on rank 0", 0): ONE_OF_TWO,
    ("before they meet", 1): ONE_OF_TWO,
}
SLOW = ("slow rank 0", 0)  # for five seconds: longer than the store's own wait is silent


@pytest.fixture(scope="module")
def ended(one_layer_bert, pair_csv, cache_folder, tmp_path_factory) -> dict:
    """(where, rank) → exit codes of both ranks, their log, seconds from one end to the other."""
    running, ends = {}, {}
    with contextlib.ExitStack() as stack:
        for place, rank in (SLOW, *PLACES):
            folder = tmp_path_factory.mktemp("failing")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            shared |= {"FAILS_AT": place, "FAILING_RANK": str(rank)}
            words = [str(SCRIPT), f"--model={one_layer_bert}", f"--data={pair_csv}"]
            words += ["--max_length=32", "--batch=16", "--epochs=1", "--page=false"]
            words += [f"--out={folder / 'run'}"]
            words += ["--workers=1"] if place == "loader worker" else []
            with open(folder / "log.txt", "w") as file:
                both = [
                    forked.Process(words, environment(**shared, RANK=n, LOCAL_RANK=n), file, file)
                    for n in ("0", "1")
                ]
            for each in both:
                stack.callback(each.kill)
            running[place, rank] = (both, folder / "log.txt")
        until = time.monotonic() + 240
        while len(ends) < 2 * len(running) and time.monotonic() < until:
            for name, (both, _) in running.items():
                for number, each in enumerate(both):
                    if each.poll() is not None:
                        ends.setdefault((*name, number), time.monotonic())
            time.sleep(0.1)
    return {
        name: (
            [each.returncode for each in both],
            log.read_text(),
            abs(ends.get((*name, 0), until) - ends.get((*name, 1), until)),
        )
        for name, (both, log) in running.items()
    }


@pytest.mark.parametrize(("place", "rank"), PLACES)
def test_the_other_ends_within_a_minute(place, rank, ended):
    codes, log, seconds = ended[place, rank]
    assert seconds < 60 and 0 not in codes, log
    assert PLACES[place, rank] in log


def test_waiting_for_rank_0_says_nothing(ended):
    codes, said, _ = ended[SLOW]
    assert codes == [0, 0] and "waitForInput" not in said and "timed out" not in said, said
