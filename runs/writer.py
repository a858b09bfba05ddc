"""One thread that writes while the next steps are computed, one job at a time.

writer.submit(lambda proceed: write(…))     # proceed() raises Abandoned: ask it now and then
writer.done                                 # whether the job has ended well
result = writer.join(hurried)               # what the job returned, or its error, once
"""

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 4.0  # seconds for which a hurried one waits for the job, and one more for its thread


class Abandoned(Exception):
    """Nobody waits for this job any more."""


class Writer:
    def __init__(self, failed: Callable[[], object]):
        """failed: called by the thread when a job has ended with an error."""
        self.failed = failed
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[Callable[[], None]], Any]) -> None:
        """Begin the job; the one before must have been joined."""
        if self._thread is not None:
            raise RuntimeError("the job before was not joined")
        abandoned, outcome = threading.Event(), {}

        def proceed() -> None:
            if abandoned.is_set():
                raise Abandoned

        def work() -> None:
            try:
                outcome["result"] = job(proceed)
            except BaseException as error:
                outcome["error"] = error
                if not abandoned.is_set():
                    self.failed()

        self._abandoned, self._outcome = abandoned, outcome
        self._thread = threading.Thread(target=work, name="checkpoint writer", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._thread is not None and "result" in self._outcome

    def join(self, hurried: Callable[[], bool] = lambda: False) -> Any:
        """The job's result, once it has ended; None where there is no job. Its error is raised.

        hurried: asked while the job goes on. PATIENCE seconds after it first said yes the job is
        abandoned: that raises Abandoned here, too.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return None
        limit = None
        while thread.is_alive():
            thread.join(0.05)
            if limit is None and hurried():
                limit = time.monotonic() + PATIENCE
            if limit is not None and time.monotonic() > limit and thread.is_alive():
                self._abandoned.set()
                thread.join(1.0)  # most notice it at once
                raise Abandoned
        if error := self._outcome.get("error"):
            raise error
        return self._outcome["result"]
