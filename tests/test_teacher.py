"""Learning from another run's answers: the loss, which answers, what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORDS
from test_methods import systems  # noqa: F401

import core
from evaluation.metrics import SWAP
from experiments import preference
from experiments.saved_pairs import open_run
from experiments.training import Targets, Training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(systems, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return systems["preference"].train(folder, "--lr=1e-2", "--beyond_style=false")


def experiment_of(systems, teacher, *words):  # noqa: F811
    words = [f"--teacher={teacher}", *words]
    config, _ = systems["preference"].parse(*words)
    return preference.Preference(config, core.single_world("cpu"), None)


def test_the_loss_is_that_of_a_plain_reference(systems, teacher):  # noqa: F811
    """(1 − α) · cross-entropy + α · T² · KL(teacher ‖ student), both at temperature T, summed
    (Hinton et al. 2015, section 2)."""
    words = ["--distill_weight=0.3", "--temperature=4", "--swap=augment", "--dropout=0"]
    experiment = experiment_of(systems, teacher, *words)
    state = experiment.build_state(experiment.load_encoder())
    answer = open_run(teacher, core.single_world("cpu"))
    rows, epoch = np.arange(9), 1
    batch = experiment.train.collate(rows, epoch)
    loss, count = experiment.loss_sum(state.model.eval(), batch)
    logits = experiment.target_logits(state.model, batch).logits.detach().double().numpy()
    asked = [experiment.rows[i] for i in experiment.train.index[rows]]
    p, swapped = answer.both_orders(asked)
    theirs = (p + swapped[:, SWAP]) / 2
    total, exchanged = 0.0, 0
    for row, (own, label) in enumerate(zip(logits, batch["labels"].tolist(), strict=True)):
        if label != asked[row].label or (label == 2 and is_exchanged(experiment, rows[row], epoch)):
            exchanged += 1
            theirs[row] = theirs[row, SWAP]
        soft = [np.log(theirs[row]) / 4, own / 4]
        q, s = (np.exp(x) / np.exp(x).sum() for x in soft)
        hard = np.exp(own) / np.exp(own).sum()
        total += 0.7 * -np.log(hard[label]) + 0.3 * 16 * (q * np.log(q / s)).sum()
    assert count == 9 and 0 < exchanged < 9
    assert loss.item() == pytest.approx(total, rel=1e-5)


def is_exchanged(experiment, row: int, epoch: int) -> bool:
    number = int(experiment.train.index[row])
    return bool(core.mix_seed(experiment.train.swap_seed, number, epoch, 3) & 1)


def test_two_passes_have_the_mean_of_their_losses():
    class Passes(Training):
        config = SimpleNamespace(r_drop=1.0, label_smoothing=0.0, distill_weight=1.0, temperature=1)
        given = iter(torch.randn(2, 5, 3).double())

        def target_logits(self, model, batch):
            return Targets(next(self.given), torch.arange(5) % 3, teacher=batch)

    passes = torch.randn(2, 5, 3).double()
    theirs = torch.randn(5, 3).double()
    Passes.given = iter(passes)
    loss, _ = Passes().loss_of_targets(None, theirs)
    q = theirs.softmax(-1)
    each = [(q * (q.log() - one.log_softmax(-1))).sum() for one in passes]
    assert loss.item() == pytest.approx((sum(each) / 2).item(), rel=1e-5)


def test_a_student_records_what_its_teacher_saw(systems, teacher, tmp_path, capsys):  # noqa: F811
    for weight in ("1", "0"):
        words = [f"--teacher={teacher}", f"--distill_weight={weight}", "--beyond_style=false"]
        run = systems["preference"].train(tmp_path / weight, *words)
    said = capsys.readouterr().out
    assert "note: the teacher was trained on the prompts of 43 of 43 training rows" in said
    assert said.count("teacher: answering") <= 1  # then they are in the cache
    facts = json.loads((tmp_path / "1/run.json").read_text())
    assert facts["teacher"]["trained_on"] == 43 and "teacher" in facts["contents"]
    weights = [tmp_path / each / "train/weights/best/model.safetensors" for each in ("1", "0")]
    assert weights[0].read_bytes() != weights[1].read_bytes() and run.exists()


def value_of(system, name: str) -> str:
    return next(word.split("=", 1)[1] for word in system.words if word.startswith(f"--{name}="))


def test_a_teacher_that_has_seen_rows_of_the_test_is_refused(systems, teacher, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="prompts of validation and test here"):
        experiment_of(systems, teacher, "--test_frac=0.3")
    with pytest.raises(ValueError, match="no finished run"):
        experiment_of(systems, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a teacher knows the labels"):
        experiment_of(systems, teacher, "--labels=shuffled")
    # nor through one that it learned from itself
    student = systems["preference"].train(tmp_path / "student", f"--teacher={teacher}")
    config = (student / "config.yaml").read_text()
    fewer = tmp_path / "fewer.csv"
    fewer.write_text(four_rows())
    data = value_of(systems["preference"], "data")
    (student / "config.yaml").write_text(config.replace(f"data: {data}", f"data: {fewer}"))
    with pytest.raises(ValueError, match="prompts of validation and test here"):
        experiment_of(systems, student, "--test_frac=0.3")
    (student / "config.yaml").write_text(config.replace(f"data: {data}", "data: /nowhere.csv"))
    with pytest.raises(ValueError, match="what it was trained on cannot be read"):
        experiment_of(systems, student)


def four_rows() -> str:
    lines = ["prompt,response_a,response_b,winner"]
    return "\n".join([*lines, *(f"other {k},{WORDS[k % 9]},good,A" for k in range(40))])
