"""run_2_appendprompt.py, in which the rank FAILING_RANK raises at FAILS_AT."""

import datetime
import os
import time

import core
import run_2_appendprompt
import runs
from data.pairs import PairData
from experiments import preference

PLACE, FAILS = os.environ["FAILS_AT"], os.environ["RANK"] == os.environ["FAILING_RANK"]


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("a rank of two")


def main(config: run_2_appendprompt.Config, given: bool) -> None:
    if PLACE == "before they meet":
        core.MEETING = datetime.timedelta(seconds=8)
        fail() if FAILS else None
    if FAILS and PLACE == "step":
        preference.Preference.loss_sum = fail
    elif FAILS and PLACE == "loader worker":
        PairData.collate = fail
    elif FAILS and PLACE == "evaluation":
        preference.Preference.evaluate = fail
    elif PLACE == "slow rank 0":
        load_rows = preference.load_rows

        def slow(config, world, folder):
            with world.rank_0_first():
                time.sleep(5) if FAILS else None
            return load_rows(config, world, folder)

        preference.load_rows = slow
    elif PLACE in ("rank 0 first", "from rank 0", "on rank 0"):
        load_rows = preference.load_rows

        def load(config, world, folder):  # the others wait here for rank 0
            if PLACE == "rank 0 first":
                with world.rank_0_first():
                    fail() if FAILS else None
            elif PLACE == "from rank 0":
                world.from_rank_0(fail() if FAILS else None)
            else:
                world.on_rank_0(fail)
            return load_rows(config, world, folder)

        preference.load_rows = load
    run_2_appendprompt.main(config, given)


if __name__ == "__main__":
    runs.launch(main, run_2_appendprompt.Config)
