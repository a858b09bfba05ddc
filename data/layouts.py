"""Rows of preferences as people have them: which columns hold the texts, and which the winner.

    layout = find_layout("rows.jsonl", ["prompt", "chosen", "rejected"], require_winner=True)
    prompt, first, second = layout.texts(record, repaired)     # lists of turns, None where null
    label, soft = layout.winner_of(record)

A layout belongs to a file: the first row's columns decide. What one row has in another form raises
BadRow. The winner is a word (A, model_a, tie …), a number, one of three columns, or the texts
themselves are called chosen and rejected.
"""

import ast
import contextlib
import difflib
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.records import ROLES, BadRow, short
from data.rows import normalised_text, stable_hash

WINNER_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")  # in the order of the labels
TEXT_COLUMNS = ("prompt", "response_a", "response_b")
CONVERSATIONS = ("conversation_a", "conversation_b")
CHOSEN = ("chosen", "rejected")
PROMPTS = ("prompt", "question", "instruction", "conversations")  # the first that is there
# what stands before and after a prompt in columns of its own, where one of these is the prompt
AROUND = {"prompt": ("system",), "question": ("system",), "instruction": ("system", "input")}
WINNERS = ("winner", "label", "preference", "better_response_id")  # the first that is there
A, B, TIE = 0, 1, 2
KNOWN = (
    "known are: prompt, response_a, response_b, or conversation_a, conversation_b (lists of "
    "messages), each with winner_model_a, winner_model_b, winner_tie (one of them is 1) or with "
    "winner or label (A, B, tie; model_a, model_b; response_a, response_b; 0, 1, 2); and prompt, "
    "chosen, rejected (texts or lists of messages)"
)
NOUNS = ("model", "response", "answer", "assistant", "conversation", "output", "completion")
SIDES = ("response", "answer", "assistant", "output", "completion")  # of text columns
WORDS: dict[str, int] = {
    **{f"{noun} {side}": label for noun in NOUNS for label, side in enumerate("ab")},
    **{"a": A, "b": B},
    **dict.fromkeys(("tie", "draw", "equal", "both", "neither", "both good"), TIE),
    **dict.fromkeys(("tie bothbad", "tie both bad", "bothbad", "both bad"), TIE),
}
Turns = list[str | None]


@dataclass
class Layout:
    """How the rows of one file are read; it remembers what its numbers could mean."""

    source: str
    kind: str  # sides | conversations | chosen
    prompt: str | None  # column, where the texts do not bring it
    winner: str | tuple[str, ...] | None  # column, or one column a class; None: no winners
    around: tuple[str, ...] = ()  # columns that may belong to the prompt, of AROUND
    seen: set[str] = field(default_factory=set)  # columns of the first row, and of `around`
    numbers: dict[int, str] = field(default_factory=dict)  # number of a winner → its first place
    has_words: bool = False  # whether a winner is none
    respelt: dict[str, str] = field(default_factory=dict)  # of `respelt`
    minus_one: Callable[[], str | None] = lambda: None  # a or b; asked where a winner is -1

    # -- texts

    def texts(self, record: dict, repaired: set[str]) -> tuple[Turns, Turns, Turns]:
        """(prompt, first, second): of A and B, or of the chosen and the rejected answer."""
        columns = {"sides": TEXT_COLUMNS[1:], "conversations": CONVERSATIONS}.get(self.kind, CHOSEN)
        prompt = None if self.prompt is None else _cell(record, self.prompt)
        # an answer that looks like a list is one where the prompt is: else it is an answer in JSON
        lists = isinstance(self.winner, tuple) or _is_list(prompt)
        asked: Turns | None = None
        if self.prompt is not None and not (messages := messages_in(prompt, self.prompt, repaired)):
            asked = self._with_around(record, read_turns(prompt, self.prompt, repaired, lists))
        sides = []
        for column in columns:
            cell = _cell(record, column)
            said = messages_in(cell, column, repaired, always=self.prompt is None)
            if said and role_of(said[0]) == "assistant" and self.prompt is not None:
                before = messages if asked is None else _as_messages(asked)
                sides.append(read_messages([*before, *said], column))
            elif said:
                sides.append(read_messages(said, column))
            elif self.prompt is None:
                expected = "a list of messages"
                if self.kind == "chosen":
                    expected += " (or Human: … Assistant: …, or a column prompt)"
                raise BadRow(column, f"expected {expected}, found {short(cell)}")
            elif asked is None:
                before, answered = read_messages(messages, self.prompt)
                sides.append((before, [*answered, *read_turns(cell, column, repaired, lists)]))
            else:
                sides.append((asked, read_turns(cell, column, repaired, lists)))
        (first_asks, first), (second_asks, second) = sides
        for turn, (one, other) in enumerate(zip(first_asks, second_asks, strict=False), start=1):
            if one is not other and normalised_text([one or ""]) != normalised_text([other or ""]):
                problem = f"expected one prompt, found two in turn {turn}"
                raise BadRow("/".join(columns), problem)
        asks = max(first_asks, second_asks, key=len)
        judged = _number(record.get("turn")) if self.kind == "conversations" else None
        if judged == 0:
            raise BadRow("turn", "expected the number of the turn that was judged, from 1, found 0")
        if judged is not None and 1 <= judged < len(asks):
            # MT-bench's: the judge of a first turn has not seen the second, which stands there too
            repaired.add("later_turns")
            return asks[:judged], first[:judged], second[:judged]
        return asks, first, second

    def _with_around(self, record: dict, asked: Turns) -> Turns:
        """system \\n\\n prompt \\n\\n input, the parts that a row has, in the first turn."""
        parts = {name: record.get(name) for name in self.around}
        there = {
            name: text for name, text in parts.items() if isinstance(text, str) and text.strip()
        }
        if not there:
            return asked
        self.seen.update(there)
        first = [there.get("system"), *asked[:1], there.get("input")]
        return ["\n\n".join(part for part in first if part), *asked[1:]]

    # -- the winner

    def winner_of(
        self, record: dict, place: str, required: bool, soft: bool = False
    ) -> tuple[int | None, tuple[float, ...] | None]:
        """(label, None), or (the likeliest label, probabilities of A, B, tie).

        A number is returned unchanged: what it means shows when all rows have been read.
        required: False lets a row have none. soft: the columns may hold probabilities.
        """
        if self.winner is None:
            return None, None
        if isinstance(self.winner, tuple):
            return read_columns(record, self.winner, required, soft)
        value = record.get(self.winner)
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            if required:
                raise BadRow(self.winner, "expected A, B or tie, found a blank")
            return None, None
        number = _number(value)
        if number is not None and -1 <= number <= 2:
            self.numbers.setdefault(number, place)
            return number, None
        if isinstance(value, str):
            self.has_words = True
            word = winner_word(value)
            if word in WORDS:
                return WORDS[word], None
            numbered = re.fullmatch(rf"(?:{'|'.join(NOUNS)}) ([0-2])", word)
            if numbered and self.first_side is not None:
                side = int(numbered[1]) - self.first_side
                if side in (A, B):
                    return side, None
            names = [record.get("model_a"), record.get("model_b")]
            if names.count(value) == 1:  # the winner by its name
                return names.index(value), None
        if not required:  # another column of that name
            return None, None
        raise BadRow(
            self.winner,
            f"expected A, B or tie (model_a, response_b, …), or 0, 1, 2, found {short(value)}",
        )

    @property
    def first_side(self) -> int | None:
        """The number of A where answers have numbers, 1 of response_1 and response_2; None where
        they have none."""
        second = [column for column, name in self.respelt.items() if name == TEXT_COLUMNS[2]]
        number = second[0].strip()[-1:] if second else ""
        return int(number) - 1 if number.isdecimal() else None

    @property
    def has_tie_column(self) -> bool:
        return isinstance(self.winner, tuple) and WINNER_COLUMNS[TIE] in self.winner

    def meaning(self) -> dict[int, int]:
        """number → label, of all numbers that the rows have; ValueError where they could mean
        several things."""
        there = set(self.numbers)
        if self.first_side == 1 and there <= {1, 2} and not self.has_words:
            return {number: number - 1 for number in there}
        if self.first_side != 1 and -1 not in there and there != {1, 2}:
            return {number: number for number in there}
        way_out = "Write A, B and tie."
        if -1 in there and there <= {-1, 0, 1} and not self.has_words:
            # 1 is the better answer to some, and the place of the second one to others
            if side := self.minus_one():
                lower, upper = (A, B) if side == "a" else (B, A)
                return {number: {-1: lower, 0: TIE, 1: upper}[number] for number in there}
            way_out += " Or say whom -1 stands for, while 0 is a tie: --minus_one a, or b."
        first = ", ".join(f"{number} ({place})" for number, place in sorted(self.numbers.items()))
        raise ValueError(
            f"{self.source}, column {self.winner}: expected 0, 1, 2 (A, B, tie), and these numbers "
            f"could mean several things: {first}. {way_out}"
        )

    def give_numbers_meaning(self, rows: Iterable[Any], required: bool) -> None:
        """Numbers as labels, in place, once all rows were read. required: False leaves rows
        without a label where the numbers have no meaning."""
        if not self.numbers:
            return
        try:
            meaning = self.meaning()
        except ValueError:
            if required:
                raise
            meaning, self.winner = {}, None
        if any(number != label for number, label in meaning.items()) or not meaning:
            for row in rows:
                row.label = meaning.get(row.label)

    def said(self, ties: bool) -> str:
        """One line on what was understood."""
        others = ", ".join(f"{column} for {name}" for column, name in self.respelt.items())
        return self._said(ties) + (f" ({others})" if others else "")

    def _said(self, ties: bool) -> str:
        around = [name for name in self.around if name in self.seen]
        prompt = " + ".join((str(self.prompt), *around))
        if self.kind == "chosen":
            text = "chosen/rejected: the side drawn by a hash of each row"
            if around:
                text = f"{prompt}, {text}"
        else:
            names = (prompt, *TEXT_COLUMNS[1:]) if self.kind == "sides" else CONVERSATIONS
            text = f"{', '.join(names)}: "
            if self.winner is None:
                return f"read as {text}no winner"
            if isinstance(self.winner, tuple):
                text += f"the winner in {', '.join(self.winner)}"
            elif self.numbers:
                meaning = sorted(self.meaning().items())
                named = (f"{number} {('A', 'B', 'tie')[label]}" for number, label in meaning)
                text += f"{self.winner} {', '.join(named)}"
            else:
                text += f"the winner in {self.winner}"
        return f"read as {text}{'' if ties else '; no ties'}"


SPELLINGS = {
    **{name: name for name in (*TEXT_COLUMNS, *CONVERSATIONS, *CHOSEN, *WINNER_COLUMNS)},
    **{name: name for name in (*PROMPTS, *WINNERS, "id", "system", "input", "model_a", "model_b")},
}


def two_sides(columns: Iterable[str]) -> dict[str, str]:
    """Column → response_a or response_b, of both alike: answer_a and answer_b, or, where there are
    just two answers with numbers, response_1 and response_2, or from 0."""
    columns = list(columns)
    for noun in SIDES:
        letters = [f"{noun}_a", f"{noun}_b"]
        if all(letter in columns for letter in letters):
            return dict(zip(letters, TEXT_COLUMNS[1:], strict=True))
    for noun in SIDES:
        numbers = sorted(c[-1] for c in columns if re.fullmatch(rf"{noun}_\d", c))
        if numbers in (["0", "1"], ["1", "2"]):
            return dict(zip((f"{noun}_{n}" for n in numbers), TEXT_COLUMNS[1:], strict=True))
    return {}


def respelt(columns: Sequence[str]) -> dict[str, str]:
    """Column → its name here, where a file spells it otherwise: Response A, answer_a, output_1."""
    found: dict[str, str] = {}
    plain = {column: re.sub(r"[\s-]+", "_", column.strip()).casefold() for column in columns}
    spellings = SPELLINGS | two_sides(plain.values())
    for column in columns:
        name = spellings.get(plain[column])
        if name and column != name and name not in columns and name not in found.values():
            found[column] = name
    return found


def find_layout(source: str, columns: Sequence[str], require_winner: bool) -> Layout:
    """The layout of a file by its first row's columns; ValueError names what is missing."""
    layout = _layout(source, columns, require_winner)
    layout.seen.update(columns)
    return layout


def _layout(source: str, columns: Sequence[str], require_winner: bool) -> Layout:
    prompt = next((name for name in PROMPTS if name in columns), None)
    winner: str | tuple[str, ...] | None = None
    if set(WINNER_COLUMNS[:2]) <= set(columns):
        winner = tuple(name for name in WINNER_COLUMNS if name in columns)
    elif not set(WINNER_COLUMNS) & set(columns):
        winner = next((name for name in WINNERS if name in columns), None)
    has_sides = prompt is not None and set(TEXT_COLUMNS[1:]) <= set(columns)
    some = bool(set(WINNER_COLUMNS) & set(columns)) and winner is None
    around = AROUND.get(prompt or "", ())  # a later row may have one that the first lacks
    if prompt == "prompt" and isinstance(winner, tuple):
        around = ()  # Kaggle's own, whatever else is there
    if has_sides and not some and (winner or not require_winner):
        return Layout(source, "sides", prompt, winner, around)
    if set(CONVERSATIONS) <= set(columns) and not some and (winner or not require_winner):
        return Layout(source, "conversations", None, winner)
    if set(CHOSEN) <= set(columns):
        return Layout(source, "chosen", prompt, None, around)
    there = set(columns)
    texts = CONVERSATIONS if there & set(CONVERSATIONS) else TEXT_COLUMNS
    winners = WINNER_COLUMNS if (require_winner or some) and not winner else ()
    if there & set(CHOSEN) and not there & {*TEXT_COLUMNS[1:], *CONVERSATIONS}:
        texts, winners = ("prompt", *CHOSEN), ()
    if prompt is not None:
        texts = tuple(name for name in texts if name != "prompt")
    wanted = texts + winners
    missing = [name for name in wanted if name not in columns]
    others = [name for name in columns if name not in wanted]  # not response_a for response_b
    near = [difflib.get_close_matches(name, others, n=1) for name in missing]
    hints = [
        f"{name} (nearest is {short(match[0])})" if match else name
        for name, match in zip(missing, near, strict=True)
    ]
    message = f"{source}: missing columns: {', '.join(hints)}. Found: "
    message += ", ".join(short(name) for name in columns[:20]) + f". Layouts that are {KNOWN}."
    if missing == list(WINNER_COLUMNS):
        message += " A file without winners (as Kaggle's test.csv) is for predict only."
    raise ValueError(message)


def winner_word(value: Any) -> str:
    """What a winner says, as WORDS has it: "model a" for Model_A; "" for null."""
    return "" if value is None else re.sub(r"[\W_]+", " ", str(value)).strip().casefold()


def chosen_is_b(prompt: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]) -> bool:
    """On which side the chosen answer of a row stands: a function of its texts alone, so that a
    file in another order, or a part of it, has the same sides."""
    parts = ["side"]
    for turns in (prompt, chosen, rejected):
        parts += [str(len(turns)), *turns]
    return bool(int(stable_hash(*parts), 16) & 1)


# ------------------------------------------------------------------------------- cells


def _cell(record: dict, column: str) -> Any:
    if column not in record:
        raise BadRow(column, "the field is missing")
    cell = record[column]
    return None if cell != cell else cell  # the NaN that pandas writes for null


def _is_list(cell: Any) -> bool:
    """Whether it is a list of turns, or one as JSON text."""
    if isinstance(cell, str) and re.match(r"\s*\[\s*([\"']|null|\])", cell):
        with contextlib.suppress(BadRow):
            cell = parse_list(cell, "", set())
    return isinstance(cell, list)


def parse_list(cell: str, column: str, repaired: set[str]) -> Any:
    """The list, or message, that a text is in JSON, or as Python prints it, which pandas writes."""
    try:
        return json.loads(cell, strict=False)  # raw line ends inside the strings are harmless
    except (ValueError, RecursionError) as error:
        problem = error
    if re.match(r"\s*(\[\s*|\{\s*){1,2}['\"]", cell):
        errors = (
            ValueError,
            SyntaxError,
            TypeError,
            RecursionError,
            MemoryError,
            tokenize.TokenError,
        )
        with contextlib.suppress(*errors), warnings.catch_warnings(action="ignore"):
            found = ast.literal_eval(with_commas(cell.strip()))
            if isinstance(found, list | dict):
                repaired.add("python_lists")
                return found
    raise BadRow(
        column,
        f"starts as a JSON list but does not parse ({problem}): {short(cell)}; "
        'plain text that starts with "[" must be written as a JSON list of one text',
    )


def with_commas(printed: str) -> str:
    """A list as numpy prints it, and pandas writes it, with the commas of Python between its items:
    ['a' 'b'], which to Python is one text."""
    if not re.search(r"['\"}\]e]\s+['\"{\[NTF]", printed):
        return printed
    starts = [0, *itertools.accumulate(len(line) + 1 for line in printed.split("\n"))]
    values = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
    parts, done, after_value = [], 0, False
    for token in tokenize.generate_tokens(io.StringIO(printed).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if after_value and (token.type in values or token.string in ("{", "[")):
            start = starts[token.start[0] - 1] + token.start[1]
            parts += [printed[done:start], ","]
            done = start
        after_value = token.type in values or token.string in ("}", "]")
    return "".join([*parts, printed[done:]])


def read_turns(cell: Any, column: str, repaired: set[str], lists: bool = True) -> Turns:
    """The turns of a cell: text, a list of texts, or (lists) such a list as JSON text."""
    if cell is None:
        return []
    if isinstance(cell, str):
        if not (lists and cell.lstrip().startswith("[")):
            if lists:
                repaired.add("plain_text")
            return [cell]
        cell = parse_list(cell, column, repaired)
    if not isinstance(cell, list):
        raise BadRow(column, f"expected text or a list of texts, found {short(cell)}")
    turns: Turns = []
    for turn in cell:
        if isinstance(turn, bool | int | float):  # PandaLM has [true] for the answer "True"
            repaired.add("not_text")
            turn = json.dumps(turn)
        if not isinstance(turn, str | None):
            raise BadRow(column, f"expected a list of texts, found {short(turn)} in it")
        turns.append(turn)
    return turns


# ---------------------------------------------------------------------------- messages

_MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*["'](role|content|from|value)["']""")


def messages_in(
    cell: Any, column: str, repaired: set[str], always: bool = False
) -> list[dict[str, Any]]:
    """The messages that a cell is, also a single one, as JSON text or a transcript; [] where it is
    something else. always: nothing else is expected, so that a list which does not parse is a
    fault."""
    if isinstance(cell, str):
        if _MESSAGES.match(cell) or (always and cell.lstrip().startswith("[")):
            cell = parse_list(cell, column, repaired)
        elif always:
            return transcript(cell)
    if isinstance(cell, dict):
        cell = [cell]
    if not (isinstance(cell, list) and cell and all(isinstance(each, dict) for each in cell)):
        return []
    return cell if any({"role", "from"} & each.keys() for each in cell) else []


def _as_messages(asked: Turns) -> list[dict[str, Any]]:
    """One message of the user, the only ones that stand in front of a single answer."""
    return [{"role": "user", "content": "\n\n".join(turn or "" for turn in asked)}]


def role_of(message: Mapping[str, Any]) -> str | None:
    return ROLES.get(str(message.get("role", message.get("from"))).strip().casefold())


def read_messages(messages: Sequence[Mapping[str, Any]], column: str) -> tuple[Turns, Turns]:
    """(what the user says, what the assistant answers), turn by turn; the last answer may be
    missing. A system message stands in front of the first question."""
    asked: Turns = []
    answered: Turns = []
    system = ""
    for number, message in enumerate(messages, start=1):
        role = role_of(message)
        text = content_of(message, column, number)
        if role == "system" and number == 1:
            system = text or ""
        elif role == "user" and len(asked) == len(answered):
            asked.append(f"{system}\n\n{text or ''}" if system and not asked else text)
        elif role == "assistant" and len(asked) == len(answered) + 1:
            answered.append(text)
        elif role is None:
            named = short(message.get("role", message.get("from")))
            raise BadRow(column, f"message {number}: expected user or assistant, found {named}")
        else:
            raise BadRow(column, f"message {number}: {role} out of turn, user and assistant do so")
    if not asked:
        raise BadRow(column, "expected a message of the user, found none")
    return asked, answered


def content_of(message: Mapping[str, Any], column: str, number: int) -> str | None:
    """The text of a message; of one in parts, as lmarena has them, those of its texts."""
    text = message.get("content", message.get("value"))
    if isinstance(text, list) and all(isinstance(part, dict) for part in text):
        other = [part for part in text if not isinstance(part.get("text"), str)]
        if other:
            kind = short(other[0].get("type"))
            raise BadRow(column, f"message {number}: expected text, found a part of type {kind}")
        return "\n\n".join(part["text"] for part in text)
    if not isinstance(text, str | None):
        raise BadRow(column, f"message {number}: expected text, found {short(text)}")
    return text


def transcript(text: str) -> list[dict[str, str]]:
    """The messages of a text with Human: and Assistant: after blank lines, as Anthropic's sets have
    them; [] of any other."""
    if not re.match(r"\s*Human:", text):
        return []
    parts = re.split(r"(?:\A\s*|\n\n)(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": said.strip()}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]


# ----------------------------------------------------------------------------- winners


def read_columns(
    record: dict, columns: Sequence[str], required: bool, soft: bool
) -> tuple[int | None, tuple[float, ...] | None]:
    """`Layout.winner_of` where each class has a column."""
    values = [record.get(column) for column in columns]
    if not required and all(value is None or value == "" for value in values):
        return None, None
    if soft and (shares := _shares(values)):
        shares += (0.0,) * (3 - len(shares))
        label = max(range(3), key=shares.__getitem__)
        return label, None if 1.0 in shares else shares
    flags = []
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, str):
            words = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
            value = words.get(value.strip().lower(), value)
        if value not in (0, 1):  # True and 1.0 are equal to 1
            more = ", or probabilities with sum 1" if soft else ""
            if not soft and _shares(values):
                more = " (probabilities are for --extra_train)"
            raise BadRow(column, f"expected 0 or 1{more}, found {short(value)}")
        flags.append(int(value))
    if sum(flags) != 1:
        winners = f"{sum(flags)} winners" if sum(flags) else "no winner"
        raise BadRow("/".join(columns), f"expected exactly one 1, found {winners}: {flags}")
    return flags.index(1), None


def _shares(values: Sequence[Any]) -> tuple[float, ...]:
    """Probabilities with sum 1, () where they are none. .01: written with two digits."""
    try:
        shares = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return ()
    total = sum(shares)
    if not (min(shares) >= 0 and abs(total - 1) <= 0.01 + 1e-9):  # NaN fails both
        return ()
    return tuple(share / total for share in shares)


def _number(value: Any) -> int | None:
    """A whole number, also written 1.0; None for all else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and not re.fullmatch(r"\s*-?\d{1,3}(\.0+)?\s*", value):
        return None
    if not isinstance(value, str | int | float):
        return None
    number = float(value) if not isinstance(value, int) else value
    return int(number) if number == number and abs(number) < 1e6 and number == int(number) else None
