"""Small random models, each shape in one place, with a working tokenizer where one is needed.

    config = bert_config(num_hidden_layers=4)               # gpt2_config, llama_config
    folder = build_tiny_model("deberta-v3", folder, texts)  # encoders
    folder = build_tiny_gpt2(folder, texts)                 # decoders

What differs from the published model is size alone: 4 layers of 32, 512 positions, and a
vocabulary learnt from `texts`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LAYERS = 4
WIDER = {"initializer_range": 0.1}  # .02 · √(768 / 32): sums as large as in a model of 768
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
END = "<|endoftext|>"


def bert_config(**changes: Any) -> Any:
    """A BERT of 2 layers of 32."""
    from transformers import BertConfig

    shape = dict(SIZES, vocab_size=128, num_hidden_layers=2, max_position_embeddings=128)
    return BertConfig(**shape | changes)


def gpt2_config(**changes: Any) -> Any:
    """A GPT-2 of 2 layers of 32."""
    from transformers import GPT2Config

    shape = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2Config(**shape | changes)


def llama_config(**changes: Any) -> Any:
    """A Llama of 2 layers of 32: rotary positions, grouped queries, an output matrix of its own."""
    from transformers import LlamaConfig

    shape = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**shape | changes)


def _word_pieces(texts: Sequence[str], folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    # The trainer numbers the characters as its hash table gives them, unless they are named.
    letters = sorted(set("".join(texts).lower()) - {" "})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + x for x in letters)]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(
        texts, vocab_size=300, min_frequency=1, show_progress=False, special_tokens=names
    )
    trained.save_model(str(folder))
    return BertTokenizer(vocab=str(folder / "vocab.txt"))


def _byte_pairs(texts: Sequence[str], specials: list[str]) -> tuple[dict, list[tuple]]:
    """Vocabulary and merges of a byte-level BPE; no text is unknown to it."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=specials, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return model["vocab"], pairs


def _roberta_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from transformers import RobertaTokenizer

    vocabulary, merges = _byte_pairs(texts, ["<s>", "<pad>", "</s>", "<unk>"])
    vocabulary["<mask>"] = len(vocabulary)
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def _deberta_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from transformers import DebertaTokenizer

    vocabulary, merges = _byte_pairs(texts, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"])
    return DebertaTokenizer(vocab=vocabulary, merges=merges)


def _modernbert_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    names = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=names, show_progress=False)
    roles = {f"{name.strip('[]').lower()}_token": name for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **roles)


def _pieces(texts: Sequence[str], specials: list[str]) -> list[tuple[str, float]]:
    """Pieces and scores of a Unigram model, as sentencepiece would learn them; equals by name."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    trained = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=specials, unk_token=specials[1], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    vocabulary = json.loads(trained.to_str())["model"]["vocab"]
    first, learnt = vocabulary[: len(specials)], vocabulary[len(specials) :]
    learnt = [(piece, round(score, 2)) for piece, score in learnt]  # sums differ in the last digits
    return [*map(tuple, first), *sorted(learnt, key=lambda piece: (-piece[1], piece[0]))]


def _deberta_v3_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from transformers import DebertaV2Tokenizer

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return DebertaV2Tokenizer(vocab=_pieces(texts, specials), unk_id=1)


def _albert_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from transformers import AlbertTokenizer

    specials = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return AlbertTokenizer(vocab=_pieces([t.lower() for t in texts], specials))


# architecture: tokenizer, transformers' configuration class, what it needs beyond SIZES
ARCHITECTURES: dict[str, tuple[Callable[[Sequence[str], Path], Any], str, dict]] = {
    "distilbert": (
        _word_pieces,
        "DistilBertConfig",
        {"dim": 32, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 64},
    ),
    "bert": (_word_pieces, "BertConfig", {}),
    "roberta": (
        _roberta_tokenizer,
        "RobertaConfig",
        {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "electra": (_word_pieces, "ElectraConfig", {"embedding_size": 32}),
    "deberta": (
        _deberta_tokenizer,
        "DebertaConfig",
        {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "deberta-v3": (
        _deberta_v3_tokenizer,
        "DebertaV2Config",
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    "albert": (_albert_tokenizer, "AlbertConfig", {"embedding_size": 16}),
    "modernbert": (
        _modernbert_tokenizer,
        "ModernBertConfig",
        {"local_attention": 16, "max_position_embeddings": 2048},
    ),
}


def build_tiny_model(architecture: str, folder: Path, texts: Sequence[str]) -> Path:
    """Write config, random weights and a tokenizer learnt from `texts` into a new folder."""
    import torch
    import transformers

    build_tokenizer, config_name, options = ARCHITECTURES[architecture]
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(texts, folder)
    tokenizer.save_pretrained(folder)
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    if architecture == "modernbert":  # its configuration names them too
        tokens |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    sizes = {} if architecture == "distilbert" else SIZES
    config = getattr(transformers, config_name)(
        vocab_size=len(tokenizer), **(sizes | options | WIDER), **tokens
    )
    torch.manual_seed(1234)  # no seed that a run would draw its own random weights from
    transformers.AutoModel.from_config(config).save_pretrained(folder)

    opened = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [token for text in texts for token in opened(text)["input_ids"]]
    unknown = ids.count(opened.unk_token_id) / len(ids)
    assert len(opened) >= 50 and unknown < 0.01, f"{architecture}: {unknown:.1%} unknown tokens"
    assert max(ids) < config.vocab_size
    return folder


# ------------------------------------------------------------------------------ decoders


def tiny_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE learnt from `texts`, with an end of text and no padding, as GPT-2's."""
    from transformers import GPT2Tokenizer

    vocabulary, merges = _byte_pairs(texts, [END])
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def build_tiny_gpt2(folder: Path, texts: Sequence[str], layers: int = 2, positions: int = 64):
    import torch
    from transformers import GPT2LMHeadModel

    tokenizer = tiny_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    config = gpt2_config(
        vocab_size=len(tokenizer),
        n_layer=layers,
        n_positions=positions,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.2,  # so that tokens matter to the next one
    )
    torch.manual_seed(7)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def build_tiny_llama(folder: Path, texts: Sequence[str]):
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = tiny_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    config = llama_config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
