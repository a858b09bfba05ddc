"""Processes that would do different things are refused before the first step, on all of them."""

import json
import shutil
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist

import core
import run_2_appendprompt
import runs
from device import Machine
from experiments import preference
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
# what rank 1 has otherwise: words of its command line, and what is said of it on both ranks
SETTINGS = {
    "a rate": (["--lr=2e-3"], ["--lr: 0.002 there, 0.001 in process 0"]),
    "when to save": (["--save_every=3"], ["--save_every: 3 there, None in process 0"]),
    "other rows under another name": (
        ["--data=OTHER"],
        ["other.csv' there (it holds something else), '"],
    ),
    "the same rows elsewhere": (["--data=SAME", "--workers=1", "--out=elsewhere"], None),
}


def _start(config: run_2_appendprompt.Config, world: core.World) -> None:
    with runs.Run(config, world) as run:
        experiment = preference.Preference(config, world, run.folder)
        state = experiment.build_state(experiment.load_encoder())
        run.resume(state, experiment)


def _both_ranks(rank: int, words: list[str], files: dict[str, str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def start(name: str, more: list[str]) -> None:
        world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, 2)
        given = [files.get(word.removeprefix("--data="), "") for word in more]
        more = [f"--data={file}" if file else word for file, word in zip(given, more, strict=True)]
        config, _ = parse_settings(
            run_2_appendprompt.Config, [*words, f"--out={folder}/{name}", *more], "run_2.py"
        )
        try:
            _start(config, world)
        except ValueError as error:
            said[name] = str(error)

    said: dict[str, str] = {}
    for name, (more, _) in SETTINGS.items():
        start(name, more if rank else [])
    with pytest.MonkeyPatch.context() as patched:
        if rank:  # another card, for which auto is another precision
            patched.setattr(preference.pretrained, "choose_kernels", lambda *_: ("fp16", "sdpa"))
        start("precision", [])
    with pytest.MonkeyPatch.context() as patched:
        if rank:  # the hub has a newer version of the rows
            patched.setattr(preference.arena, "data_fingerprint", lambda rows: "newer")
        start("rows", [])
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def test_processes_that_differ_are_refused_on_all_of_them(one_layer_bert, pair_csv, tmp_path):
    files = {"SAME": str(tmp_path / "same.csv"), "OTHER": str(tmp_path / "other.csv")}
    shutil.copy(pair_csv, files["SAME"])
    Path(files["OTHER"]).write_text(pair_csv.read_text().replace("good", "fine"))
    words = [f"--model={one_layer_bert}", f"--data={pair_csv}", "--max_length=32", "--lr=1e-3"]
    words += ["--page=false"]
    forked.spawn(_both_ranks, (words, files, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    expected = {name: lines for name, (_, lines) in SETTINGS.items() if lines}
    expected["precision"] = ["(--precision names one for all): 'fp16' there, 'fp32' in process 0"]
    expected["rows"] = ["data_fingerprint: 'newer' there, "]
    assert first.keys() == expected.keys()
    for name, lines in expected.items():
        assert all(line in first[name] for line in lines), first[name]
        assert "process 1 of this run would do something else" in first[name]
        assert first[name].count("\n") == 1 + len(lines), first[name]  # of nothing else
