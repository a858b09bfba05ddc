"""Selective backprop and RHO-loss decide as plain references do, and continue after a stop."""

import io
import json
import random
from collections import deque

import numpy as np
import pytest
import torch
from scipy.stats import percentileofscore

import core
from files import damage
from methods.batch_selection import (
    IrreducibleLosses,
    RhoLoss,
    SelectiveBackprop,
    percentile_ranks,
)


def pairs(start: int, count: int, epoch: int = 0) -> np.ndarray:
    ids = np.arange(start, start + count)
    return np.stack([ids, np.full(count, epoch)], axis=1)


def draw_losses(count: int, seed: int = 0, drift: float = 0.0) -> np.ndarray:
    """Rounded, so that there are ties; falling as in training."""
    draw = np.random.default_rng(seed)
    return np.round(8 + draw.normal(size=count) - drift * np.arange(count), 2)


class PlainSelectiveBackprop:
    """Sequence by sequence in chunks, with scipy's percentiles."""

    def __init__(self, batch, seed, beta, history, chunk):
        self.batch, self.seed, self.beta, self.chunk = batch, seed, beta, chunk
        self.recent, self.queue, self.chunks = deque(maxlen=history), [], 0

    def offer(self, candidates, losses):
        for start in range(0, len(losses), self.chunk):
            part = list(range(start, min(start + self.chunk, len(losses))))
            self.recent.extend(losses[part])
            generator = np.random.Generator(
                np.random.PCG64(core.mix_seed(self.seed, self.chunks, 7))
            )
            for row, uniform in zip(part, generator.random(len(part)), strict=True):
                rank = percentileofscore(self.recent, losses[row], kind="rank") / 100
                if uniform < rank**self.beta:
                    self.queue.append(candidates[row])
            self.chunks += 1
        batches = []
        while len(self.queue) >= self.batch:
            batches.append(np.array(self.queue[: self.batch]))
            del self.queue[: self.batch]
        return batches


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_selective_backprop_equals_the_reference_for_100_offers(beta):
    settings = {"batch": 48, "seed": 5, "beta": beta, "history": 300, "chunk": 16}
    ours, plain = SelectiveBackprop(**settings), PlainSelectiveBackprop(**settings)
    draw, given, made = random.Random(0), 0, 0
    losses = draw_losses(100 * 80, drift=0.001)
    for _ in range(100):
        count = draw.choice([0, 1, 15, 16, 17, 48, 80])
        candidates, part = pairs(given, count), losses[given : given + count]
        found, expected = ours.offer(candidates, part), plain.offer(candidates, part)
        assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
        given, made = given + count, made + len(found)
    assert made > 10
    assert ours.recent.tolist() == list(plain.recent)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_scipys(seed):
    among = draw_losses(200, seed)
    found = percentile_ranks(among[:50], among)
    expected = [percentileofscore(among, value, kind="rank") / 100 for value in among[:50]]
    assert found.tolist() == pytest.approx(expected)


def test_the_largest_loss_is_always_kept():
    assert percentile_ranks(np.array([1.0, 3.0, 2.0]), np.array([1.0, 3.0, 2.0])).tolist() == (
        pytest.approx([1 / 3, 1, 2 / 3])
    )
    selector = SelectiveBackprop(batch=1, seed=0, beta=3.0, chunk=1)
    for number in range(200):  # each loss a new maximum
        assert len(selector.offer(pairs(number, 1), np.array([float(number)]))) == 1


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_the_share_that_is_kept(beta):
    selector, count = SelectiveBackprop(batch=10**9, seed=1, beta=beta), 60_000
    selector.offer(pairs(0, count), np.random.default_rng(0).normal(size=count))
    rate = 1 / (beta + 1)
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert len(selector.queue) / count == pytest.approx(rate, abs=5 * deviation + 1e-3)


def run(selector, steps: int, losses, start: int = 0) -> tuple[list[np.ndarray], int]:
    """What a loop does: score what is wanted until there is a batch."""
    made, cursor = [], start
    for _ in range(steps):
        batches: list[np.ndarray] = []
        while not batches:
            count = selector.wanted
            assert count > 0
            batches = selector.offer(pairs(cursor, count), losses[cursor : cursor + count])
            cursor += count
        made += batches
    return made, cursor


def test_rounds_of_wanted_keep_what_chunk_by_chunk_would():
    losses = draw_losses(20_000)
    rounds = SelectiveBackprop(batch=200, seed=0, chunk=16)
    found, used = run(rounds, 30, losses)
    assert len(found) == 30  # never two batches at once: each is scored with the newest weights
    chunks, expected, cursor = SelectiveBackprop(batch=200, seed=0, chunk=16), [], 0
    while len(expected) < 30:
        part = slice(cursor, cursor + 16)
        expected += chunks.offer(pairs(cursor, 16), losses[part])
        cursor += 16
    assert (used, len(rounds.queue)) == (cursor, len(chunks.queue))
    assert len(rounds.queue) < 16
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_kept_keeps_its_order_and_epoch():
    selector = SelectiveBackprop(batch=30, seed=0, chunk=8)
    candidates = np.concatenate([pairs(0, 40, 3), pairs(0, 40, 4)])
    batches = selector.offer(candidates, draw_losses(80))
    kept = np.concatenate([*batches, selector.queue])
    positions = kept[:, 1] * 40 + kept[:, 0]
    assert (np.diff(positions) > 0).all()
    assert set(kept[:, 1]) == {3, 4}


def table(count: int = 20_000, fingerprint: str = "abc") -> IrreducibleLosses:
    order = np.random.default_rng(9).permutation(count)
    return IrreducibleLosses(order, draw_losses(count, 7)[order], fingerprint)


def test_rho_equals_the_reference_for_100_batches():
    losses, irreducible = draw_losses(20_000), draw_losses(20_000, 7).astype(np.float32)
    selector = RhoLoss(batch=24, mega_batch=100, irreducible=table())
    found, used = run(selector, 100, losses)
    assert used == 100 * 100 and len(found) == 100
    for number, batch in enumerate(found):
        rows = range(100 * number, 100 * number + 100)
        # Python's sort keeps the order of equals
        best = sorted(rows, key=lambda row: -(losses[row] - float(irreducible[row])))[:24]
        assert batch[:, 0].tolist() == best


def test_rho_discards_the_rest_and_takes_offers_of_any_size():
    losses = draw_losses(1000)
    whole, _ = run(RhoLoss(10, 100, table()), 10, losses)
    selector, found = RhoLoss(10, 100, table()), []
    for start, stop in ((0, 1), (1, 99), (99, 350), (350, 350), (350, 1000)):
        found += selector.offer(pairs(start, stop - start), losses[start:stop])
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert len(selector.collected) == 0 and selector.wanted == 100


def selectors() -> list:
    return [SelectiveBackprop(40, seed=2, history=200, chunk=16), RhoLoss(40, 90, table())]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_stopped_run_goes_on_with_the_same_sequences(kind):
    losses = draw_losses(20_000)
    expected, _ = run(selectors()[kind], 20, losses)
    selector = selectors()[kind]
    first, cursor = run(selector, 7, losses)
    # stopped between two offers, with a part of a batch in the queue
    count = selector.wanted // 2
    first += selector.offer(pairs(cursor, count), losses[cursor : cursor + count])
    assert len(first) == 7
    file = io.BytesIO()
    torch.save(selector.state_dict(), file)
    file.seek(0)
    again = selectors()[kind]
    again.load_state_dict(torch.load(file, weights_only=True))
    rest, _ = run(again, 13, losses, cursor + count)
    if kind == 0:  # half of a round is no whole number of chunks: compare with the one that went on
        expected = first + run(selector, 13, losses, cursor + count)[0]
    found = first + rest
    assert len(found) == len(expected) == 20
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_saved_state_does_not_change_with_the_selector():
    losses = draw_losses(20_000)
    for selector in selectors():
        selector.offer(pairs(0, 30), losses[:30])
        saved = selector.state_dict()
        before = {k: v.clone() for k, v in saved.items() if torch.is_tensor(v)}
        run(selector, 3, losses, 30)
        assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named(value):
    for selector in selectors():
        with pytest.raises(RuntimeError, match="sequence 102 is not finite"):
            selector.offer(pairs(100, 4), np.array([1.0, 2.0, value, 3.0]))
        assert selector.wanted in (48, 90)  # nothing of it was taken


def test_candidates_and_losses_must_fit():
    for selector in selectors():
        with pytest.raises(ValueError, match="do not fit"):
            selector.offer(pairs(0, 4), np.zeros(5))


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"chunk": 0}, {"history": 100}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SelectiveBackprop(batch=4, seed=0, **options)
    with pytest.raises(ValueError, match="mega-batch of 3"):
        RhoLoss(4, 3, table())


def save(folder, parts: int = 4) -> None:
    whole = table(1000)
    for number in range(parts):
        chosen = whole.ids % 4 == number
        part = IrreducibleLosses(whole.ids[chosen], whole.losses[chosen], "abc")
        part.save_part(folder, number)


def test_a_table_survives_its_files(tmp_path):
    save(tmp_path / "losses")
    found = IrreducibleLosses.load(tmp_path / "losses", "abc")
    assert len(found) == 1000
    ids = np.array([999, 0, 5, 5])
    assert found.of(ids).tolist() == draw_losses(1000, 7).astype(np.float32)[ids].tolist()
    found.require(np.arange(1000))


def test_an_unfinished_table_says_what_is_missing(tmp_path):
    save(tmp_path, parts=3)
    (tmp_path / "part_000003.tmp").mkdir()  # killed while it wrote
    found = IrreducibleLosses.load(tmp_path, "abc")
    assert found.missing(np.arange(8)).tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"250 of 1,000 .* first is 3\): let the extraction"):
        found.require(np.arange(1000))
    with pytest.raises(KeyError, match="sequence 7"):
        found.of(np.array([6, 7]))
    with pytest.raises(KeyError, match="sequence 1003"):
        RhoLoss(1, 2, found).offer(pairs(1003, 1), np.zeros(1))


def test_an_empty_table_misses_everything():
    empty = IrreducibleLosses(np.zeros(0, np.int64), np.zeros(0), "abc")
    assert empty.missing(np.array([3, 1])).tolist() == [3, 1]


def test_a_foreign_table_is_refused(tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match="another split .abc; this run's is xyz"):
        IrreducibleLosses.load(tmp_path, "xyz")
    with pytest.raises(ValueError, match="no irreducible losses"):
        IrreducibleLosses.load(tmp_path / "nowhere", "abc")


def test_a_damaged_or_pickled_part_is_refused(tmp_path):
    save(tmp_path)
    path = tmp_path / "part_000001" / "losses.npz"
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match="part_000001.*cannot be read"):
        IrreducibleLosses.load(tmp_path, "abc")
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(path, ids=pickled, losses=pickled, split_fingerprint="abc")
    with pytest.raises(ValueError, match="part_000001.*cannot be read"):
        IrreducibleLosses.load(tmp_path, "abc")


def test_each_part_has_a_manifest(tmp_path):
    save(tmp_path)
    manifest = json.loads((tmp_path / "part_000002/manifest.json").read_text())
    assert (manifest["rows"], manifest["split_fingerprint"]) == (250, "abc")
    assert damage(tmp_path / "part_000002") is None


def test_an_id_has_one_loss_and_that_a_number():
    with pytest.raises(ValueError, match="sequence 4 has two"):
        IrreducibleLosses(np.array([4, 1, 4]), np.zeros(3), "abc")
    with pytest.raises(ValueError, match="sequence 1 is not"):
        IrreducibleLosses(np.array([4, 1]), np.array([0.0, np.nan]), "abc")
    with pytest.raises(ValueError, match="do not fit"):
        IrreducibleLosses(np.array([4, 1]), np.zeros(3), "abc")
