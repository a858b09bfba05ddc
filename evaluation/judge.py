"""A language model behind an HTTP interface as a judge: one question, one reply.

    backend = Gemini("gemini-2.5-flash")            # key: GEMINI_API_KEY
    backend = OpenAI("llama3", "http://localhost:11434/v1")     # key, where needed: OPENAI_API_KEY
    ask(backend, score_question(answer)).score      # 0 to 100, or None

The key comes from the environment and travels in a header; it is in no address, file, log or error.
"""

import abc
import json
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evaluation.questions import Question
from evaluation.waits import told_wait

ATTEMPTS = 6  # of a request that fails; the waits between them double
LONGEST_WAIT_SECONDS = 60.0  # where the server does not say how long
OUTPUT_TOKENS = 2048  # a judge that thinks aloud needs them before its number
# 429 says "too many" also where no waiting helps: OpenAI's codes.
NO_CREDIT = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")
# Codes of errors that another question would not get.
QUESTION_ERRORS = ("context_length_exceeded", "string_above_max_length", "content_filter")
_TOO_LONG = re.compile(
    r"context (?:length|window|size)|(?:prompt|input|request)\b.{0,40}\btoo (?:long|large)"
    r"|input token count.{0,40}exceeds",
    re.IGNORECASE,
)


class Refused(ValueError):
    """The server will not do it, however often it is asked (a wrong key, model or address)."""


class Unreachable(ConnectionError):
    """No usable reply after all attempts; what was scored is kept."""


class Stopped(Exception):
    """Another question ended the evaluation."""


class Reply(NamedTuple):
    """What the judge said to one question; score: None where that was no answer to it."""

    score: int | None
    text: str  # fit to be shown


# ----------------------------------------------------------------------------- back ends


class Backend(abc.ABC):
    """A model behind HTTP: where to, with which header, what to send, where the text is.

    fields: of the body that is posted, in place of ours or beside them; None: a field that the
    server must not get.
    """

    kind: str
    key_name: str
    fixed: tuple[str, ...]  # fields that are set elsewhere

    def __init__(self, model: str, site: str, needs_key: bool, fields: Mapping | None):
        parts = urllib.parse.urlsplit(site)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"--url: expected http:// or https:// and a host, not {parts.scheme!r}"
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(f"--url: no keys in the address; {self.key_name} in the environment")
        self.model, self.site, self.fields = model, site.rstrip("/"), dict(fields or {})
        if taken := [name for name in self.fixed if name in self.fields]:
            raise ValueError(f"--fields: {taken[0]} cannot be set there (see --judge_model)")
        self._key = os.environ.get(self.key_name, "").strip()
        if needs_key and not self._key:
            raise ValueError(f"the judge {self.kind} needs its key in {self.key_name}")
        if not re.fullmatch(r"[!-~]*", self._key):  # a header could not carry it
            raise ValueError(f"{self.key_name} is no key: it has spaces or other characters in it")

    def __repr__(self) -> str:  # never the key
        fields = f", {json.dumps(self.fields, sort_keys=True)}" if self.fields else ""
        return f"{self.kind}({self.model!r}, {self.site!r}{fields})"

    def hide(self, text: str) -> str:
        """Text of the server, fit to be shown: one line, no control characters, no key."""
        text = "".join(c if c.isprintable() else " " for c in text)
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:200]} … {text[-100:]}"

    def request(self, question: Question, seed: int) -> dict:
        """What is posted, as JSON."""
        return _merged(self.body(question, seed), self.fields)

    @abc.abstractmethod
    def address(self) -> str:
        """Where questions are posted."""

    @abc.abstractmethod
    def headers(self) -> dict[str, str]:
        """The key, and nothing else."""

    @abc.abstractmethod
    def body(self, question: Question, seed: int) -> dict:
        """What is posted where --fields say nothing else."""

    @abc.abstractmethod
    def text(self, reply: dict) -> str:
        """The model's words; raises KeyError, IndexError, TypeError where there are none."""

    @abc.abstractmethod
    def finish_reason(self, reply: dict) -> str:
        """Why the model stopped; raises as `text`."""


def _merged(body: dict, fields: Mapping[str, Any]) -> dict:
    """The body with these fields, inside dictionaries as well; None takes one out."""
    body = dict(body)
    for name, value in fields.items():
        if value is None:
            body.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(body.get(name), dict):
            body[name] = _merged(body[name], value)
        else:
            body[name] = value
    return body


class Gemini(Backend):
    """Google's REST interface, models/<model>:generateContent, with a schema for the reply."""

    kind, key_name, fixed = "gemini", "GEMINI_API_KEY", ("contents",)

    def __init__(
        self,
        model: str,
        site: str = "https://generativelanguage.googleapis.com/v1beta",
        fields: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, site, True, fields)

    def address(self) -> str:
        return f"{self.site}/models/{urllib.parse.quote(self.model, safe='')}:generateContent"

    def headers(self) -> dict[str, str]:
        return {"x-goog-api-key": self._key}

    def body(self, question: Question, seed: int) -> dict:
        kind = question.kind
        return {
            "contents": [{"role": "user", "parts": [{"text": question.text}]}],
            "generationConfig": {
                "temperature": 0,
                "seed": seed,
                "maxOutputTokens": OUTPUT_TOKENS,
                "responseMimeType": "application/json",
                "responseSchema": {
                    "type": "object",
                    "properties": {kind.field: kind.schema},
                    "required": [kind.field],
                },
            },
        }

    def text(self, reply: dict) -> str:
        parts = reply["candidates"][0]["content"]["parts"]
        return "".join(part["text"] for part in parts if not part.get("thought"))

    def finish_reason(self, reply: dict) -> str:
        return reply["candidates"][0]["finishReason"]


class OpenAI(Backend):
    """Chat completions, as OpenAI, Ollama, vLLM and llama.cpp serve them."""

    kind, key_name, fixed = "openai", "OPENAI_API_KEY", ("messages", "model")

    def __init__(
        self,
        model: str,
        site: str = "https://api.openai.com/v1",
        fields: Mapping[str, Any] | None = None,
    ):
        is_theirs = urllib.parse.urlsplit(site).hostname == "api.openai.com"
        super().__init__(model, site, is_theirs, fields)

    def address(self) -> str:
        return f"{self.site}/chat/completions"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def body(self, question: Question, seed: int) -> dict:
        messages = [{"role": "user", "content": question.text}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "seed": seed}
        if "max_completion_tokens" in self.fields:  # newer models refuse the older name
            return body
        return body | {"max_tokens": OUTPUT_TOKENS}

    def text(self, reply: dict) -> str:
        content = reply["choices"][0]["message"]["content"]
        if isinstance(content, list):  # in parts, thoughts apart
            content = "".join(part["text"] for part in content if part["type"] == "text")
        return content

    def finish_reason(self, reply: dict) -> str:
        return reply["choices"][0]["finish_reason"]


# ------------------------------------------------------------------------------- asking


class Pause:
    """What the threads that ask have in common: until when none asks, and whether to stop.

    A server that asks one of them to wait means all.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.say, self._until, self._lock = say, 0.0, threading.Lock()
        self.stopped = threading.Event()

    def hold(self, seconds: float, why: str) -> None:
        with self._lock:
            now = time.monotonic()
            if seconds >= 5 and now >= self._until:
                self.say(f"judge: waiting {_rounded(seconds)} s, as the server asks ({why[:100]})")
            self._until = max(self._until, now + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """So long, and until all may ask; raises Stopped."""
        end = time.monotonic() + seconds
        while (left := max(end, self._until) - time.monotonic()) > 0:
            if self.stopped.wait(left):
                break
        if self.stopped.is_set():
            raise Stopped


def ask(
    backend: Backend,
    question: Question,
    seed: int = 0,
    timeout_seconds: float = 60.0,
    max_wait_seconds: float = 600.0,
    first_wait_seconds: float = 1.0,
    pause: Pause | None = None,
) -> Reply:
    """What the judge says to one question, scored or not.

    A broken connection, a timeout and the statuses 408, 425 and 5xx are tried again, ATTEMPTS times
    in total. Where the server says how long to wait (see waits.py), or that there are too many
    questions (429), it is waited for, `max_wait_seconds` in total. A question that is too long for
    the judge, or that its filter stops, is unscored. Raises Unreachable when waiting does not help,
    Refused for any other error of the server.
    """
    import requests

    def sign(request: Any) -> Any:  # as requests' own hook: else a ~/.netrc would replace the key
        request.headers.update(backend.headers())
        return request

    pause = pause or Pause()
    waited, failures, refusals = 0.0, 0, 0
    while True:
        pause.wait()
        told, busy = None, False
        try:
            reply = requests.post(
                backend.address(),
                json=backend.request(question, seed),
                auth=sign,
                timeout=timeout_seconds,
                allow_redirects=False,  # the key is for this server only
            )
        except requests.RequestException as error:
            problem = type(error).__name__
        else:
            status = reply.status_code
            if status == 200:
                return _read_reply(backend, question, reply)
            problem = f"HTTP {status}: {backend.hide(_message(reply))}"
            busy = status == 429
            is_final = status not in (408, 425, 429) and status < 500
            if is_final and _is_of_question(reply):
                return Reply(None, problem)
            if is_final or _has_no_credit(reply):
                hint = _field_hint(backend, problem) if status in (400, 422) else ""
                raise Refused(f"{backend.kind} at {backend.site} says {problem}{hint}")
            told = told_wait(reply.headers, reply.text, has_quota=busy)
        kept = "What has been scored is kept: the same command continues"
        if not (told or busy):
            failures += 1
            if failures == ATTEMPTS:
                raise Unreachable(
                    f"{backend.kind} at {backend.site}: no reply in {ATTEMPTS} attempts, the last: "
                    f"{problem}. {kept}"
                )
            pause.wait(min(first_wait_seconds * 2 ** (failures - 1), LONGEST_WAIT_SECONDS))
            continue
        doubled = first_wait_seconds * 2 ** min(refusals, 30)
        seconds = max(told, first_wait_seconds) if told else min(doubled, LONGEST_WAIT_SECONDS)
        refusals += 1
        if waited + seconds > max_wait_seconds:
            raise Unreachable(
                f"{backend.kind} at {backend.site} asks to wait {_rounded(seconds)} s, after "
                f"{_rounded(waited)} s of waiting; --max_wait_seconds is "
                f"{_rounded(max_wait_seconds)}: {problem}. {kept}"
            )
        waited += seconds
        pause.hold(seconds, problem)
        pause.wait(seconds)


def _rounded(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.3g}"


def _read_reply(backend: Backend, question: Question, reply: Any) -> Reply:
    try:
        content = reply.json()
        text = backend.text(content)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Reply(None, backend.hide(reply.text) or "(an empty reply)")
    score, shown = question.kind.parse(text), backend.hide(str(text or "")) or "(no text)"
    if score is None:
        try:
            reason = str(backend.finish_reason(content))
        except (KeyError, IndexError, TypeError, AttributeError):
            reason = ""
        if reason.lower() in ("length", "max_tokens"):
            shown += " (cut off at its limit of tokens: a higher one with --fields)"
    return Reply(score, shown)


def _error_of(reply: Any) -> dict:
    """The object `error` of a JSON reply, {} where there is none."""
    try:
        content = reply.json()
    except ValueError:
        return {}
    content = content[0] if isinstance(content, list) and content else content
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else {}


def _message(reply: Any) -> str:
    """What a server says about an error: its message, else all that it sent."""
    message = _error_of(reply).get("message")
    return message if isinstance(message, str) and message.strip() else reply.text


def _is_of_question(reply: Any) -> bool:
    """Whether an error is about the length or the content of this question alone."""
    codes = (_error_of(reply).get("code"), _error_of(reply).get("type"))
    known = any(code in QUESTION_ERRORS for code in codes if isinstance(code, str))
    return reply.status_code == 413 or known or bool(_TOO_LONG.search(_message(reply)))


def _has_no_credit(reply: Any) -> bool:
    error = _error_of(reply)
    return reply.status_code == 429 and any(
        error.get(name) in NO_CREDIT for name in ("code", "type")
    )


def _field_hint(backend: Backend, problem: str) -> str:
    """How to leave out the field of ours that a refusal names; "" where it names none."""

    def named(body: dict) -> dict | None:
        for name, value in body.items():
            if isinstance(value, dict) and (inner := named(value)):
                return {name: inner}
            if name not in backend.fixed and re.search(rf"\b{re.escape(name)}\b", problem):
                return {name: None}
        return None

    fields = named(backend.request(Question(""), 0))
    if fields == {"max_tokens": None}:
        fields = {"max_completion_tokens": OUTPUT_TOKENS}
    return f" (--fields '{json.dumps(fields)}' sends it otherwise)" if fields else ""
