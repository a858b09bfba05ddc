"""The training scripts on tiny models and data, and each method that is open to them.

    systems = build_systems(folder)                   # name → System
    folder = systems["gpt2"].train(out, "--optimizer=lion")

METHODS: words that switch each method on. REFUSED: where a script has a reason to refuse one.
"""

import csv
import importlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from conftest import WORDS
from tiny_instructions import build_models, write_rows
from tiny_models import build_tiny_gpt2, build_tiny_model

from settings import parse_settings

QUIET = ["--page=false", "--device=cpu", "--precision=fp32", "--machine_log=false"]
# a few updates at a learning rate that moves something in each of them
STEADY = ["--lr=1e-3", "--schedule=constant", "--warmup_frac=0", "--max_grad_norm=1"]

METHODS: dict[str, list[str]] = {
    "adamw": ["--optimizer=adamw", "--betas=[0.8,0.9]", "--eps=1e-3"],
    "sgd": ["--optimizer=sgd", "--momentum=0.9"],
    "lion": ["--optimizer=lion"],
    "sophiag": ["--optimizer=sophiag", "--sophia.every=2", "--sophia.rows=6"],
    "muon": ["--optimizer=muon", "--matrix_lr=2e-3"],
    "linear": ["--schedule=linear"],
    "cosine": ["--schedule=cosine"],
    "wsd": ["--schedule=wsd", "--decay_frac=0.8"],
    "one-cycle": ["--schedule=one-cycle"],
    "triangle2": ["--schedule=triangle2"],
    "window average": ["--average_frac=0.7", "--average=window"],
    "exponential average": ["--average_frac=0.7"],
    "R-Drop": ["--r_drop=2"],
    "layer decay": ["--layer_decay=0.5"],
    "label smoothing": ["--label_smoothing=0.3"],
    "selective backprop": ["--selection.name=selective_backprop"],
    "RHO-loss": ["--selection.name=rho_loss", "--selection.il_losses=FOLDER"],
    "budget in steps": ["--budget=2", "--budget_unit=steps"],
    "budget in hours": ["--budget=0.00001", "--budget_unit=hours"],
    "budget in FLOPs": ["--budget=2e7", "--budget_unit=flops"],
}
DROPS = {
    "alpaca": ["--dropout=0.1"],
    "headlines": ["--dropout=0.1"],
    "bert": ["--model=hf-bert-mini"],
}
NO_LOSSES = "irreducible losses are extracted for pretrain_bert.py's corpora alone"
REFUSED: dict[tuple[str, str], str] = {
    (name, "RHO-loss"): NO_LOSSES
    for name in ("preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca")
}


@dataclass
class System:
    """A script with the settings of a tiny run of a few steps."""

    script: str
    words: list[str]

    def parse(self, *words: str) -> tuple:
        module = importlib.import_module(self.script)
        given = {word.partition("=")[0] for word in words}
        own = [word for word in self.words if word.partition("=")[0] not in given]
        if any(word.startswith("--schedule=") for word in words):
            own = [word for word in own if not word.startswith("--warmup_frac")]
        if any(word.startswith("--budget=") for word in words):
            own = [word for word in own if not word.startswith(("--epochs", "--budget"))]
        aliases = getattr(module, "ALIASES", None)
        return parse_settings(module.Config, [*own, *words], self.script, aliases)

    def train(self, out: Path, *words: str) -> Path:
        importlib.import_module(self.script).main(*self.parse(*words, f"--out={out}"))
        return out


def build_systems(folder: Path) -> dict[str, System]:
    draw = random.Random(0)

    def sentence(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    texts = [sentence(4, 12) for _ in range(60)]
    encoder = build_tiny_model("bert", folder / "encoder", texts)
    decoder = build_tiny_gpt2(folder / "decoder", texts)
    tuned = build_models(folder / "tuned")["gpt2"]
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        names = ("winner_model_a", "winner_model_b", "winner_tie")
        writer.writerow(["id", "prompt", "response_a", "response_b", *names])
        for i in range(60):
            turns = [json.dumps([sentence(2, 6)]) for _ in range(3)]
            writer.writerow([i, *turns, *(int(i % 3 == k) for k in range(3))])
    with open(folder / "labelled.csv", "w", newline="") as file:
        rows = [(sentence(4, 9), ("yes", "no")[i % 2]) for i in range(60)]
        csv.writer(file).writerows([("text", "label"), *rows])
    for part, count in (("train", 60), ("valid", 6), ("test", 6)):
        lines = "\n".join(f" = {sentence(1, 2)} = \n {sentence(9, 12)} " for _ in range(count))
        path = folder / "wiki" / f"wiki.{part}.tokens"
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines + "\n")
    (folder / "titles.txt").write_text("\n".join(sentence(3, 7) for _ in range(60)))
    documents = "\n\n".join(sentence(60, 90) for _ in range(40))
    (folder / "documents.txt").write_text(documents)
    glue = folder / "glue/SST-2"
    glue.mkdir(parents=True)
    for part, count in (("train", 50), ("dev", 12)):
        rows = "".join(f"{sentence(4, 9)}\t{i % 2}\n" for i in range(count))
        (glue / f"{part}.tsv").write_text("sentence\tlabel\n" + rows)

    common = ["--batch=16", "--micro_batch=8", *STEADY, *QUIET]
    few = [*common, "--epochs=1"]
    short = ["--max_length=32", *few]
    shape = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--vocab_size=300", "--dropout=0"]
    plain = ["--optimizer=adamw", "--r_drop=0"]
    return {
        "preference": System(
            "run_5_models", [f"--model={encoder}", f"--data={folder}/pairs.csv", *short]
        ),
        "glue": System(
            "eval_bert", [f"--model={encoder}", f"--data={folder}/glue", "--suite=sst2", *short]
        ),
        "gpt2": System(
            "finetune_gpt2",
            [f"--model={decoder}", f"--task={folder}/labelled.csv", "--head_epochs=0", *short],
        ),
        "gpt2 lm": System(
            "finetune_gpt2",
            [f"--model={decoder}", "--task=wikitext2", f"--data={folder}/wiki", *short],
        ),
        "headlines": System(
            "train_headlines", [f"--data={folder}/titles.txt", *shape, *plain, *few]
        ),
        "alpaca": System(
            "alpaca_sft",
            [
                *(f"--model={tuned}", f"--data={write_rows(folder / 'rows.json')}"),
                # rows of less would be their preambles, all alike
                *("--sample_tokens=0", "--baseline=false", "--val_frac=0.1", "--max_length=128"),
                *few,
            ],
        ),
        "bert": System(
            "pretrain_bert",
            [
                *(f"--data={folder}/documents.txt", "--model=bert-tiny", "--vocab_size=200"),
                *("--budget=null", "--validation.fraction=0.2", "--max_length=16"),
                *("--validation.truncate_to=20", *few),
            ],
        ),
    }
