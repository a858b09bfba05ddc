"""How the next token is chosen: settings that are all ours, and draws that belong to a text.

    chooser = Chooser(Decoding(temperature=0.7, top_p=0.9, seed=1), keys)     # a key a row
    tokens = chooser(ids, logits)                       # (rows,), once for each new token

What a row gets depends on the row, its key and the seed alone, not on the rows beside it, their
number, the device or the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from core import mix_seed
from settings import Section


@dataclass
class Decoding(Section):
    """How a text is written; nothing else acts, also not what a model's folder recommends."""

    ONLY_WITH = {"top_k": "temperature", "top_p": "temperature", "seed": "temperature"}

    max_new_tokens: int = 256
    """tokens to write at most, and no more than the model has positions behind the prompt"""
    temperature: float = 0.0
    """0: always the most likely token"""
    top_k: int | None = None
    """draw from so many tokens; null: from all"""
    top_p: float | None = None
    """draw from the likeliest tokens that together have this probability; null: from all"""
    repetition_penalty: float = 1.0
    """divides the positive logits of tokens that are in the prompt or answer already (and
    multiplies the negative ones); 1: none"""
    seed: int = 0
    """of the draws"""

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more, or null"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1, or null"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
        ):
            if not fits:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {expected}")

    def record(self) -> dict[str, Any]:
        """What decided, for the files that hold answers."""
        return {field.name: getattr(self, field.name) for field in fields(Decoding)}


class Chooser:
    """Chooses tokens for rows that grow, each with its own random numbers.

    keys: a whole number for each row, which stands for its text or its place.
    """

    def __init__(self, decoding: Decoding, keys: Sequence[int]):
        from transformers import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.draws = decoding.temperature > 0
        # on the CPU: the same numbers on any device
        self.generators = [
            torch.Generator().manual_seed(mix_seed(decoding.seed, key)) for key in keys
        ]
        self.process = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            penalty = float(decoding.repetition_penalty)
            self.process.append(RepetitionPenaltyLogitsProcessor(penalty))
        if self.draws:
            self.process.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_k is not None:
            self.process.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p is not None:
            self.process.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, ids: Sequence[Tensor], logits: Tensor) -> Tensor:
        """ids: the tokens of each row so far, without padding; logits (rows, vocab) → (rows,).

        A draw is the largest of logit + Gumbel noise, whose probabilities are softmax(logits)
        (Gumbel 1954; Maddison et al. 2014, A* Sampling, section 2): where rounding moves the logits
        a little it stays the same, unless two tokens are as close as that.
        """
        scores = logits.float()
        if self.process:  # row by row: what is padding in front of one is a word in another
            rows = zip(ids, scores, strict=True)
            scores = torch.cat([self.process(own[None], score[None]) for own, score in rows])
        if self.draws:
            waits = [
                torch.empty(scores.shape[1], dtype=torch.float64).exponential_(generator=generator)
                for generator in self.generators
            ]
            scores = scores - torch.stack(waits).log().to(scores.device, torch.float32)
        return scores.argmax(dim=-1)
