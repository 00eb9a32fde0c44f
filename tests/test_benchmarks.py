"""The benchmarks run and count right, on a model too small to measure anything; nothing here looks at a clock."""

import importlib.util
import json
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
    monkeypatch.setattr(module.measure, "FUSED", True)
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


@pytest.fixture
def toy_gpu(gpu, monkeypatch, tmp_path):
    """The whole program at a toy size, under bf16 autocast on the CPU."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--name", "toy"])
    monkeypatch.setattr(gpu.measure, "RESULTS", tmp_path / "results")
    values = {"SHAPE": SHAPE, "SMALL": SHAPE, "DEVICE": "cpu", "COMPILER": "aot_eager", "ROWS": [2, 12]}
    for name, value in values.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "QUICK", (1, 1, 12, 2, [4]))
    monkeypatch.setattr(gpu, "QUICK_SECONDS", 10_000)
    return gpu


def test_layers_are_compared_on_a_cpu(gpu):
    found = gpu.measure.layers_compared(SHAPE, "aot_eager", rounds=1)
    assert found["rows_per_second"].keys() == {"stock", "fused", "compiled"}
    assert found["first_updates_seconds"] > 0


def test_the_whole_program_runs(toy_gpu, tmp_path):
    toy_gpu.main()
    report = json.loads((tmp_path / "results/toy.json").read_text())
    assert report["skipped"] == {}
    assert [(row["what"], row["against"]) for row in report["ratios"]] == [
        ("training, sentiment", "stock 3 x 4"),
        ("scoring, sentiment", "generate, batch 4"),
        ("training, topic", "stock 3 x 4"),
        ("scoring, topic", "request per label, batch 4"),
    ]
    for row in report["ratios"]:
        assert row["ratio"] == row["ours"] / row["stock"]
        assert row["peak_mib"] >= 0
    assert report["tasks"]["topic"]["label_tree_tokens"] > report["tasks"]["sentiment"]["label_tree_tokens"] == 3
    assert report["fused"] and report["fused_gradient_errors"]["fused"] < 0.05
    assert [(row["rows"], row["layers"]) for row in report["updates"]] == [(2, "fused"), (12, "fused"), (2, "stock")]
    layers = 2 * (16 * 32 * 2 + 16 * 16 * 2 + 16 * 24 * 3 + 2 * 16 + 2 * 8)
    for row in report["updates"]:
        assert row["tflops"] == pytest.approx(4 * layers * row["tokens"] / row["ms"] / 1e9)
    assert [row["layers"] for row in report["profile"]] == ["fused", "stock"]
    assert report["qlora"]["rows_per_second"] > 0
    assert 0 < report["compiled"]["gradient_error"] < 0.05
    assert [(row["rows"], row["layers"]) for row in report["compiled"]["updates"]] == [
        (2, "compiled"),
        (12, "compiled"),
    ]
    assert report["compiled"]["first_updates_seconds"] > 0


def test_what_fails_is_named_and_the_rest_is_measured(toy_gpu, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried much")

    for name in ("layer_errors", "profiled", "qlora"):
        monkeypatch.setattr(toy_gpu, name, broken)
    monkeypatch.setattr(toy_gpu.measure, "interleaved", broken)
    toy_gpu.main()
    report = json.loads((tmp_path / "results/toy.json").read_text())
    failed = {"fused_gradient_errors", "profile", "qlora", "training, topic", "scoring, sentiment"}
    assert failed < report["skipped"].keys()
    assert "OutOfMemoryError: CUDA out of memory. (test_benchmarks.py:" in report["skipped"]["qlora"]
    assert [row["layers"] for row in report["updates"]] == ["stock", "stock", "stock"]  # the fused check failed
    assert "not measured: OutOfMemoryError" in capsys.readouterr().out


def test_no_section_begins_when_the_time_is_over(toy_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_gpu, "QUICK_SECONDS", 0)
    with pytest.raises(SystemExit, match="nothing that uses it was measured"):
        toy_gpu.main()
    report = json.loads((tmp_path / "results/toy.json").read_text())
    assert report["skipped"] == {"varlen_gradient_error": "no time was left"}


def test_an_update_dispatches_no_more_operations_than_it_did(gpu):
    """24,807 with PEFT's and transformers' own layers; views count too, and the CPU's attention, a call a sequence."""
    counts = gpu.measure.operations()
    assert counts.total() <= 8_300
    assert counts["mm"] + counts["addmm"] + counts["addmm_"] <= 1_160


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
