"""--extra_train: rows of a second file, for training alone, with hard labels or probabilities."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from systems import build_systems

import core
from commands.evaluate import EvaluateConfig, evaluate
from data import arena, layouts
from data.pairs import PairData, soft_labels
from evaluation.metrics import swap_classes
from experiments import preference
from methods.losses import loss_sum, target_losses
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extra")


@pytest.fixture(scope="module")
def system(folder):
    return build_systems(folder)["preference"]


@pytest.fixture(scope="module")
def rows(folder, system):
    rows, _ = arena.load_arena(str(folder / "pairs.csv"))
    arena.assign_splits(rows, "prompt", 0.1, 0.1)
    return rows


def write_extra(path, rows, labels) -> str:
    lines = []
    for row, label in zip(rows, labels, strict=True):
        texts = {"prompt": row.prompt, "response_a": row.response_a, "response_b": row.response_b}
        lines.append(json.dumps(texts | dict(zip(layouts.WINNER_COLUMNS, label, strict=True))))
    path.write_text("\n".join(lines))
    return str(path)


def fresh(rows, count):
    """Rows with prompts of their own."""
    return [dataclasses.replace(r, prompt=[f"new {i}"]) for i, r in enumerate(rows[:count])]


def experiment_of(system, *words) -> preference.Preference:
    config, _ = system.parse(*words)
    return preference.Preference(config, core.single_world("cpu"), None)


def test_rows_are_trained_on_and_nothing_else(system, rows, folder, capsys):
    extra = write_extra(folder / "hard.jsonl", fresh(rows, 7), [(0, 1, 0)] * 7)
    plain = experiment_of(system)
    more = experiment_of(system, f"--extra_train={extra}")
    for part in ("val", "test_data"):
        one, other = getattr(plain, part), getattr(more, part)
        assert [plain.rows[i].id for i in one.index] == [more.rows[i].id for i in other.index]
    ids = [more.rows[i].id for i in more.train.index]
    assert ids == [plain.rows[i].id for i in plain.train.index] + [
        f"extra-{n + 1}" for n in range(7)
    ]
    assert more.train.soft is None and (more.train.labels[more.train.index[-7:]] == 1).all()
    same = ("data_fingerprint", "split_fingerprint")
    assert [plain.facts[name] for name in same] == [more.facts[name] for name in same]
    assert more.facts["extra_train"]["rows"] == 7 and "extra_train" not in plain.facts
    assert "extra training rows: 7 of " in capsys.readouterr().out


def test_a_prompt_of_validation_or_test_is_left_out_whatever_the_limit(
    system, rows, folder, capsys
):
    """In other case and spacing, too; that of a training row is not."""
    by_part = {
        part: [row for row in rows if row.split == part] for part in ("train", "val", "test")
    }
    leaks = [
        dataclasses.replace(row, prompt=[f"  {row.prompt[0].upper()} "])
        for row in by_part["val"] + by_part["test"]
    ]
    chosen = leaks + by_part["train"][:3]
    extra = write_extra(folder / "leaks.jsonl", chosen, [(1, 0, 0)] * len(chosen))
    for words in ([], ["--limit=40"], ["--split=row", "--val_frac=0.3"]):
        facts = experiment_of(system, f"--extra_train={extra}", *words).facts["extra_train"]
        if "--split=row" not in words:
            assert (facts["rows"], facts["left_out"]) == (3, len(leaks))
        assert facts["rows"] + facts["left_out"] == len(chosen)
    assert "have a prompt of validation or test: left out" in capsys.readouterr().out
    nothing = write_extra(folder / "none.jsonl", leaks, [(1, 0, 0)] * len(leaks))
    with pytest.raises(ValueError, match="no row is left to train on"):
        experiment_of(system, f"--extra_train={nothing}")


def test_the_classes_are_those_of_both_files(system, rows, folder):
    lines = [
        {"prompt": row.prompt[0], "chosen": row.response_a[0], "rejected": row.response_b[0]}
        for row in rows
    ]
    chosen = folder / "chosen.jsonl"
    chosen.write_text("\n".join(map(json.dumps, lines)))
    ties = write_extra(folder / "ties.jsonl", fresh(rows, 3), [(0, 0, 1)] * 3)
    assert experiment_of(system, f"--data={chosen}").classes == ("A", "B")
    both = experiment_of(system, f"--data={chosen}", f"--extra_train={ties}")
    assert both.classes == ("A", "B", "tie")


# ---- probabilities

SHARES = [(0.6, 0.3, 0.1), (0.05, 0.9, 0.05), (0, 1, 0), (0.2, 0.2, 0.6)]


def test_the_loss_is_the_cross_entropy_with_the_probabilities():
    draw = np.random.default_rng(0)
    logits, p = draw.normal(size=(5, 3)), draw.dirichlet(np.ones(3), size=5)
    expected = -(p * log_softmax(logits, axis=1)).sum(axis=1)
    given = torch.tensor(logits), torch.tensor(p, dtype=torch.float32)
    assert target_losses(*given).numpy() == pytest.approx(expected, rel=1e-5)
    assert loss_sum([given[0]], given[1]).item() == pytest.approx(expected.sum(), rel=1e-5)
    smoothed = 0.7 * p + 0.3 / 3
    expected = -(smoothed * log_softmax(logits, axis=1)).sum()
    assert loss_sum([given[0]], given[1], 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_reach_the_batches_and_a_swap_exchanges_them(system, rows, folder):
    chosen = fresh(rows, 4)
    extra = write_extra(folder / "soft.jsonl", chosen, SHARES)
    experiment = experiment_of(system, f"--extra_train={extra}")
    data = experiment.train
    places = np.arange(len(data.index) - 6, len(data.index))
    labels = data.collate(places, 0)["labels"].numpy()
    assert labels[-4:] == pytest.approx(np.array(SHARES))
    hard = data.labels[data.index[places[:2]]]
    assert np.array_equal(labels[:2], np.eye(3)[hard])
    assert experiment.val.collate(np.arange(2), None)["labels"].dtype == torch.int64
    every = np.zeros(4, bool)
    for epoch in range(6):
        swapping = PairData(data.ids, data.index, data.labels, data.pad, 32, None, 1, data.soft)
        batch, plain = swapping.collate(places[-4:], epoch), data.collate(places[-4:], epoch)
        a, b = (each["input_ids"][:4].numpy() for each in (batch, plain))
        moved = (a != b).any(axis=1)
        expected = np.where(moved[:, None], swap_classes(plain["labels"].numpy()), plain["labels"])
        assert batch["labels"].numpy() == pytest.approx(expected)
        every |= moved
    assert every.any()


def test_a_gradient_of_probabilities_is_the_mean_of_those_of_hard_labels(system, rows, folder):
    experiment = experiment_of(system)
    state = experiment.build_state(experiment.load_encoder())
    model = state.model.eval()
    batch = experiment.train.collate(np.arange(1), None)

    def gradient(labels) -> torch.Tensor:
        model.zero_grad()
        loss, count = experiment.loss_sum(model, batch | {"labels": torch.tensor(labels)})
        assert count == 1
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.head.parameters()])

    parts = [gradient([label]) for label in range(3)]
    expected = sum(share * part for share, part in zip(SHARES[0], parts, strict=True))
    torch.testing.assert_close(gradient([list(SHARES[0])]), expected, rtol=1e-4, atol=1e-6)


METHODS = {
    "plain": [],
    "swap": ["--swap=both"],
    "sophia": ["--optimizer=sophiag", "--sophia.every=2", "--sophia.rows=6"],
    "r_drop": ["--r_drop=2", "--dropout=0.1", "--label_smoothing=0.1"],
    "backprop": ["--selection.name=selective_backprop"],
    "frozen": ["--freeze=all"],
    "shuffled": ["--labels=shuffled"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_trained_recorded_and_known_to_evaluate(method, system, rows, folder, tmp_path):
    extra = write_extra(tmp_path / "soft.jsonl", fresh(rows, 24), SHARES * 6)
    out = system.train(tmp_path / "run", f"--extra_train={extra}", *METHODS[method])
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["extra_train"] | {"fingerprint": ""} == {
        **{"fingerprint": "", "rows": 24, "left_out": 0, "soft": 18},
        "repairs": {"row_number_ids": 24},
    }
    if method == "plain":
        labelled = write_extra(tmp_path / "hard.jsonl", fresh(rows, 5), [(1, 0, 0)] * 5)
        evaluate(EvaluateConfig(str(out), labelled, str(tmp_path / "eval"), device="cpu"))
        found = json.loads((tmp_path / "eval/run.json").read_text())["evaluated"]
        assert found["seen"] == {"train": 5, "val": 0}


def test_hard_rows_of_a_soft_set_are_the_hard_labels(rows):
    assert soft_labels(rows, 3) is None
    mixed = [*rows[:3], dataclasses.replace(rows[3], soft=(0.5, 0.5, 0.0))]
    expected = [np.eye(3)[row.label] for row in rows[:3]] + [[0.5, 0.5, 0]]
    assert np.array_equal(soft_labels(mixed, 3), np.array(expected, np.float32))


def test_a_missing_or_unlabelled_file_is_refused(system, rows, folder):
    with pytest.raises(FileNotFoundError, match="no_such.csv: no such file"):
        experiment_of(system, f"--extra_train={folder}/no_such.csv")
    (folder / "bare.csv").write_text("prompt,response_a,response_b\np,a,b\n")
    with pytest.raises(ValueError, match="missing columns: winner_model_a"):
        experiment_of(system, f"--extra_train={folder}/bare.csv")
    with pytest.raises(SystemExit, match="extra_train"):
        parse_settings(preference.Config, ["--extra_trian=x"], "run_5_models.py")
