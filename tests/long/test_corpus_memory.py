"""Packing a corpus takes as much memory for a large one as for a small one: ten seconds.

python -m pytest -x tests/long/test_corpus_memory.py
"""

import json
import os
import random
import subprocess
import sys

from conftest import PROJECT, WORDS
from test_corpora import tokenizer_folder

__all__ = ["tokenizer_folder"]

MEMORY = """
import json, resource, sys
import torch
import core
from data import corpora
from device import Machine
from experiments import pretraining
corpora.BLOCK_CHARACTERS = 1 << 17
world = core.World(torch.device("cpu"), Machine())
peaks = []
for path in sys.argv[2:]:
    corpora.load_corpus(path, world, tokenizer=sys.argv[1], seq_length=128, workers=0)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer_folder):
    """1 MB of text and then 12 MB: the second adds less than 4 MB to the peak."""
    texts = [" ".join(random.Random(n).choices(WORDS, k=2000)) for n in range(100)]
    paths = [tmp_path / "small.jsonl", tmp_path / "large.jsonl"]
    for path, times in zip(paths, (1, 12), strict=True):
        with open(path, "w") as file:
            for number in range(times * len(texts)):
                file.write(json.dumps({"text": f"{number} " + texts[number % 100]}) + "\n")
    assert paths[1].stat().st_size > 12e6
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tokenizer_folder), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert large - small < 4, f"{small:.0f} MB, then {large:.0f} MB"
