"""`class_weights: balanced` multiplies each row's loss by the rarity of its class, for every kind of model."""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, script
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import ModelConfig, SFTConfig

from fintune.errors import UserError
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.training.encoder import loss_of
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer


def weights_of(toy) -> list[float]:
    task, data, _, _ = toy
    rows_of = [[i for i, row in enumerate(data.splits["train"]["label"]) if row == label] for label in range(3)]
    uneven = rows_of[0][:4] + rows_of[1][:6] + rows_of[2][:10]
    data.splits["train"] = data.splits["train"].select(uneven)
    return data.class_weights(replace(task, class_weights="balanced"))


def test_weights_are_rows_over_labels_times_rows_of_the_label(toy):
    task, data, _, _ = toy
    assert data.class_weights(task) is None
    found, labels = weights_of(toy), data.splits["train"]["label"]
    counts = [list(labels).count(label) for label in range(3)]
    assert counts == [4, 6, 10]
    assert found == pytest.approx([20 / (3 * count) for count in counts])
    assert sum(found[label] for label in labels) / 20 == pytest.approx(1)


def test_a_language_models_loss_is_the_weighted_sum_of_its_rows_losses(toy, tmp_path):
    _, data, prompt, model = toy
    weights = weights_of(toy)
    dataset = prompt.training_rows(data.splits["train"], weights)
    trainer = SharedPrefixTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path / "out"), report_to="none", bf16=False, use_cpu=True, per_device_train_batch_size=20
        ),
        train_dataset=dataset,
        data_collator=SharedPrefixCollator.of("shared_prefix", dataset),
        processing_class=prompt.tokenizer,
    )
    [batch] = trainer.get_train_dataloader()  # by the Trainer's own way, which drops columns that it does not know
    assert set(batch["weights"].tolist()) == {torch.tensor(weight).item() for weight in weights}
    total, tokens = trainer.compute_loss(model, batch), len(batch["weights"])
    parts = 0.0
    for row in dataset:
        kept = torch.tensor([label for label in row["labels"] if label >= 0])
        ids = torch.tensor(row["input_ids"])[None]
        logits = toy[3].from_pretrained(tmp_path / "base")(ids[:, :-1]).logits[0, -len(kept) :]
        parts += row["weight"] * torch.nn.functional.cross_entropy(logits, kept, reduction="sum").item()
    assert total.item() == pytest.approx(parts / tokens, rel=1e-5)


def test_a_classifiers_loss_is_the_weighted_sum_of_its_rows_losses():
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 2, 1, 0]), [0.5, 1.0, 2.5]
    rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (rows * torch.tensor(weights)[labels]).sum()
    loss, outputs = loss_of(weights), SequenceClassifierOutput(logits=logits)
    torch.testing.assert_close(loss(outputs, labels), expected / 5)
    torch.testing.assert_close(loss(outputs, labels, num_items_in_batch=torch.tensor(15)), expected / 15)
    torch.testing.assert_close(loss_of(None)(outputs, labels, torch.tensor(15)), rows.sum() / 15)


def test_an_overlay_turns_them_on_and_padded_refuses_them(task_folder):
    (task_folder / "balanced.yaml").write_text("class_weights: balanced\n")
    argv = ["data/toy.yaml", "small.yaml", "balanced.yaml", *SMALL]
    assert parse_recipe(argv, SftArguments, SFTConfig, ModelConfig).task.class_weights == "balanced"
    script("train_sft").main(argv)
    assert "class_weights: balanced" in (task_folder / "runs/toy/small-balanced/recipe.yaml").read_text()
    with pytest.raises(UserError, match="set batching to shared_prefix"):
        script("train_sft").main([*argv, "--batching", "padded", "--output_dir", "padded"])
    (task_folder / "balanced.yaml").write_text("class_weights: heavy\n")
    with pytest.raises(UserError, match="takes balanced"):
        parse_recipe(argv, SftArguments, SFTConfig, ModelConfig)
