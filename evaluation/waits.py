"""How long a server asks to wait, in the ways that servers say it.

told_wait(reply.headers, reply.text)        # 34.07 seconds; None: it does not say
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)\s*h(?:ours?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*m(?:in(?:utes?)?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*s(?:ec(?:onds?)?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*ms)?"
)
_IN_WORDS = re.compile(r"(?:retry|try again) (?:in|after) ([\d.]+ ?[a-z][\d.a-z]*)", re.IGNORECASE)
_RESET = re.compile(r"(?:x-)?ratelimit-reset(-requests|-tokens)?", re.IGNORECASE)


def told_wait(headers: Mapping[str, str], body: str) -> float | None:
    """Seconds until a question may be asked again; None where the server does not say.

    In this order: retry-after-ms (OpenAI, Azure); Retry-After, seconds or a date (RFC 9110,
    10.2.3); retryDelay of a google.rpc.RetryInfo in the body; x-ratelimit-reset-requests and
    -tokens (of what is used up, where it is said what is), x-ratelimit-reset; "try again in 20s" in
    the text.
    """
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    for wait in (_retry_after(headers), _retry_info(body)):
        if wait is not None:
            return wait
    resets, used_up = [], []
    for name, value in headers.items():
        match = _RESET.fullmatch(name)
        seconds = _until(value) if match else None
        if seconds is not None:
            resets.append(seconds)
            if headers.get(name.replace("reset", "remaining")) == "0":
                used_up.append(seconds)
    if resets:
        return max(used_up) if used_up else min(resets)
    words = _IN_WORDS.search(body)
    return _seconds(words[1].rstrip(".")) if words else None


def _seconds(text: str) -> float | None:
    """Of "20", "1.5s", "6m0s", "120ms", "2 minutes"; None for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000


def _until(text: str) -> float | None:
    """As `_seconds`; large numbers are the time itself, in seconds or milliseconds since 1970."""
    seconds = _seconds(text)
    if seconds is None or seconds < 1e9:
        return seconds
    return max(0.0, (seconds / 1000 if seconds > 1e11 else seconds) - time.time())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "")
    seconds, date = _seconds(text), _time_of(text)
    if seconds is not None or date is None:
        return seconds
    now = _time_of(headers.get("date", ""))  # by the server's own clock
    return max(0.0, date - (time.time() if now is None else now))


def _time_of(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _retry_info(body: str) -> float | None:
    try:
        delays = list(_values(json.loads(body), "retryDelay"))
    except (ValueError, RecursionError):
        return None
    for delay in delays:
        if isinstance(delay, str):
            return _seconds(delay)
        if isinstance(delay, dict):
            parts = (delay.get("seconds", 0), delay.get("nanos", 0))
            try:
                return float(parts[0]) + float(parts[1]) / 1e9
            except (TypeError, ValueError):
                return None
    return None


def _values(content: Any, name: str) -> Iterator[Any]:
    """What has this name, anywhere in JSON."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == name:
            yield value
        yield from _values(value, name)
    for value in content if isinstance(content, list) else ():
        yield from _values(value, name)
