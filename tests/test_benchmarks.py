"""The benchmarks run and count right, on a model too small to measure anything; nothing here looks at a clock."""

import importlib.util
import sys

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py, loaded by path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    spec = importlib.util.spec_from_file_location("benchmark_gpu", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_ends_well(gpu, capsys):
    assert gpu.main() is None
    assert "no CUDA device here" in capsys.readouterr().out


def test_the_shape_is_qwen3_8bs(gpu):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**gpu.SHAPE))
    assert model.num_parameters() == 8_190_735_360  # as Qwen/Qwen3-8B's card counts: 8.2 B


def test_every_comparison_is_made_and_its_tokens_counted(gpu):
    model = gpu.measure.random_model(SHAPE, "cpu", "float32")
    report = gpu.measure.compare(model, gpu.GOALS, rounds=1, updates=1, texts=12, per_label=2, batches=[4])
    assert [(row["what"], row["against"]) for row in report["ratios"]] == [
        ("training, sentiment", "stock 3 x 4, checkpointing"),
        ("training, sentiment", "stock 3 x 4"),
        ("scoring, sentiment", "generate, batch 4"),
        ("training, topic", "stock 3 x 4, checkpointing"),
        ("training, topic", "stock 3 x 4"),
        ("scoring, topic", "request per label, batch 4"),
    ]
    for row in report["ratios"]:
        assert row["ratio"] == row["ours"] / row["stock"]
        assert row["peak_mib"] >= 0
    assert report["tasks"]["topic"]["label_tree_tokens"] > report["tasks"]["sentiment"]["label_tree_tokens"] == 3
    gpu.measure.show(report)

    [sentiment, _] = gpu.of_the_floor(model, report, peak_tflops=1.0)
    layers = 2 * (16 * 32 * 2 + 16 * 16 * 2 + 16 * 24 * 3 + 2 * 16 + 2 * 8)
    assert sentiment["tflops"] == pytest.approx(4 * layers * sentiment["tokens_per_second"] / 1e12)


def test_gradients_of_packed_rows_are_compared_with_masks(gpu, monkeypatch):
    assert gpu.varlen_error("cpu", torch.float32) == 0
    assert 0 < gpu.varlen_error("cpu", torch.bfloat16) < 0.02
    right = gpu.shared_prefix_attention

    def wrong(module, query, key, value, *args, **kwargs):
        scaled = value * 1.1 if value.dtype == torch.bfloat16 else value
        return right(module, query, key, scaled, *args, **kwargs)

    monkeypatch.setattr(gpu, "shared_prefix_attention", wrong)
    assert gpu.varlen_error("cpu", torch.bfloat16) > 0.02


def test_decoding_counts_the_key_value_memory(gpu):
    found = gpu.measure.decoding(SHAPE, "cpu", "float32", batch=3, context=20, steps=2)
    assert found["bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes
    assert found["decode_ms"] > 0
    assert gpu.matmul_tflops("cpu", 16) > 0
