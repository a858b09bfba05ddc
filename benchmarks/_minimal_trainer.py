"""A preference script as people write it with transformers' Trainer: the peer of bench.py startup.

python benchmarks/_minimal_trainer.py pairs.csv MODEL OUT

pairs.csv has the columns prompt, response_a, response_b, and winner: A, B or tie.
"""

import csv
import sys

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

CLASSES = ("A", "B", "tie")
MAX_LENGTH, BATCH, LR = 64, 32, 5e-5


class PairModel(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(name)
        hidden = self.encoder.config.hidden_size
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Dropout(0.1), nn.Linear(hidden, 3)
        )

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state[:, 0]
        logits = self.head(torch.cat(hidden.chunk(2), dim=-1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(path: str, model: str, output: str) -> float:
    """Loss of one step."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = AutoTokenizer.from_pretrained(model)

    def collate(batch):
        prompts = [row["prompt"] for row in batch]
        answers = [row[side] for side in ("response_a", "response_b") for row in batch]
        tokens = tokenizer(
            prompts * 2, answers, truncation=True, max_length=MAX_LENGTH, padding=True,
            return_token_type_ids=False, return_tensors="pt",
        )  # fmt: skip
        return {**tokens, "labels": torch.tensor([CLASSES.index(r["winner"]) for r in batch])}

    arguments = TrainingArguments(
        output_dir=output,
        max_steps=1,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(PairModel(model), arguments, collate, rows)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
