"""Another ruler is refused, with the figure by the right count: each planted error once."""

import numpy as np
import pytest
from run_folders import write_run
from transformers import PreTrainedTokenizerFast

from data.documents import Document, Stream
from experiments.language import is_exact
from reports import compare


def rows(seed: int = 0) -> dict[str, list]:
    draw = np.random.default_rng(0)
    targets, characters = draw.integers(20, 60, 90), draw.integers(80, 250, 90)
    losses = targets * (2 + 0.1 * draw.normal(size=90) + 0.01 * seed)
    return {
        **{"id": list(range(90)), "group": [n // 3 for n in range(90)]},
        **{"loss_sum": losses.tolist(), "num_targets": targets.tolist()},
        "num_chars": characters.tolist(),
    }


def tail_dropped(planted, metrics):
    for n in range(0, 90, 10):
        planted["num_targets"][n] -= 8
        planted["loss_sum"][n] *= 1 - 8 / (planted["num_targets"][n] + 8)


def tail_dropped_with_its_text(planted, metrics):
    tail_dropped(planted, metrics)
    for n in range(0, 90, 10):
        planted["num_chars"][n] -= 30


def three_bytes_for_one(planted, metrics):
    planted["num_chars"][5] *= 3


def lower_cased(planted, metrics):
    metrics["tokenizer_exact"] = False


def counted_twice(planted, metrics):
    planted["num_targets"] = [n + 1 for n in planted["num_targets"]]


def another_stride(planted, metrics):
    metrics["stride"] = 32


def rows_left_out_of_the_file(planted, metrics):
    metrics["num_chars"] = sum(planted["num_chars"]) + 500


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (tail_dropped, "9 rows have other targets in b, such as 0 with"),
        (tail_dropped_with_its_text, "9 of 90 rows have other characters, such as row 0 with"),
        (three_bytes_for_one, "1 of 90 rows have other characters, such as row 5"),
        (lower_cased, "its tokenizer does not give the text back"),
        (counted_twice, "each row has +1 targets in b: one counted twice"),
        (another_stride, "stride of a is 64, of b 32"),
        (rows_left_out_of_the_file, "metrics.json counts"),
    ],
)
def test_another_ruler_is_refused(tmp_path, plant, said):
    common = {"stride": 64, "tokenizer_exact": True}
    write_run(tmp_path / "a", rows(), metrics=dict(common))
    planted, metrics = rows(1), dict(common)
    plant(planted, metrics)
    write_run(tmp_path / "b", planted, metrics=metrics)
    with pytest.raises(ValueError, match="not compared") as refused:
        compare.report([str(tmp_path / "a"), str(tmp_path / "b")])
    found = str(refused.value).replace(f"{tmp_path.name}/", "")
    assert said in found


def test_the_corrected_figure_is_that_of_the_right_count(tmp_path):
    write_run(tmp_path / "a", rows())
    planted = rows(1)
    planted["num_chars"] = [3 * n for n in planted["num_chars"]]
    write_run(tmp_path / "b", planted)
    right = sum(planted["loss_sum"]) / sum(rows()["num_chars"])
    with pytest.raises(ValueError, match=f"is {right:.4f}, not {right / 3:.4f}"):
        compare.report([str(tmp_path / "a"), str(tmp_path / "b")])


def test_one_ruler_and_other_tokenizers_pass(tmp_path):
    write_run(tmp_path / "a", rows())
    write_run(tmp_path / "b", rows(1))
    other = rows(2)
    draw = np.random.default_rng(1)
    other["num_targets"] = [n + int(draw.integers(0, 5)) for n in other["num_targets"]]
    write_run(tmp_path / "c", other, settings={"vocab_size": 99})
    assert "loss, b against a" in compare.report([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "nats_per_char, c against a" in compare.report(
        [str(tmp_path / "a"), str(tmp_path / "c")]
    )


def test_a_tokenizer_that_lower_cases_is_not_exact():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    for normalizer, exact in ((None, True), (normalizers.Lowercase(), False)):
        letters = {letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
        tokenizer = Tokenizer(models.BPE(letters, []))
        if normalizer:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        texts = ["A Title.", "naïve café"]
        ids = [wrapped(text)["input_ids"] for text in texts]
        offsets = np.cumsum([0, *map(len, ids)])
        documents = [Document(str(n), str(n), text, 2, "test") for n, text in enumerate(texts)]
        assert is_exact(wrapped, Stream(np.concatenate(ids), offsets, documents)) is exact
