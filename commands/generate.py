"""`generate` of alpaca_sft.py: answers to instructions of a file, or asked one by one."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import console
from commands.opening import OpenConfig, open_causal
from data import instructions
from data.instructions import Row
from data.records import strip_control
from files import write_text
from models import generation

Answers = Callable[[list[str]], list[str]]  # prompts → what the model writes behind each


@dataclass
class GenerateConfig(OpenConfig):
    """Settings of `generate`: answers to instructions from a file, the command line or a prompt."""

    data: str | None = None
    """rows with an instruction (and input), as in training; null: ask"""
    split: Literal["all", "train", "val", "test"] = "all"
    """which of the rows of --data, split as in training"""
    val_frac: float = 0.05
    """of that split"""
    test_frac: float = 0.1
    """of that split"""
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
    max_new_tokens: int = 256
    """tokens of an answer at most"""
    temperature: float = 0.0
    """0: always the most likely token"""
    top_k: int | None = None
    """draw from so many tokens; null: from all"""
    seed: int = 0
    """of the draws"""


def generate(config: GenerateConfig) -> None:
    """Answer the rows of a file, one instruction, or one after the other until the input ends."""
    model, tokenizer, facts = open_causal(config)
    template = config.template or facts.get("template", "alpaca")

    def answers(prompts: list[str]) -> list[str]:
        drawing = (config.temperature, config.top_k, config.seed)
        return generation.generate(model, tokenizer, prompts, config.max_new_tokens, *drawing)

    if config.data is not None:
        return _answer_rows(config, template, answers)
    if config.instruction is not None:
        prompt = instructions.format_prompt(config.instruction, config.input, template)
        return console.answer(strip_control(answers([prompt])[0]))
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
        prompt = instructions.format_prompt(line, text, template)
        console.answer(strip_control(answers([prompt])[0]))


def _answer_rows(config: GenerateConfig, template: str, answers: Answers) -> None:
    rows, _ = instructions.load_rows(config.data, config.val_frac, config.test_frac)
    rows = [row for row in rows if config.split in ("all", row.split)][: config.limit]
    if not rows:
        raise ValueError(f"{config.data}: no {config.split} rows")
    lines = answer_rows(rows, template, answers)
    write_text(Path(config.output), "".join(json.dumps(line) + "\n" for line in lines))
    console.say(f"answers: {config.output}")


def answer_rows(rows: Sequence[Row], template: str, answers: Answers) -> list[dict[str, str]]:
    """A line of an answers file for each row; 64 rows at a time, which it says."""
    lines = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        prompts = [instructions.prompt_of(row, template) for row in part]
        for row, prompt, response in zip(part, prompts, answers(prompts), strict=True):
            lines.append(answer_line(row, prompt, response))
        console.say(f"answered {len(lines):,} of {len(rows):,} rows")
    return lines


def answer_line(row: Row, prompt: str, response: str) -> dict[str, str]:
    """A line of an answers file. prompt: all that the model read; instruction, input and output
    are of the last turn."""
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
