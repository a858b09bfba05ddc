"""How long servers ask to wait, in the words that they use."""

import time
from email.utils import formatdate

import pytest

from evaluation.waits import told_wait


@pytest.mark.parametrize(
    "headers, body, seconds",
    [
        ({"Retry-After": "7"}, "", 7),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, "", 0.25),
        ({}, '{"error": {"details": [{"a": 1}, {"retryDelay": "34.07s"}]}}', 34.07),
        ({}, '[{"error": {"details": [{"retryDelay": {"seconds": 3, "nanos": 500000000}}]}}]', 3.5),
        ({"x-ratelimit-reset-requests": "120ms"}, "", 0.12),
        ({"X-RateLimit-Reset": "30"}, "", 30),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-reset-requests": "1s"}, "", 1),
        (
            {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-reset-requests": "1s"}
            | {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "3"},
            "",
            360,
        ),
        ({"x-ratelimit-reset-requests-day": "1d2h3m"}, "", 93780),
        ({}, "Rate limit reached. Please try again in 1m30.5s.", 90.5),
        ({}, "Please retry after 2 minutes", 120),
        ({"Retry-After": "soon"}, "{", None),
        ({"Retry-After": "-3"}, "[" * 100_000, None),
    ],
)
def test_seconds(headers, body, seconds):
    assert told_wait(headers, body, has_quota=True) == pytest.approx(seconds)


def test_dates_are_read_by_the_clock_of_the_server():
    def date(seconds: float) -> str:
        return formatdate(time.time() + seconds, usegmt=True)

    found = told_wait({"Retry-After": date(90), "Date": date(-100)}, "", has_quota=False)
    assert found == pytest.approx(190, abs=1)
    assert told_wait({"Retry-After": date(90)}, "", has_quota=False) == pytest.approx(90, abs=1.5)
    assert told_wait({"Retry-After": date(-90)}, "", has_quota=False) == 0
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 40))
    for until in (iso, str(int(time.time() + 40)), str(int(1000 * time.time() + 40_000))):
        found = told_wait({"x-ratelimit-reset": until}, "", has_quota=True)
        assert found == pytest.approx(40, abs=1.5)
    # RFC 9110 has three forms of one date
    headers = {"Date": "Sun, 06 Nov 1994 08:49:30 GMT"}
    for text in ("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"):
        assert told_wait(headers | {"Retry-After": text}, "", has_quota=False) == 7
    headers["Retry-After"] = "Sun Nov  6 08:49:37 1994"
    assert told_wait(headers, "", has_quota=False) == 7


def test_what_each_reply_says_of_quotas_is_no_reason_of_other_errors():
    headers = {"x-ratelimit-reset-requests": "8s"}
    assert told_wait(headers, "", has_quota=False) is None
    assert told_wait(headers | {"Retry-After": "2"}, "", has_quota=False) == 2
