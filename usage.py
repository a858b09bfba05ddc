"""What --help prints: the commands, three examples, and the settings in six groups.

--help has the settings that most runs are about, and the names of the others; --help all explains
each. The words are those beside the settings in the source.
"""

import re
import shutil
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

from settings import Section, conditions, field_types, in_words, options_of, value_of

# Group → the settings that --help explains, and those that it only names.
GROUPS: dict[str, tuple[str, str]] = {
    "data": (
        "data task suite template mask_prompt prompt limit split max_length",
        "minus_one extra_train labels train_frac train_rows val_frac test_frac prompt_frac "
        "skip_bad_rows data_seed "
        "validation.fraction validation.seed validation.truncate_to validation.il_model "
        "tokenizer vocab_size prefix_space sequences within_titles packing mask_frac swap crop "
        "stride train_stride detokenize group_by_length",
    ),
    "model": (
        "model init size student_of freeze lora_r lora_alpha head n_layer n_head n_embd",
        "weights pooling form features untie_head dropout cache_features lora_scaling lora_dropout "
        "lora_qkv "
        "lora_layers lora_head positions rope_theta norm mlp bias qk_norm attention_gate "
        "layer_scale scale_residual_init",
    ),
    "optimisation": (
        "epochs budget batch micro_batch lr head_lr schedule warmup_frac optimizer "
        "weight_decay selection.name stacking.enabled layer_drop.enabled",
        "budget_unit budget_table head_epochs min_lr decay_frac lr_factors layer_decay betas eps "
        "momentum matrix_lr max_grad_norm label_smoothing r_drop teacher distill_weight "
        "temperature average average_frac selection.beta selection.history selection.mega_batch "
        "selection.il_losses selection.charge_forward sophia.rho sophia.every sophia.rows "
        "sophia.charge stacking.initial_layers stacking.fractions layer_drop.theta "
        "layer_drop.gamma",
    ),
    "evaluation": (
        "eval_every validate_every test_with blend",
        "patience beyond_style baseline samples sample_tokens eval_batches attention_texts",
    ),
    "machine": (
        "device precision",
        "compile backend reduce_dtype attention deterministic workers join_tokens shard "
        "shard_reduce checkpointing machine_log devices strategy",
    ),
    "run": (
        "seed out fresh dry_run",
        "seed_init seed_order seed_masks save_every keep_every ckpt_path trackers page stop_after",
    ),
}
COLUMN = 25  # where explanations begin


def help_text(
    kind: type[Section],
    prog: str,
    about: str = "",
    commands: Iterable[str] = (),
    everything: bool = False,
) -> str:
    """kind: the settings. about: the docstring of a script, with its commands on lines that begin
    with `python ` or `torchrun `."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 100))
    about, found = (about or "").strip(), field_types(kind)
    summary = " ".join(about.partition("\n\n")[0].split())
    parts = [_wrapped("", f"{prog}: {summary}", width, 2)]
    if commands:
        words = f"{' | '.join(commands)}   ({prog} COMMAND --help)"
        parts.append(_wrapped("commands: ", words, width, 10))
    if examples := _examples(about)[:3]:
        parts.append("\n".join(["examples", *(f"  {line}" for line in examples)]))
    texts, limits = explanations(kind), conditions(kind)
    config = kind()
    grouped = {name for pair in GROUPS.values() for name in " ".join(pair).split()}
    own = " ".join(name for name in found if name not in grouped)  # of a command
    for group, (main, more) in {"settings": (own, ""), **GROUPS}.items():
        lines = [group]
        shown = [name for name in main.split() if name in found]
        others = [name for name in more.split() if name in found]
        if group == "run":
            lines += _entry("config FILE", "a YAML file of settings; the others override it", width)
        for name in shown + (others if everything else []):
            title = f"{name} {_hint(found[name])}".rstrip()
            text = texts[name]
            if everything and name in limits:
                text += f"; counts {in_words(limits[name])}"
            lines += _entry(
                title, text + _choices_and_default(value_of(config, name), found[name], text), width
            )
        if others and not everything:
            lines.append(_wrapped("  also: ", ", ".join(others), width, 8))
        if len(lines) > 1:
            parts.append("\n".join(lines))
    end = "--name value and name=value are the same; a flag alone is true"
    parts.append(end if everything else f"{end}; --help all explains each setting")
    return "\n\n".join(parts)


def explanations(kind: type[Section]) -> dict[str, str]:
    """The words beside each setting in the source, by full name."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    names = field_types(kind)
    return {
        action.dest: " ".join(str(action.help or "").split())
        for action in parser._actions
        if action.dest in names
    }


def _examples(about: str) -> list[str]:
    """The commands in a docstring; one that goes on after a backslash in one line."""
    lines = re.sub(r"\\\n\s*", "", about).splitlines()
    found = [line.strip() for line in lines if re.match(r"\s+(python|torchrun) ", line)]
    return [re.sub(r"\s{2,}#.*", "", line) for line in found]


def _entry(title: str, text: str, width: int) -> list[str]:
    head = f"  --{title}"
    if len(head) > COLUMN - 1:
        return [head, *_wrapped(" " * COLUMN, text, width, COLUMN).splitlines()]
    return _wrapped(head.ljust(COLUMN), text, width, COLUMN).splitlines()


def _wrapped(head: str, text: str, width: int, indent: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _hint(kind: Any) -> str:
    """What a value looks like: N, TEXT, a|b; nothing for true and false."""
    kind, choices = options_of(kind)
    if choices:
        short = "|".join(choices)
        return short if len(short) <= 14 else "NAME"
    if kind is bool:
        return ""
    if kind in (int, float):
        return "N"
    return "[A,B]" if typing.get_origin(kind) is list else "TEXT"


def _choices_and_default(value: Any, kind: Any, text: str) -> str:
    """; one of a, b (a): choices that the text does not name. What null is, stands in the text."""
    listed, choices = "", options_of(kind)[1]
    if _hint(kind) == "NAME" and not all(choice in text for choice in choices):
        listed = f"; one of {', '.join(choices)}"
    if value is None or value == "":
        return listed
    if isinstance(value, bool):
        value = str(value).lower()
    return f"{listed} ({value:g})" if isinstance(value, float) else f"{listed} ({value})"
