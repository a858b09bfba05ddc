"""--notify URL: a JSON line for each run that fails, diverges or collapses, and for the end."""

import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import console

SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)


@dataclass
class Notices:
    """Posts to `url`, whose path may itself be a secret and is said nowhere; None: to nobody."""

    url: str | None
    sweep: str  # the name of its folder

    def post(self, event: str, text: str, **facts: Any) -> None:
        """event: failed, diverged, collapsed … of a run, or ended. `text` is what Slack shows,
        `content` Discord. A post that fails is a warning."""
        if self.url is None:
            return
        text = f"{self.sweep}: {text}"
        line = {"event": event, "sweep": self.sweep, "host": socket.gethostname(), **facts}
        line |= {"text": text, "content": text}
        line = {name: without_secrets(v) if isinstance(v, str) else v for name, v in line.items()}
        request = urllib.request.Request(
            self.url,
            data=json.dumps(line).encode() + b"\n",
            headers={"Content-Type": "application/json", "User-Agent": "ablate"},
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except (OSError, ValueError) as error:  # HTTPError, too
            where = urllib.parse.urlsplit(self.url).hostname
            why = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            console.say(f"warning: --notify: {where} was not told that {event}: {why}")


def refusal_of(url: str) -> str:
    """What is wrong with an address; "" where nothing is."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    return "" if good else "--notify: expected http://… or https://…"


def without_secrets(text: str) -> str:
    """Without the values of keys in the environment, and without what an address says of who asks:
    user, password and query."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 6:
            text = text.replace(value, f"<{name}>")
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1", text)
    text = re.sub(r"(\w+://[^\s?]+)\?\S*", r"\1", text)
    # as services write their keys, also those that are not in this environment
    return re.sub(r"\b(hf_|sk-|ghp_|gho_|xox[abp]-|AIza|AKIA)[\w-]{8,}", r"\1…", text)
