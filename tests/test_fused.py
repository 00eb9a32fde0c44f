"""Fused layers equal transformers' and PEFT's own: loss, gradients, dropout, what is saved."""

import math
import shutil
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import loss_and_gradients
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig

from fintune.errors import UserError
from fintune.model import adapted_layers
from fintune.model.adapted_layers import FusedLayers, stacked
from fintune.model.fused import FrozenNorm, keep, project, rotate, swiglu
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trainer_of(toy, tmp_path, family: str = "qwen3", targets=ALL, lora: dict | None = None, dtype="float32", **config):
    _, data, prompt, _ = toy
    torch.manual_seed(0)
    kind, settings = {"qwen3": (Qwen3ForCausalLM, Qwen3Config), "llama": (LlamaForCausalLM, LlamaConfig)}[family]
    model = kind(settings(vocab_size=len(prompt.tokenizer), pad_token_id=prompt.tokenizer.pad_token_id, **SHAPE))
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    lora = {"r": 4, "use_rslora": True, "target_modules": targets, "init_lora_weights": False, **(lora or {})}
    dataset = prompt.training_rows(data.splits["train"].select(range(9)))
    trainer = SharedPrefixTrainer(
        model=get_peft_model(model.to(getattr(torch, dtype)), LoraConfig(task_type="CAUSAL_LM", **lora)),
        args=SFTConfig(
            str(tmp_path / "out"),
            report_to="none",
            use_cpu=True,
            bf16=config.pop("bf16", False),
            gradient_checkpointing=False,
            **config,
        ),
        train_dataset=dataset,
        data_collator=SharedPrefixCollator.of("shared_prefix", dataset),
        processing_class=prompt.tokenizer,
    )
    return trainer, list(dataset)


def stock(trainer, batches):
    """Loss and gradients with transformers' and PEFT's own layers."""
    fused, trainer._fused = trainer._fused, None
    try:
        return loss_and_gradients(trainer, batches)
    finally:
        trainer._fused = fused


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        scale = expected[1][name].abs().max()
        assert scale > 0, name
        assert (gradient - expected[1][name]).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    "targets", [ALL, ["q_proj", "v_proj"], ["k_proj", "up_proj", "down_proj"], ["o_proj"]], ids="-".join
)
def test_loss_and_gradients_equal_stock_layers(toy, tmp_path, family, targets):
    trainer, rows = trainer_of(toy, tmp_path, family, targets)
    assert trainer._fused
    for batches in ([rows], [rows[:4], rows[4:]]):
        assert_equal(loss_and_gradients(trainer, batches), stock(trainer, batches))


def test_ranks_and_scalings_may_differ_within_a_group(toy, tmp_path):
    lora = {"rank_pattern": {"k_proj": 2, "up_proj": 6}, "alpha_pattern": {"v_proj": 32}}
    trainer, rows = trainer_of(toy, tmp_path, lora=lora)
    assert_equal(loss_and_gradients(trainer, [rows]), stock(trainer, [rows]))


def test_attention_by_sdpa_as_a_gpu_computes_float32(toy, tmp_path, monkeypatch):
    trainer, rows = trainer_of(toy, tmp_path)
    expected = stock(trainer, [rows])
    sdpa = partial(adapted_layers.packed_attention, dropout=1e-30)  # what the CPU's own kernel does not take
    monkeypatch.setattr(adapted_layers, "packed_attention", sdpa)
    assert_equal(loss_and_gradients(trainer, [rows]), expected)


def test_with_gradient_checkpointing_too(toy, tmp_path):
    trainer, rows = trainer_of(toy, tmp_path)
    expected = stock(trainer, [rows])
    trainer.args.gradient_checkpointing = True
    trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_equal(loss_and_gradients(trainer, [rows]), expected)


def test_dropout_is_lora_dropout_with_one_mask_for_what_shares_an_input(toy, tmp_path, monkeypatch):
    """The fused masks, put into PEFT's own layers, give the same loss and gradients."""
    trainer, rows = trainer_of(toy, tmp_path, lora={"lora_dropout": 0.25})
    masks = []

    def remembered(*args):
        masks.append(keep(*args))
        return masks[-1]

    monkeypatch.setattr(adapted_layers, "keep", remembered)
    torch.manual_seed(3)
    found = loss_and_gradients(trainer, [rows])
    assert len(masks) == SHAPE["num_hidden_layers"]
    share = 1 - torch.cat(masks).float().mean().item()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / sum(map(len, masks)))
    batch = trainer.data_collator(rows)
    labels, tokens = batch["logits_to_keep"], batch["input_ids"].shape[1]
    for layer, mask in zip(trainer.model.get_decoder().layers, masks, strict=True):
        last = layer.self_attn.layer_idx == len(masks) - 1
        lengths = [tokens, *[len(labels) if last else tokens] * 3]
        sizes = [length * width for length, width in zip(lengths, (32, 32, 32, 48), strict=True)]
        shares = mask.split(sizes)
        for names, part, width in zip((ALL[:3], ALL[3:4], ALL[4:6], ALL[6:]), shares, (32, 32, 32, 48), strict=True):
            for name in names:
                module = getattr(layer.self_attn if name in ALL[:4] else layer.mlp, name)
                kept = part.view(1, -1, width)
                if last and name == "o_proj":  # stock computes it everywhere, and only these are read
                    kept = torch.ones(1, tokens, width).index_copy(1, labels, kept.float())
                module.lora_dropout["default"] = Given(kept)
    assert_equal(found, stock(trainer, [rows]))
    torch.manual_seed(4)
    assert loss_and_gradients(trainer, [rows])[0] != found[0]


class Given(torch.nn.Module):
    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.kept = kept

    def forward(self, hidden):
        return hidden * self.kept / 0.75


def test_evaluation_has_no_dropout(toy, tmp_path):
    trainer, rows = trainer_of(toy, tmp_path, lora={"lora_dropout": 0.5})
    trainer.model.eval()
    fused = [trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item() for _ in range(2)]
    trainer._fused = None
    assert fused == pytest.approx([trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()] * 2)


def compiled_and_eager(toy, tmp_path, family: str, backend: str, sizes: list[slice]):
    """Loss and gradients of batches of these rows, with compiled layers and without; how often each half compiled."""
    torch._dynamo.reset()
    found = []
    for config in ({"torch_compile_backend": backend}, {}):
        trainer, rows = trainer_of(toy, tmp_path, family, lora={"lora_dropout": 0.1}, **config)
        assert (trainer._fused.halves == adapted_layers.HALVES) == (not config)
        torch.manual_seed(5)
        found.append([loss_and_gradients(trainer, [rows[size]]) for size in sizes])
    codes = [torch._dynamo.eval_frame._debug_get_cache_entry_list(half.__code__) for half in adapted_layers.HALVES]
    return *found, list(map(len, codes))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_compiled_layers_equal_eager_ones_and_share_their_graphs(toy, tmp_path, family):
    sizes = [slice(0, 9), slice(0, 4), slice(4, 9), slice(2, 9)]
    compiled, eager, graphs = compiled_and_eager(toy, tmp_path, family, "aot_eager", sizes)
    for pair in zip(compiled, eager, strict=True):
        assert_equal(*pair)
    assert max(graphs) <= 4  # of 3 layers and 4 lengths: first and any length, first or last layer and the others


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_inductor_equals_eager_layers(toy, tmp_path):
    [compiled], [eager], _ = compiled_and_eager(toy, tmp_path, "qwen3", "inductor", [slice(0, 9)])
    assert_equal(compiled, eager)


def test_evaluation_is_not_compiled(toy, tmp_path, monkeypatch):
    trainer, rows = trainer_of(toy, tmp_path, torch_compile_backend="aot_eager")
    trainer._fused.halves = None  # a call of them would fail
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item() > 0


def test_compiling_other_layers_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="`torch_compile` compiles LLaMA's and Qwen3's layers"):
        trainer_of(toy, tmp_path, lora={"use_dora": True}, torch_compile=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_under_autocast_it_is_as_near_to_float32_as_stock_layers(toy, tmp_path, dtype):
    def far(found):
        rows_of = zip(found[1].values(), exact[1].values(), strict=True)
        return max(((g - e).norm() / e.norm()).item() for g, e in rows_of)

    trainer, rows = trainer_of(toy, tmp_path, dtype=dtype)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    plain, _ = trainer_of(toy, tmp_path)
    with torch.no_grad():
        for name, weight in plain.model.named_parameters():
            weight.copy_(weights[name])
    exact = loss_and_gradients(plain, [rows])
    trainer.args.bf16 = True
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = loss_and_gradients(trainer, [rows]), stock(trainer, [rows])
    assert ours[0] == pytest.approx(exact[0], rel=1e-2)
    assert all(gradient.dtype == torch.float32 for gradient in ours[1].values())
    assert far(ours) < 1.5 * far(theirs) + 1e-3


def test_only_label_positions_pass_the_last_layer_behind_its_attention(toy, tmp_path, monkeypatch):
    trainer, rows = trainer_of(toy, tmp_path)
    read = []
    monkeypatch.setattr(adapted_layers, "swiglu", lambda states: (read.append(len(states)), swiglu(states))[1])
    batch = trainer.data_collator(rows)
    trainer.compute_loss(trainer.model, batch)
    tokens = batch["input_ids"].shape[1]
    assert read == [tokens, tokens, len(batch["logits_to_keep"])]


def test_a_trained_adapter_is_pefts_own_and_gives_the_same_in_stock_peft(toy, tmp_path):
    trainer, rows = trainer_of(toy, tmp_path, max_steps=2, learning_rate=1e-2, save_strategy="no")
    untrained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(not torch.equal(p, untrained[name]) for name, p in trainer.model.named_parameters() if p.requires_grad)
    trainer.save_model(str(tmp_path / "adapter"))
    trainer.model.get_base_model().config._attn_implementation = "sdpa"
    fresh = trainer.model.unload()
    fresh.save_pretrained(tmp_path / "plain")
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32), tmp_path / "adapter"
    )
    again, _ = trainer_of(toy, tmp_path)
    state = {name: p for name, p in loaded.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, p in again.model.named_parameters():
            p.copy_(state.get(name, p))
    again.model.eval(), loaded.eval()
    batch = again.data_collator(rows)
    fused, expected = again.compute_loss(again.model, batch), []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        logits = loaded(input_ids=ids).logits[0, :-1]
        expected.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none"))
    assert fused.item() == pytest.approx(torch.cat(expected)[torch.cat(expected) > 0].mean().item(), rel=1e-5)


@pytest.mark.parametrize("why", ["a trained weight", "another activation", "no adapter", "two dropouts", "DoRA"])
def test_what_does_not_fit_keeps_its_own_layers(toy, tmp_path, why):
    _, _, prompt, _ = toy
    shape = SHAPE | {"vocab_size": len(prompt.tokenizer)}
    config = Qwen3Config(**shape, hidden_act="gelu" if why == "another activation" else "silu")
    lora = {"r": 2, "target_modules": ALL, "use_dora": why == "DoRA"}
    model = Qwen3ForCausalLM(config)
    if why != "no adapter":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
        assert FusedLayers.fit(model) == (why in ("a trained weight", "two dropouts"))
        attention = model.get_decoder().layers[1].self_attn
        if why == "a trained weight":
            attention.k_norm.weight.requires_grad_(True)
        if why == "two dropouts":
            attention.k_proj.lora_dropout["default"] = torch.nn.Dropout(0.1)
    assert not FusedLayers.fit(model)


def test_a_model_that_processes_share_keeps_its_own_layers(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("fintune.training.shared_prefix.is_sharded", lambda trainer: True)
    trainer, rows = trainer_of(toy, tmp_path)
    assert trainer._fused is None
    assert loss_and_gradients(trainer, [rows])[0] > 0


def test_stacked_weights_are_one_memory_and_done_once():
    weights = [torch.nn.Parameter(torch.randn(rows, 6)) for rows in (4, 2, 3)]
    before = [weight.detach().clone() for weight in weights]
    whole = stacked(weights)
    assert torch.equal(whole, torch.cat(before))
    assert [weight.data_ptr() for weight in weights] == [part.data_ptr() for part in whole.split([4, 2, 3])]
    again = stacked(weights)
    assert again.data_ptr() == whole.data_ptr()
    assert torch.equal(again, whole)


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 3, 6)])
def test_gradients_by_hand_equal_numerical_ones(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    norm = FrozenNorm(torch.rand(shape[-2:] if len(shape) == 4 else shape[-1:]).double(), 1e-3)
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-7)  # its weight is float32
    assert torch.autograd.gradcheck(norm, x)
    angles = torch.rand(5 if len(shape) == 2 else 1, 1, 3, dtype=torch.double)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    cos = torch.cat([angles.cos()] * 2, -1)
    assert torch.autograd.gradcheck(lambda x: rotate(x.view(-1, 1, 6)[:5], cos, sin), x)
    assert torch.autograd.gradcheck(lambda x: swiglu(x.reshape(-1, 6)), x)
    if len(shape) == 2:
        a, b = (torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((2, 6), (4, 2)))
        weight, residual = torch.randn(4, 6).double(), torch.randn(5, 4, dtype=torch.double, requires_grad=True)
        kept = keep(30, 0.3, x.device)
        for mask in (None, kept):
            assert torch.autograd.gradcheck(
                lambda x, a, b, r, mask=mask: project(x, weight, a, b, mask, r), (x, a, b, residual)
            )
        assert torch.autograd.gradcheck(lambda x: project(x, weight, None, None), x)
