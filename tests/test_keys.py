"""Every key of Hugging Face's classes has its effect, or is refused by name before a model loads."""

import pytest
from conftest import ROOT, SMALL
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from fintune.model.encoder import EncoderArguments
from fintune.recipe.recipe import SftArguments, parse_recipe

pytestmark = pytest.mark.usefixtures("task_folder")
BERT = str(ROOT / "configs/baselines/bert-base.yaml")


def sft(*flags: str, layers: tuple = ("small.yaml",)):
    words = ["data/toy.yaml", *layers, *SMALL, *flags]
    return parse_recipe(words, SftArguments, SFTConfig, ModelConfig, script="train_sft.py")


def cls(*flags: str, layers: tuple = (BERT,)):
    return parse_recipe(
        ["data/toy.yaml", *layers, *SMALL, *flags], EncoderArguments, TrainingArguments, script="train_cls.py"
    )
