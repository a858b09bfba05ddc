"""How long a server asks to wait, in the ways that servers say it.

told_wait(reply.headers, reply.text, has_quota=True)     # 34.07 seconds; None: it does not say
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)\s*d(?:ays?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*h(?:ours?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*m(?:in(?:utes?)?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*s(?:ec(?:onds?)?)?)?\s*"
    r"(?:(\d+(?:\.\d+)?)\s*ms)?"
)
_IN_WORDS = re.compile(r"(?:retry|try again) (?:in|after) ([\d.]+ ?[a-z][\d.a-z]*)", re.IGNORECASE)
_RESET = re.compile(r"(?:x-)?rate-?limit-reset(-[a-z-]+)?")


def told_wait(headers: Mapping[str, str], body: str, has_quota: bool) -> float | None:
    """Seconds until a question may be asked again; None where the server does not say.

    has_quota: the reply is about a quota (429), so that what it says of quotas is the reason; some
    servers say that in each reply.

    In this order: retry-after-ms (OpenAI, Azure); Retry-After, seconds or a date (RFC 9110,
    10.2.3); retryDelay of a google.rpc.RetryInfo in the body; x-ratelimit-reset, x-ratelimit-reset-
    requests, -tokens, -after … (of what is used up, where it is said what is); "try again in 20s"
    in the text.
    """
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    for wait in (_until(headers.get("retry-after", ""), headers), _retry_info(body)):
        if wait is not None:
            return wait
    if not has_quota:
        return None
    resets, used_up = [], []
    for name, value in headers.items():
        match = _RESET.fullmatch(name)
        seconds = _until(value, headers) if match else None
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
    days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds + milliseconds / 1000


def _until(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds that are said, or until a time that is: a date, or a large number, which counts the
    seconds or milliseconds since 1970."""
    seconds = _seconds(text)
    if seconds is not None and seconds < 1e9:
        return seconds
    then = _time_of(text) if seconds is None else seconds
    if then is None:
        return None
    now = _time_of(headers.get("date", ""))  # by the server's own clock
    return max(0.0, (then / 1000 if then > 1e11 else then) - (time.time() if now is None else now))


def _time_of(text: str) -> float | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = read(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None


def _retry_info(body: str) -> float | None:
    try:
        delays = list(_values(json.loads(body), "retryDelay"))
    except (ValueError, RecursionError):
        return None
    for delay in delays:
        if isinstance(delay, (str, int, float)):
            return _seconds(str(delay))
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
