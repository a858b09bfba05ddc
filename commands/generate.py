"""`generate` of alpaca_sft.py: answers to instructions of a file, or asked one by one."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import console
import core
from commands.opening import OpenConfig, note, open_causal, processes, weights_files
from commands.verdicts import run_of
from data import instructions
from data.instructions import Row
from data.records import repair_surrogates, strip_control
from files import read_yaml, write_text
from models import generation, pretrained
from models.decoding import Decoding
from models.generation import Answer
from runs.contents import is_run

ROWS_EACH = {"cpu": 64}  # answered before they are written, by each process; a GPU: 256


@dataclass
class GenerateConfig(OpenConfig, Decoding):
    """Settings of `generate`: answers to instructions from a file, the command line or a prompt."""

    IN_PARALLEL = WRITES_A_FILE = True
    ONLY_WITH = {
        "split": "data",
        "limit": "data",
        "output": "data",
        "val_frac": "split!=all",
        "test_frac": "split!=all",
        "input": "instruction",
    }

    data: str | None = None
    """rows with an instruction (and input), as in training; null: ask"""
    split: Literal["all", "train", "val", "test"] = "all"
    """which of the rows of --data, split as in training"""
    val_frac: float | None = None
    """of that split; null: that of the run, or 0.05"""
    test_frac: float | None = None
    """of that split; null: that of the run, or 0.1"""
    limit: int | None = None
    """the first rows alone; null: all"""
    output: str = "answers.jsonl"
    """where the answers to --data go, a JSON object a line"""
    instruction: str | None = None
    """one instruction, answered on standard output"""
    input: str = ""
    """its input"""
    template: Literal["alpaca", "alpaca_with_input_preamble"] | None = None
    """layout of a prompt; null: the one of the training, else alpaca"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.instruction is not None:
            raise ValueError("generate: give --data or --instruction, not both")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: expected 1 or more, or null")


def generate(config: GenerateConfig) -> None:
    """Answer the rows of a file, one instruction, or one after the other until the input ends."""
    with processes(config.device) as world:
        if config.data is not None:
            # all: without a split, of which rows that ask the same would be left out
            shares, said = ((0.0, 0.0), []) if config.split == "all" else shares_of(config)
            rows, notes = instructions.load_rows(config.data, *shares, answered=False)
            rows = [row for row in rows if config.split in ("all", row.split)][: config.limit]
            if not rows:
                raise ValueError(f"{config.data}: no {config.split} rows")
            for line in (*notes, *said):
                world.say(line)
        answerer = Answerer(config, config, config.template, world)
        if config.data is not None:
            answerer.write(rows, Path(config.output))
            world.say(f"answers: {config.output}")
        elif world.rank == 0:
            answer_questions(config, answerer)


def shares_of(config: GenerateConfig) -> tuple[tuple[float, float], list[str]]:
    """((val_frac, test_frac) of the split, a line where they are not those of the run): its other
    rows may be what the run was trained on."""
    folder = run_of(config.model)
    saved = read_yaml(folder / "config.yaml") if is_run(folder) else {}
    usual = {"val_frac": 0.05, "test_frac": 0.1}
    of_run = [saved.get(name, share) for name, share in usual.items()]
    own = (config.val_frac, config.test_frac)
    chosen = [theirs if ours is None else ours for ours, theirs in zip(own, of_run, strict=True)]
    said = []
    if saved and chosen != of_run:
        was = f"val_frac {of_run[0]} and test_frac {of_run[1]}"
        said = [f"note: {config.model} was trained with {was}: it may know rows of this split"]
    return (chosen[0], chosen[1]), said


def answer_questions(config: GenerateConfig, answerer: "Answerer") -> None:
    if config.instruction is not None:
        return console.answer(answerer.ask(config.instruction, config.input))
    asks = sys.stdin.isatty()
    while True:
        if asks:
            console.say("instruction (an empty line ends): ", end="")
        line = sys.stdin.readline().strip()
        if not line:
            return
        text = ""
        if asks:
            console.say("input (may be empty): ", end="")
            text = sys.stdin.readline().strip()
        console.answer(answerer.ask(line, text))


class Answerer:
    """A model that answers, on one process or several: the answers are the same."""

    def __init__(
        self, config: OpenConfig, decoding: Decoding, template: str | None, world: core.World
    ):
        self.config, self.decoding, self.world = config, decoding, world
        self.model, self.tokenizer, facts = open_causal(config, world)
        self.template = template or facts.get("template", "alpaca")
        self.weights = config.weights or pretrained.tested_weights(config.model)
        self.files = weights_files(config)

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        return generation.generate(self.model, self.tokenizer, prompts, self.decoding)

    def ask(self, instruction: str, text: str) -> str:
        """The answer to one instruction, fit for a terminal."""
        instruction, text = (repair_surrogates(each, set()) for each in (instruction, text))
        prompt = instructions.format_prompt(instruction, text, self.template)
        (answer,) = self.answers([prompt])
        if answer.cut:
            note(generation.said_of_cut(["this one"]))
        return strip_control(answer.text)

    def write(self, rows: Sequence[Row], file: Path) -> None:
        """A file of answers, a JSON object a line; what an interrupted call wrote is used."""
        world = self.world
        prompts = [instructions.prompt_of(row, self.template) for row in rows]
        facts = [*self.files, self.decoding.record(), prompts]
        started = Started(file, hashlib.sha256(json.dumps(facts).encode()).hexdigest())
        lines: list[dict[str, Any]] = []
        world.on_rank_0(lambda: lines.extend(started.read()))
        lines = world.from_rank_0(lines)
        if lines:
            world.say(f"{len(lines):,} of {len(rows):,} rows are answered already")
        each = ROWS_EACH.get(world.device.type, 256) * world.size
        for start in range(len(lines), len(rows), each):
            own = range(start + world.rank, min(start + each, len(rows)), world.size)
            answers = zip(own, self.answers([prompts[row] for row in own]), strict=True)
            block = sorted(world.gather_rows(list(answers)))
            block = [self.line(rows[row], prompts[row], answer) for row, answer in block]
            lines += block
            world.on_rank_0(lambda block=block: started.add(block))
            world.say(f"answered {len(lines):,} of {len(rows):,} rows")
        if cut := [strip_control(line["id"])[:40] for line in lines if "cut_tokens" in line]:
            world.say(generation.said_of_cut(cut))
        world.on_rank_0(lambda: started.finish(lines))

    def line(self, row: Row, prompt: str, answer: Answer) -> dict[str, Any]:
        line = answer_line(row, prompt, answer.text) | {"ended": answer.ended}
        line |= {"model": self.config.model, "weights": self.weights}
        line |= {"decoding": self.decoding.record()}
        return line | ({"cut_tokens": answer.cut} if answer.cut else {})


def answer_line(row: Row, prompt: str, response: str) -> dict[str, Any]:
    """What a line of an answers file says at least. prompt: all that the model should read;
    instruction, input and output are of the last turn."""
    instruction, text, output = row.turns[-1]
    return {
        "id": row.id,
        "group": row.group,
        "instruction": instruction,
        "input": text,
        "prompt": prompt,
        "output": output,
        "model_response": response,
    }


class Started:
    """A file of JSON lines that is being written: beside it, until it is whole."""

    def __init__(self, file: Path, facts: str):
        self.file, self.part = file, file.with_name(f"{file.name}.part")
        self.head = {"facts": facts}  # what the lines depend on

    def read(self) -> list[dict[str, Any]]:
        """The lines that an interrupted call with the same facts wrote; else it begins anew."""
        lines = []
        if self.part.is_file():
            for line in self.part.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    lines.append(json.loads(line))
                except ValueError:  # cut off by a kill
                    break
        kept = lines[1:] if lines[:1] == [self.head] else []
        write_text(self.part, "".join(json.dumps(line) + "\n" for line in [self.head, *kept]))
        return kept

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        with open(self.part, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def finish(self, lines: Sequence[dict[str, Any]]) -> None:
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in lines))
        self.part.unlink()
