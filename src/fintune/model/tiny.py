"""A Qwen3 of about 3 million parameters, built on the spot: the same method on any machine, no download."""

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainingArguments, set_seed

from fintune.data.inputs import Input, columns_of, text_of
from fintune.errors import UserError
from fintune.model.prompt import NO_THINK, read_template
from fintune.recipe.recipe import SftArguments
from fintune.recipe.task import Task

# Qwen3's own pre-tokeniser pattern and control tokens (Qwen/Qwen3-8B, tokenizer.json)
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTROL_TOKENS = ["<tool_response>", "</tool_response>", "<think>", "</think>"]


def build_tiny(
    folder: Path, task: Task, inputs: Sequence[Input], run_args: SftArguments, training_args: TrainingArguments
) -> str:
    """Write a random Qwen3 and a BPE tokenizer to `folder`, in `from_pretrained` form, and return its path.

    Args:
        inputs: of the training rows; the vocabulary comes from them, the task's template and its label names.
        run_args: `tiny_config` and `tiny_vocab_size` of the recipe.
        training_args: its seed draws the weights.
    """
    if training_args.process_index > 0:  # the first of several processes has written it
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(task, inputs, run_args.tiny_vocab_size)
    set_seed(training_args.seed)
    config = tiny_config(run_args.tiny_config or {}, tokenizer)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_config(stated: dict, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The recipe's `tiny_config` with the tokenizer's ids.

    Raises:
        UserError: a key is none of Qwen3Config's, or sizes do not fit each other.
    """
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = {key.name for key in fields(Qwen3Config)}
    if unknown := sorted(stated.keys() - known) or sorted(stated.keys() & ids.keys()):
        raise UserError(f"`tiny_config`: {', '.join(unknown)}: not keys of Qwen3Config that it takes; take them out")
    try:
        config = Qwen3Config(**ids, **stated)
    except Exception as error:  # each key's own check
        raise UserError(f"`tiny_config`: {' '.join(str(error).split())[:300]}; fix it") from error
    if config.num_key_value_heads < 1 or config.num_attention_heads % config.num_key_value_heads:
        raise UserError(
            f"`tiny_config`: num_attention_heads is {config.num_attention_heads}, no multiple of num_key_value_heads, "
            f"{config.num_key_value_heads}"
        )
    return config


def train_tokenizer(task: Task, inputs: Sequence[Input], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen3's pre-tokeniser and control tokens, trained on the task's own texts and columns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # the instruction and the labels are in every row, so their words should be whole: weigh them like frequent words
    frame = [read_template(task), *task.names, NO_THINK, "user", "assistant"]
    words = [part for given in inputs for part in (text_of(given), *columns_of(given).values())]
    tokenizer.train_from_iterator([*words, *frame * 50], trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.add_tokens(CONTROL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
