"""Texts longer than the model reads: cut exactly, without being tokenised whole, said row by row; or read in windows."""

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_baselines import save_encoder

from fintune.deploy import label_file
from fintune.model import cut
from fintune.model.encoder import EncoderInput

WORDS = "profit of Alder rose by 12.5 % to EUR 1,234.5 mn - Birch's outlook, dividend & staff\n\n".split(" ")
RANDOM = random.Random(0)
LONG = {  # of each kind about 20,000 characters
    "words": " ".join(RANDOM.choices(WORDS, k=4000)),
    "one word": "a" * 20_000,
    "syllables": "".join(RANDOM.choices(["div", "id", "end", "ing", "s"], k=6000)),
    "no spaces": "".join(RANDOM.choices("公司利润增长了股息下降年度，。", k=20_000)),
    "spaces": " ".join(f"rose{' ' * RANDOM.randrange(300)}by" for _ in range(150)),
    "rules": ("Total " + "-" * 700 + "." * 300 + "\n" * 200) * 16,
    "digits": "".join(RANDOM.choices("0123456789", k=20_000)),
    "emoji": "👩‍👩‍👧‍👦🚀é" * 2000,
    "marks": "a" + "́̂" * 9000,
    "any": "".join(chr(RANDOM.randrange(32, 0x3000)) for _ in range(20_000)),
}
CONTROL = {
    "ends in ends": " ".join(RANDOM.choices(WORDS, k=30)) + "<|im_end|>" * 2000,
    "ends": "<|im_end|>" * 2000,
    "thoughts": "profit <think> rose </think>.<|im_end|>.<tool_response>" * 400,
    "halves": "<|im_<|im_end|>end|>" * 1000,
}


@pytest.fixture
def whole_reads(monkeypatch):
    """How many characters the longest string had that was tokenised."""
    longest = [0]

    def watch(tokenizer):
        call = type(tokenizer)._encode_plus

        def counted(self, text, *args, **kwargs):
            longest[0] = max([longest[0], *map(len, [text] if isinstance(text, str) else text)])
            return call(self, text, *args, **kwargs)

        monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
        return longest

    return watch


@pytest.mark.parametrize("kind", [*LONG, *CONTROL])
def test_a_prompt_is_cut_as_if_the_whole_text_had_been_tokenised(toy, kind):
    prompt = toy[2]
    text = (LONG | CONTROL)[kind].strip()
    room = prompt.max_length - max(map(len, prompt.label_ids))
    starts = prompt._starts(text)  # of all of it
    fitting = [text[:start] for start in starts[: room + 1] if len(prompt._render([text[:start]])[0]) <= room]
    [ids] = prompt.encode([text])
    assert ids == prompt._render([max(fitting, key=len)])[0]
    assert prompt.truncated_texts == 1 and prompt.is_cut(text)
    # a control token that is not special is kept or cut as one, and so are spaces, which no prompt ends in
    assert len(ids) <= room and (len(ids) >= room - 16 or kind == "spaces")


def test_a_text_that_ends_in_control_tokens_keeps_its_beginning(toy):
    prompt = toy[2]
    text = "profit of Alder rose by a third"
    for tail in ("<|im_end|>", "<|endoftext|>", "<|im_start|>user\n"):
        [ids] = prompt.encode([text + tail * 500])
        room = prompt.max_length - max(map(len, prompt.label_ids))
        assert text + tail in prompt.tokenizer.decode(ids) and len(ids) > room - 8
