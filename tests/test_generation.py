"""Answers: each is the prompt's own, whatever stands beside it and whatever the makers advise."""

import dataclasses
import json

import pytest
import torch
from conftest import run_script
from tiny_instructions import build_models, texts, write_rows
from tiny_models import END

from commands import generate as answering
from models import causal, generation, packed
from models.decoding import Chooser, Decoding
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
POSITIONS = 256
ADVICE = {  # what a generation_config.json may say
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.05,
    "top_k": 1,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "max_length": 12,
    "min_new_tokens": 90,
    "suppress_tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9],
    "eos_token_id": [5, 6, 7],
    "num_beams": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("models"))


def load(models, kind: str):
    folder = str(models[kind])
    model = causal.load_model(folder, causal.load_config(folder), attention="sdpa").eval()
    return model, causal.load_tokenizer(folder)


def prompts_of(tokenizer, lengths) -> list[str]:
    """A prompt of each number of tokens, all of them different."""
    ids = tokenizer(" ".join(texts()))["input_ids"]
    prompts = []
    for number, length in enumerate(lengths):
        text = tokenizer.decode(ids[7 * number : 7 * number + length])
        assert len(tokenizer(text)["input_ids"]) == length
        prompts.append(text)
    return prompts


def test_answers_that_need_too_much_memory_are_written_in_halves(models, monkeypatch):
    model, tokenizer = load(models, "gpt2")
    prompts = prompts_of(tokenizer, (9, 9, 7, 12, 9, 5))
    decoding = Decoding(max_new_tokens=12)
    expected = generation.generate(model, tokenizer, prompts, decoding)
    whole, tried = model.generate, []

    def scarce(**inputs):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(**inputs)

    monkeypatch.setattr(model, "generate", scarce)
    assert generation.generate(model, tokenizer, prompts, decoding) == expected
    assert tried[0] == 6 and sum(rows for rows in tried if rows <= 2) == 6


def by_hand(model, tokenizer, prompt: str, count: int, penalty: float = 1.0) -> str:
    """Greedily, rereading everything, one prompt alone; up to where two tokens are equally likely,
    so that rounding decides."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < min(start + count, POSITIONS):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            for token in set(ids) if penalty != 1 else ():
                logits[token] *= 1 / penalty if logits[token] > 0 else penalty
            best, second = logits.topk(2).values.tolist()
            if best - second < 1e-4 or int(logits.argmax()) == tokenizer.eos_token_id:
                break
            ids.append(int(logits.argmax()))
    return tokenizer.decode(ids[start:]).strip()


# ----------------------------------------------------------------------------- company


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=40),
        Decoding(max_new_tokens=40, repetition_penalty=1.5),
        Decoding(max_new_tokens=40, temperature=1.3, top_k=9, top_p=0.8, repetition_penalty=1.2),
    ],
    ids=["greedy", "penalty", "drawn"],
)
def test_an_answer_does_not_depend_on_its_company(kind, decoding, models):
    model, tokenizer = load(models, kind)
    packed.use_packing(model, 128)  # as in training
    prompts = prompts_of(tokenizer, [252, 9, 255, 21, 216, 3])
    alone = [generation.generate(model, tokenizer, [prompt], decoding)[0] for prompt in prompts]
    assert generation.generate(model, tokenizer, prompts, decoding) == alone
    together = generation._groups([[0] * 900, *[[0] * 8] * 600], [100, *[24] * 600], None)
    assert list(map(len, together)) == [1, 600]
    long = generation._groups([[0] * 1000] * 70, [24] * 70, None)
    assert list(map(len, long)) == [32, 32, 6]
    backwards = generation.generate(model, tokenizer, prompts[::-1], decoding, rows_each=3)
    assert backwards == alone[::-1]
    if not decoding.temperature:
        penalty, equal = decoding.repetition_penalty, 0
        for prompt, answer in zip(prompts, alone, strict=True):
            text = by_hand(model, tokenizer, prompt, 40, penalty)
            assert answer.text.startswith(text)
            equal += answer.text == text
        assert equal >= 4


def test_a_draw_is_that_of_the_seed_and_the_prompt(models):
    model, tokenizer = load(models, "gpt2")
    prompts = prompts_of(tokenizer, [30, 30])
    before = torch.random.get_rng_state()
    drawn = [
        generation.generate(
            model, tokenizer, prompts, Decoding(max_new_tokens=9, temperature=1.0, seed=seed)
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] and all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)  # training draws from that one


def test_two_processes_give_the_answers_of_one(models, tmp_path):
    data = write_rows(tmp_path / "rows.json", 14)
    words = [f"--model={models['gpt2']}", f"--data={data}", "--max_new_tokens=30", "--device=cpu"]
    words += ["--temperature=0.8", "--seed=4", "--repetition_penalty=1.1"]
    files = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    alone = [*words, f"--output={files[0]}"]
    answering.generate(parse_settings(answering.GenerateConfig, alone, "generate")[0])
    run_script("alpaca_sft.py", "generate", *words, f"--output={files[1]}", processes=2)
    one, two = (file.read_text() for file in files)
    assert one == two and one.count("\n") == 14
    line = json.loads(one.split("\n")[0])
    assert line["decoding"] == dataclasses.asdict(
        Decoding(max_new_tokens=30, temperature=0.8, seed=4, repetition_penalty=1.1)
    )


# --------------------------------------------------------------------- the makers' advice


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_the_makers_advise_does_not_act_and_is_not_saved(file, models, tmp_path):
    model, tokenizer = load(models, "llama")
    prompts = prompts_of(tokenizer, [10, 60])
    wanted = generation.generate(model, tokenizer, prompts, Decoding(max_new_tokens=40))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / file).read_text())
    advice = {k: v for k, v in ADVICE.items() if file != "config.json" or k != "eos_token_id"}
    (tmp_path / file).write_text(json.dumps(settings | advice))
    model, tokenizer = load({"advised": tmp_path}, "advised")
    advised = model.generate(
        **tokenizer(prompts[0], return_tensors="pt"), pad_token_id=0, max_new_tokens=40
    )
    text = tokenizer.decode(advised[0, 10:], skip_special_tokens=True).strip()
    if file == "generation_config.json":
        assert text != wanted[0].text  # transformers itself follows it
    assert generation.generate(model, tokenizer, prompts, Decoding(max_new_tokens=40)) == wanted
    model, _ = load({"advised": tmp_path}, "advised")
    generation.own_decoding(model, tokenizer)
    model.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new/generation_config.json").read_text())
    assert not saved.keys() & (ADVICE.keys() - {"eos_token_id"})
    assert saved["eos_token_id"] == tokenizer.eos_token_id


# ------------------------------------------------------------------------------- prompts


def test_an_end_of_text_in_a_prompt_is_text_to_the_model_that_answers(models, monkeypatch):
    model, tokenizer = load(models, "gpt2")
    seen = []
    answer = model.generate
    monkeypatch.setattr(model, "generate", lambda **g: seen.append(g["input_ids"]) or answer(**g))
    generation.generate(model, tokenizer, [f"write {END} it"], Decoding(max_new_tokens=2))
    assert tokenizer.eos_token_id not in seen[0] and tokenizer.decode(seen[0][0]).count(END) == 1


@pytest.mark.parametrize("length", [256, 257, 400])
def test_a_prompt_without_room_is_cut_in_its_middle_and_its_neighbours_are_whole(length, models):
    model, tokenizer = load(models, "gpt2")
    long, short = prompts_of(tokenizer, [length, 12])
    decoding = Decoding(max_new_tokens=16)
    answers = generation.generate(model, tokenizer, [long, short], decoding)
    assert [answer.cut for answer in answers] == [length - 240, 0]
    ids = tokenizer(long)["input_ids"]
    kept = tokenizer.decode(ids[:120] + ids[-120:])
    assert answers[0].text == by_hand(model, tokenizer, kept, 16)
    assert answers[1] == generation.generate(model, tokenizer, [short], decoding)[0]


def test_prompts_without_room_are_counted_and_named():
    names = [f"row-{number}" for number in range(7)]
    said = generation.said_of_cut(names)
    assert said.startswith("7 prompts leave no room") and "row-0" in said and "2 more" in said


# ------------------------------------------------------------------------------- choosing


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0])
    count, inf = 4000, -torch.inf
    rows = logits.repeat(count, 1)
    ids = [torch.tensor([3])] * count
    for settings, expected in (
        ({"temperature": 1.0}, logits),
        ({"temperature": 0.5}, 2 * logits),
        ({"temperature": 1.0, "top_k": 2}, torch.tensor([inf, 2.0, inf, 1.0])),
        # shares .134 .602 .030 .221: the likeliest two have .823
        ({"temperature": 1.0, "top_p": 0.8}, torch.tensor([inf, 2.0, inf, 1.0])),
        ({"temperature": 1.0, "repetition_penalty": 2.0}, torch.tensor([0.5, 2.0, -1.0, 0.5])),
    ):
        choose = Chooser(Decoding(**settings), range(count))
        shares = torch.bincount(choose(ids, rows), minlength=4) / count
        torch.testing.assert_close(shares, expected.softmax(-1), rtol=0, atol=0.03)
        assert shares[expected == inf].sum() == 0
    assert (Chooser(Decoding(), range(count))(ids, rows) == 1).all()


@pytest.mark.parametrize(
    "settings",
    [
        *({"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}),
        *({"repetition_penalty": 0.0}, {"max_new_tokens": 0}, {"temperature": float("nan")}),
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"--{next(iter(settings))} .*: expected"):
        Decoding(**settings)
