"""Rows that share a line train like separate rows, and the noise is NEFTune's."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from fintune.model.prompt import IGNORE
from fintune.training.checkpoints import CheckpointManifest, interruptible
from fintune.training.shared_prefix import CheapDropout, SharedPrefixCollator, SharedPrefixTrainer


def make_trainer(toy, batching: str, tmp_path, rows: int = 12, lora_dropout: float = 0.0, **config):
    _, data, prompt, model = toy
    torch.manual_seed(0)
    lora = {
        "r": 4,
        "use_rslora": True,
        "target_modules": "all-linear",
        "init_lora_weights": False,
        "lora_dropout": lora_dropout,
    }
    dataset = prompt.training_rows(data.splits["train"].select(range(rows)))
    collator = SharedPrefixCollator.of(batching, dataset)
    config = {"per_device_train_batch_size": rows, "report_to": "none", "bf16": False, **config}
    trainer = (SharedPrefixTrainer if collator else SFTTrainer)(
        model=get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora)),
        args=SFTConfig(str(tmp_path / "out"), gradient_checkpointing=False, use_cpu=True, **config),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=prompt.tokenizer,
    )
    return trainer, list(dataset)


def loss_and_gradients(trainer, batches: list[list[dict]]):
    """One update over micro-batches, as the Trainer sums them."""
    trainer.model.train()
    trainer.model.zero_grad()
    tokens = sum(label != IGNORE for rows in batches for row in rows for label in row["labels"])
    total = 0.0
    for rows in batches:
        loss = trainer.compute_loss(
            trainer.model, trainer.data_collator(rows), num_items_in_batch=torch.tensor(tokens)
        )
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return total, gradients


def test_a_shared_prefix_equals_three_by_four_of_stock_trl(toy, tmp_path):
    stock, rows = make_trainer(toy, "padded", tmp_path)
    expected_loss, expected = loss_and_gradients(stock, [rows[i : i + 3] for i in range(0, 12, 3)])
    state = stock.model.state_dict()
    toy = (*toy[:3], type(toy[3]).from_pretrained(tmp_path / "base"))
    ours, rows = make_trainer(toy, "shared_prefix", tmp_path)
    ours.model.load_state_dict(state)
    for batches in ([rows], [rows[:5], rows[5:]]):
        loss, gradients = loss_and_gradients(ours, batches)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, gradient in gradients.items():
            scale = expected[name].abs().max().clamp(min=1e-6)
            assert (gradient - expected[name]).abs().max() / scale < 1e-4, name


def test_a_step_of_the_trainer_equals_stock_trls(toy, tmp_path):
    """Through train() itself, which counts the label tokens that the loss is divided by."""
    figures = {}
    for way, steps in (("padded", 4), ("shared_prefix", 1), ("shared_prefix", 3)):
        model = type(toy[3]).from_pretrained(tmp_path / "base")
        once = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "gradient_accumulation_steps": steps}
        trainer, _ = make_trainer((*toy[:3], model), way, tmp_path, **once, per_device_train_batch_size=12 // steps)
        trainer.train()
        first = trainer.state.log_history[0]
        figures[way, steps] = (first["loss"], first["grad_norm"])
    stock = figures.pop(("padded", 4))
    for found in figures.values():
        assert found == pytest.approx(stock, rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_mlp_reads_label_positions_alone_unless_checkpointing_needs_it_again(toy, tmp_path, checkpointing):
    """Of layers that are not fused; for those see test_fused.py."""
    trainer, rows = make_trainer(toy, "shared_prefix", tmp_path)
    trainer._fused = None
    trainer.args.gradient_checkpointing = checkpointing
    expected_loss, expected = loss_and_gradients(trainer, [rows])
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    read = []
    mlp = trainer.model.get_decoder().layers[-1].mlp
    mlp.gate_proj.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    loss, gradients = loss_and_gradients(trainer, [rows])
    batch = trainer.data_collator(rows)
    whole, labels = batch["input_ids"].shape[1], len(batch["logits_to_keep"])
    assert read == ([whole, whole] if checkpointing else [labels])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
    assert len(mlp._forward_pre_hooks) == len(mlp._forward_hooks) == 0


def test_cheap_dropout_is_dropout(toy, tmp_path):
    dropout = CheapDropout(0.1)
    hidden = torch.ones(7, 1001, 13)  # a size that 16-bit draws do not divide
    torch.manual_seed(1)
    first, second = dropout(hidden), dropout(hidden)
    torch.manual_seed(1)
    assert torch.equal(dropout(hidden), first)
    assert not torch.equal(first, second)
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    share, deviation = (first == 0).float().mean().item(), math.sqrt(0.09 / hidden.numel())
    assert abs(share - 0.1) < 5 * deviation
    assert dropout.eval()(hidden) is hidden
    trainer, _ = make_trainer(toy, "shared_prefix", tmp_path, lora_dropout=0.1)
    kinds = [type(m) for name, m in trainer.model.named_modules() if name.endswith("lora_dropout.default")]
    assert kinds == [CheapDropout] * 14  # seven a layer
    assert not any(type(m) is torch.nn.Dropout for m in trainer.model.modules())


def test_a_row_cannot_see_its_neighbour(toy, tmp_path):
    trainer, rows = make_trainer(toy, "shared_prefix", tmp_path)
    trainer.model.eval()
    batch = trainer.data_collator(rows[:3])
    shared, first = trainer.data_collator.shared, len(rows[0]["input_ids"]) - 1
    assert shared > 10

    def first_row(batch):
        layout = ("key_tokens", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        inputs = {key: batch[key] for key in ("input_ids", "position_ids", *layout)}
        return trainer.model(**inputs).logits[0, :first]

    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, first:] = 7  # every token of the neighbours
    assert torch.equal(first_row(batch), first_row(changed))
    leaky = {"key_tokens": batch["key_tokens"].clone()}
    leaky["key_tokens"][shared] = first  # the first key of the first row is now its neighbour's
    assert not torch.equal(first_row(batch | leaky), first_row(changed | leaky))  # the check can fail


def test_positions_continue_from_the_shared_prefix(toy, tmp_path):
    trainer, rows = make_trainer(toy, "shared_prefix", tmp_path)
    batch, shared = trainer.data_collator(rows[:2]), trainer.data_collator.shared
    lengths = [len(row["input_ids"]) for row in rows[:2]]
    expected = [*range(lengths[0] - 1), *range(shared, lengths[1] - 1)]
    assert batch["position_ids"][0].tolist() == expected
    assert batch["lengths"].tolist() == lengths
    assert batch["labels"][0].tolist() == [token for row in rows[:2] for token in row["labels"] if token != IGNORE]
    read = batch["input_ids"][0, batch["logits_to_keep"][1:]]  # what stands where the second label token is predicted
    assert read[0] == batch["labels"][0, 0]


def in_training(trainer, look) -> None:
    """Call `look` in the first step of train(), where NEFTune's hook is on, and stop."""

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            look(model)
            raise RuntimeError("power cut")

    trainer.add_callback(Look())
    with pytest.raises(RuntimeError, match="power cut"), interruptible(trainer, CheckpointManifest({})):
        trainer.train()
    trainer.remove_callback(Look)


@pytest.mark.parametrize("batching", ["padded", "shared_prefix"])
def test_the_trainers_own_noise_has_the_size_of_alpha_over_the_root_of_length_and_width(toy, tmp_path, batching):
    """Length is that of the padded batch; of packed rows, whose tensor is twelve rows long, it is a row's mean."""
    trainer, rows = make_trainer(toy, batching, tmp_path, neftune_noise_alpha=5.0)
    batch, seen = trainer.data_collator(rows), []
    embeddings = trainer.model.get_input_embeddings()
    clean = torch.nn.functional.embedding(batch["input_ids"], embeddings.weight)

    def look(model):
        model.train()
        handle = embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        for _ in range(40):
            trainer.compute_loss(model, dict(batch))
        handle.remove()

    in_training(trainer, look)
    noise = (torch.stack(seen) - clean).abs().amax(dim=(0, 3))  # largest of 40 x 32 draws a token
    lengths = [len(row["input_ids"]) for row in rows]
    length = max(lengths) if batching == "padded" else sum(lengths) / len(lengths)
    bound = 5.0 / math.sqrt(length * clean.size(-1))
    assert len(set(lengths)) > 1
    assert (noise <= bound * (1 + 1e-5)).all()
    assert (noise >= 0.97 * bound).all()


def embedding_noise(trainer, rows) -> float:
    """Largest difference of what the embedding gives in a training loss from what it holds."""
    embeddings = trainer.model.get_input_embeddings()
    batch = trainer.data_collator(rows)
    seen = []
    handle = embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    trainer.compute_loss(trainer.model, dict(batch))
    handle.remove()
    return (seen[0] - torch.nn.functional.embedding(batch["input_ids"], embeddings.weight)).abs().max().item()


@pytest.mark.parametrize("batching", ["padded", "shared_prefix"])
def test_noise_is_on_in_training_off_in_evaluation_and_gone_after_an_interruption(toy, tmp_path, batching):
    noise, evaluated = [], []

    def look(model):
        model.train()
        noise.append(embedding_noise(trainer, rows))
        model.eval()
        evaluated.append(embedding_noise(trainer, rows))
        model.train()

    trainer, rows = make_trainer(toy, batching, tmp_path, neftune_noise_alpha=5.0)
    for _ in range(2):  # the second time a hook left from the first would double the noise
        in_training(trainer, look)
    bound = 5.0 / math.sqrt(min(len(row["input_ids"]) for row in rows) * 32)
    assert all(0.3 * bound < value <= bound for value in noise)
    assert evaluated == [0.0, 0.0]
    assert not hasattr(trainer.model.get_input_embeddings(), "neftune_noise_alpha")
    trainer.model.train()
    assert embedding_noise(trainer, rows) == 0.0


def test_alpha_none_means_no_noise(toy, tmp_path):
    trainer, rows = make_trainer(toy, "shared_prefix", tmp_path)
    trainer.model.train()
    assert embedding_noise(trainer, rows) == 0.0


def test_padded_is_stock_trl(toy, tmp_path):
    trainer, _ = make_trainer(toy, "padded", tmp_path)
    assert type(trainer) is SFTTrainer
    assert type(trainer.data_collator).__module__.startswith("trl.")
