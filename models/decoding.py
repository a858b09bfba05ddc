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

        # on the CPU: the same numbers on any device
        self.generators = [
            torch.Generator().manual_seed(mix_seed(decoding.seed, key)) for key in keys
        ]
        self.penalty = self.warp = None
        if decoding.repetition_penalty != 1:
            self.penalty = RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty))
        if decoding.temperature > 0:
            self.warp = LogitsProcessorList([TemperatureLogitsWarper(float(decoding.temperature))])
            if decoding.top_k is not None:
                self.warp.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p is not None:
                self.warp.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, ids: Sequence[Tensor], logits: Tensor) -> Tensor:
        """ids: the tokens of each row so far, without padding; logits (rows, vocab) → (rows,).

        A draw is where a uniform number falls among the probabilities, laid end to end. They are
        summed in float64: rounding moves a draw only where the number falls next to a border.
        """
        scores = logits.float()
        if self.penalty:  # row by row: what is padding in front of one is a word in another
            rows = zip(ids, scores, strict=True)
            scores = torch.cat([self.penalty(own[None], score[None]) for own, score in rows])
        if self.warp is None:
            return scores.argmax(dim=-1)
        shares = self.warp(None, scores).softmax(dim=-1).cpu().double().cumsum(dim=-1)
        drawn = [torch.rand(1, generator=each, dtype=torch.float64) for each in self.generators]
        places = torch.stack(drawn) * shares[:, -1:]  # (rows, 1)
        tokens = torch.searchsorted(shares, places, right=True).squeeze(1)
        return tokens.clamp(max=shares.shape[1] - 1).to(logits.device)
