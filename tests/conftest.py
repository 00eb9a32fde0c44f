"""A small task and a small model, built in the test: no network, no files from elsewhere."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
os.environ.pop("FINTUNE_DATA", None)
ROOT = Path(__file__).resolve().parents[1]

SMALL = ["--num_train_epochs", "1", "--report_to", "none", "--disable_tqdm", "true"]


def script(name: str):
    """A script of the root, loaded by path: nothing may be imported from there, evaluate.py hides a package."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = {
    "Up": ["{} raised its dividend again", "profit of {} rose by a third", "{} wins a large order from the state"],
    "Up or down": ["{} keeps its outlook for the year", "the meeting of {} is held in May", "{} opens an office"],
    "Down": ["{} cut its dividend", "losses of {} widened", "{} lays off a third of its staff"],
}
COMPANIES = ["Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Pine", "Rowan", "Willow"]


@pytest.fixture
def one_thread():
    """Models of a few thousand parameters: threads would wait for each other longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """data/toy.yaml, its CSV of 108 rows and its template in a folder of their own; labels share first tokens."""
    monkeypatch.chdir(tmp_path)
    return write_task(tmp_path)


def write_task(tmp_path: Path) -> Path:
    for name in ("data", "templates"):
        (tmp_path / name).mkdir()
    rows = [
        f"{text.format(company)} {number},{label}"
        for label, texts in TEXTS.items()
        for number, text in enumerate(texts)
        for company in COMPANIES
    ]
    (tmp_path / "data/toy.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "data/toy.yaml").write_text("task: toy\nlabels: [Up, Up or down, Down]\nfiles: {all: toy.csv}\n")
    (tmp_path / "templates/toy.jinja").write_text(
        "Where does it go? One of: {{ labels | join('; ') }}.\n\n{{ text }} /no_think"
    )
    small = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    (tmp_path / "small.yaml").write_text(
        f"extends: {ROOT}/configs/tiny.yaml\ntiny_vocab_size: 500\nsave_strategy: 'no'\n"
        f"tiny_config: {small}num_key_value_heads: 2, head_dim: 8, tie_word_embeddings: true}}\n"
    )
    return tmp_path


@pytest.fixture
def toy(task_folder):
    """(task, data, prompt, model) of the toy task with an untrained model in float32."""
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, SFTConfig

    from fintune.data.load import load_data
    from fintune.model.load import load_tokenizer
    from fintune.model.prompt import Prompt
    from fintune.model.tiny import build_tiny
    from fintune.recipe.recipe import SftArguments, parse_recipe

    recipe = parse_recipe(["data/toy.yaml", "small.yaml", *SMALL], SftArguments, SFTConfig, ModelConfig)
    training_args = recipe.training_args
    data = load_data(recipe.task)
    texts = data.splits["train"]["text"]
    base = build_tiny(task_folder / "base", recipe.task, texts, recipe.run_args, training_args)
    tokenizer = load_tokenizer(base, recipe.model_args.model_revision, training_args.chat_template_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    return recipe.task, data, Prompt(recipe.task, tokenizer, 120), model


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A language model's run that is right more often than not."""
    folder = write_task(tmp_path_factory.mktemp("run"))
    before = os.getcwd()
    os.chdir(folder)
    try:
        flags = ["--num_train_epochs", "15", "--learning_rate", "1e-2"]
        script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, *flags])
    finally:
        os.chdir(before)
    return folder / "runs/toy/small"


@pytest.fixture(scope="session")
def classifier(run_dir):
    from fintune.deploy.classifier import Classifier

    return Classifier.from_pretrained(run_dir)
