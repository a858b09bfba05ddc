"""Small random decoders with a working tokenizer: GPT-2 and Llama style, 2 layers of 32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_models import _byte_pairs

END = "<|endoftext|>"


def tiny_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE learnt from `texts`, with an end of text and no padding, as GPT-2's."""
    from transformers import GPT2Tokenizer

    vocabulary, merges = _byte_pairs(texts, [END])
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def build_tiny_gpt2(folder: Path, texts: Sequence[str], layers: int = 2, positions: int = 64):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=layers,
        n_head=2,
        n_positions=positions,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.2,  # so that tokens matter to the next one
    )
    torch.manual_seed(7)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def build_tiny_llama(folder: Path, texts: Sequence[str]):
    """Rotary positions, grouped queries, an output matrix of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
