"""Features on disk: used again, never for other weights or rows, made again when damaged."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from torch import nn

import core
from device import Machine
from files import DiskFull
from methods import feature_cache

WORLD = core.World(torch.device("cpu"), Machine())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    return tmp_path / "features"


def values_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(10, 4)).astype(np.float32)


def features(key: dict, seed: int = 0) -> tuple[np.ndarray, bool]:
    return feature_cache.cached_features(key, lambda: values_of(seed), WORLD)


def test_they_are_built_once_for_each_key(cache):
    built, found = features({"weights": "a"})
    assert not found and np.array_equal(built, values_of(0))
    again, found = features({"weights": "a"}, seed=1)
    assert found and np.array_equal(again, values_of(0)) and isinstance(again, np.memmap)
    other, found = features({"weights": "b"}, seed=1)
    assert not found and np.array_equal(other, values_of(1))
    assert again[np.array([3, 1])].flags.writeable  # what a batch takes is a copy of its own


@pytest.mark.parametrize("harm", ["flip", "cut", "no manifest"])
def test_a_damaged_one_is_made_again(cache, harm):
    features({"k": 1})
    (file,) = cache.rglob("values.npy")
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        file.write_bytes(content[:-8])
    else:
        (file.parent / "manifest.json").unlink()
    assert not features({"k": 1})[1] and features({"k": 1})[1]


def test_the_least_recently_used_are_forgotten(cache, monkeypatch):
    for number in range(3):
        features({"k": number})
    folders = {
        json.loads((f / "manifest.json").read_text())["key"]["k"]: f for f in cache.glob("*")
    }
    for number, age in ((0, 30), (1, 20), (2, 10)):
        os.utime(folders[number], (1e9 - age, 1e9 - age))
    features({"k": 0})  # used again: now the newest
    size = sum(f.stat().st_size for f in folders[0].glob("*"))
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 3 * size + 10)
    features({"k": 3})
    assert [folders[number].exists() for number in range(3)] == [True, False, True]


def test_what_killed_runs_left_goes_and_what_runs_write_stays(cache):
    features({"weights": "a"})
    for name, age in (("left.1234", feature_cache.ABANDONED_SECONDS + 60), ("written.5678", 60)):
        (cache / name).mkdir()
        (cache / name / "values.npy").write_bytes(b"0" * 100)
        for path in (cache / name / "values.npy", cache / name):
            os.utime(path, (time.time() - age,) * 2)
    (cache / "timed.9abc").write_bytes(b"0")  # of scratch()
    os.utime(cache / "timed.9abc", (1e9, 1e9))
    features({"weights": "b"})
    assert sorted(path.name for path in cache.iterdir() if "." in path.name) == ["written.5678"]
    assert features({"weights": "a"})[1] and features({"weights": "b"})[1]


def test_of_two_runs_that_write_one_the_first_stays(cache):
    """The second comes to its end while the first one's folder lies there, read by somebody."""

    def build() -> np.ndarray:
        features({"weights": "a"}, seed=1)  # another run, meanwhile
        return values_of(2)

    mine, found = feature_cache.cached_features({"weights": "a"}, build, WORLD)
    assert not found and np.array_equal(mine, values_of(2))
    kept, found = features({"weights": "a"})
    assert found and np.array_equal(kept, values_of(1))
    assert [path.name for path in cache.iterdir() if "." in path.name] == []


def test_rows_that_do_not_fit_into_memory_or_on_the_disk_are_not_kept(cache, monkeypatch, capsys):
    def build():
        yield 0, values_of(0)
        raise torch.OutOfMemoryError("out of memory")

    def kept(key: str):
        return feature_cache.kept_rows({"weights": key}, (10, 4), np.float32, build, WORLD)

    assert kept("a") == (None, False) and "(out of memory)" in capsys.readouterr().out
    features({"weights": "b"})
    monkeypatch.setattr(feature_cache, "room", lambda: 10)
    assert kept("c") == (None, False) and "has room for" in capsys.readouterr().out
    assert kept("b")[1]  # what lies there takes no more room
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")  # fewer than all: the others are elsewhere
    assert kept("d") == (None, False) and "of one file on a network" in capsys.readouterr().out
    assert kept("b")[1] and len(list(cache.iterdir())) == 1


def test_a_full_disk_costs_the_cache_and_not_the_run(cache, monkeypatch, capsys):
    def full(*arguments, **facts):
        raise DiskFull("disk full")

    monkeypatch.setattr(feature_cache, "write_folder", full)
    values, found = features({"k": 1})
    assert not found and np.array_equal(values, values_of(0))
    assert "not kept for other runs (disk full)" in capsys.readouterr().out


def test_the_fingerprint_is_of_every_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    first = feature_cache.fingerprint(model)
    assert feature_cache.fingerprint(model) == first
    with torch.no_grad():
        model[1].bias[2] += 1e-6
    assert feature_cache.fingerprint(model) != first


def test_what_another_run_deletes_meanwhile_is_made_again(cache, monkeypatch):
    features({"k": 1})
    original = feature_cache.damage

    def damage(folder):
        problem = original(folder)
        shutil.rmtree(folder)  # after it was found whole
        return problem

    with monkeypatch.context() as patched:
        patched.setattr(feature_cache, "damage", damage)
        assert feature_cache._load(next(cache.iterdir()), WORLD) is None
    assert not features({"k": 1})[1] and features({"k": 1})[1]
