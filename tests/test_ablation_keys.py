"""The keys that ablations turn: another number of key-value heads, a share of the training rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, script
from trl import ModelConfig, SFTConfig

from fintune.data.load import load_data
from fintune.deploy.classifier import Classifier
from fintune.deploy.export import export
from fintune.errors import UserError
from fintune.model.kv_heads import set_key_value_heads
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.scoring.label_scorer import LabelScorer


def test_repeated_heads_compute_the_same_function_and_averaged_ones_their_mean(toy, task_folder):
    _, data, prompt, model = toy
    texts = data.splits["train"]["text"][:8]
    native = LabelScorer(model, prompt).probabilities(texts)
    weight = model.model.layers[0].self_attn.k_proj.weight.detach().clone()  # 2 heads of 8
    set_key_value_heads(model, 4)
    assert model.config.num_key_value_heads == 4
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (32, 32)
    np.testing.assert_allclose(LabelScorer(model, prompt).probabilities(texts), native, atol=1e-6)
    set_key_value_heads(model, 2)  # the mean of two equal ones is what they were made of
    torch.testing.assert_close(model.model.layers[0].self_attn.k_proj.weight.detach(), weight)
    set_key_value_heads(model, 1)
    found = model.model.layers[0].self_attn.k_proj.weight.detach()
    torch.testing.assert_close(found, (weight[:8] + weight[8:]) / 2)
    assert np.abs(LabelScorer(model, prompt).probabilities(texts) - native).max() > 1e-6
    for wrong in (3, 8):
        with pytest.raises(UserError, match=f"is {wrong}; 4 query heads and 1 key-value heads"):
            set_key_value_heads(model, wrong)


def test_a_run_with_other_heads_is_scored_and_exported_with_them(task_folder):
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, "--key_value_heads", "1"])
    folder = task_folder / "runs/toy/small"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    classifier = Classifier.from_pretrained(folder)
    assert classifier.scorer.model.config.num_key_value_heads == 1
    expected = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(classifier([row["text"] for row in rows])[1], expected, atol=1e-5)
    export(folder, Path("plain"), None)
    assert json.loads((task_folder / "plain/config.json").read_text())["num_key_value_heads"] == 1


def test_a_share_of_the_training_rows_lies_within_a_larger_one_and_leaves_the_test_alone(toy):
    task, data, _, _ = toy
    before, whole = set(), set(data.splits["train"]["text"])
    for share in (0.1, 0.4, 0.7):
        part = load_data(replace(task, train_share=share))
        rows = part.splits["train"]
        assert before < set(rows["text"]) < whole
        for label in range(3):
            count = list(data.splits["train"]["label"]).count(label)
            assert 0 <= list(rows["label"]).count(label) - share * count < 1
        assert part.splits["test"]["text"] == data.splits["test"]["text"]
        assert (part.sha256, part.clean) == (data.sha256, data.clean)
        before = set(rows["text"])


def test_a_share_is_a_number_up_to_one(task_folder):
    for wrong in ("0", "1.5", "true", "half"):
        (task_folder / "share.yaml").write_text(f"train_share: {wrong}\n")
        with pytest.raises(UserError, match="above 0 and up to 1"):
            parse_recipe(["data/toy.yaml", "small.yaml", "share.yaml"], SftArguments, SFTConfig, ModelConfig)
