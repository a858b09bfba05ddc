"""A small GPT on short titles: train_headlines.py beside training as nanoGPT has it.

python bench.py headlines --repeats 5 --steps 40 --precision bf16
python bench.py headlines --data titles.txt --repeats 3 --steps 12 --width 512

The peer is the plain recipe: windows of 128 tokens of all titles in a row, full attention, learned
positions, torch's dropout, logits of all tokens at once, no compile. Ours: titles one by one, as
the default trains them, with --compile; one pass, without R-Drop. Parameters within 1 %, the same
tokenizer, AdamW, dropout, tokens an update and precision. Losses are not those of the same text (a
title alone has no title before it), so that they agree within .3 only.

--eager: ours without --compile, which a run pays for with its first step: 26 s at width 256 on two
cores, 8 s from torch's own cache.
--width: 128 as in the published runs, 256, or 512 as in the exercise. The wider, the more of both
sides is matrix products, which nothing here makes faster.
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import WARM_UP, rates_of_run

WHAT, PEER = "short titles", "a plain loop over windows"
TOLERANCE = 0.3
COUNTED = False  # while operations are counted nothing is compiled, and then never again
LAYERS, HEADS, BLOCK, VOCABULARY, DROPOUT, LR = 4, 4, 128, 4096, 0.1, 5e-4
TOKENS = 4096  # an update


def settings(folder: Path, arguments: argparse.Namespace, *more: str) -> Any:
    """A Config of train_headlines.py."""
    import train_headlines
    from settings import parse_settings

    data = "reviews" if arguments.data == "hub" else arguments.data
    words = [f"--data={data}", f"--vocab_size={VOCABULARY}", f"--precision={arguments.precision}"]
    words += [f"--n_layer={LAYERS}", f"--n_head={HEADS}", f"--n_embd={arguments.width}"]
    words += [f"--lr={LR}", "--optimizer=adamw", "--weight_decay=0", "--prefix_space=false"]
    words += [f"--dropout={DROPOUT}", "--r_drop=0", "--average_frac=0"]
    words += ["--schedule=constant", "--warmup_frac=0", "--page=false"]
    words += ["--tokenizer=bpe", "--val_frac=0.02", f"--out={folder}", *more]
    return parse_settings(train_headlines.Config, words, "bench.py")[0]


def load_experiment(arguments: argparse.Namespace) -> Any:
    """The experiment, which has the tokens of both sides."""
    import core
    from experiments.headlines import Headlines

    config = settings(arguments.folder / "run", arguments)
    return Headlines(config, core.single_world("cpu"), None)


def ours(arguments: argparse.Namespace) -> dict:
    """train_headlines.py as it is; the rates are its own log's."""
    import train_headlines

    with contextlib.redirect_stdout(sys.stderr):
        train = load_experiment(arguments).train
        batch = round(TOKENS / train.lengths.mean())
        epochs = (arguments.steps + WARM_UP) * batch / len(train.lengths)
        more = [f"--batch={batch}", f"--micro_batch={-(-batch // 2)}", f"--epochs={epochs}"]
        more.append(f"--compile={not (arguments.quick or arguments.eager)}")
        config = settings(arguments.folder / "run", arguments, *more)
        train_headlines.main(config, True)
    return rates_of_run(arguments.folder / "run")


def peer(arguments: argparse.Namespace) -> dict:
    """A plain loop over random windows."""
    import torch
    import torch.nn.functional as F

    with contextlib.redirect_stdout(sys.stderr):
        experiment = load_experiment(arguments)
    torch.manual_seed(0)
    stream = torch.from_numpy(experiment.train_stream.tokens.astype("int64"))
    model = build_peer(len(experiment.tokenizer), arguments.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    rows, ended, losses = TOKENS // BLOCK, [], []
    for _ in range(arguments.steps + WARM_UP):
        starts = torch.randint(len(stream) - BLOCK, (rows,)).tolist()
        windows = torch.stack([stream[s : s + BLOCK + 1] for s in starts])
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        ended.append(time.perf_counter())
    seconds = ended[-1] - ended[WARM_UP - 1]
    rate = arguments.steps * rows * BLOCK / seconds
    return {"tokens_per_second": rate, "loss": statistics.mean(losses[-5:])}


def build_peer(vocabulary: int, width: int) -> Any:
    """A GPT-2 of the same sizes, from torch's own parts."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.dropout = nn.Dropout(DROPOUT)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.qkv(self.norm_1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
            return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(BLOCK, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.dropout, self.norm = nn.Dropout(DROPOUT), nn.LayerNorm(width)
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(module.weight, std=0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.dropout(self.tokens(ids) + self.places.weight[: ids.shape[1]])
            return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    return GPT()
