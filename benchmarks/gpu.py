"""Qwen3-8B at its true size on one GPU, random weights: training, scoring and decoding against the stock ways.

    python benchmarks/gpu.py --name h200        # at most 9 minutes; without a CUDA device it says so and exits 0

Speed does not depend on the weights, so nothing is downloaded. The vocabulary has the size of Qwen3's; the tokens of
the texts come from one trained on the invented samples, which splits a text about as Qwen3's does.
"""

import argparse
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure
import torch
from transformers import PreTrainedModel

from fintune.model.attention import shared_prefix_attention
from fintune.model.load import fuse_layers
from fintune.training.shared_prefix import SharedPrefixCollator

SHAPE = {  # config.json of Qwen/Qwen3-8B
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
ROUNDS, UPDATES, TEXTS, PER_LABEL, BATCHES = 5, 2, 480, 48, [32, 64, 128]
# (what, ours, against, aim for sentiment and topic)
GOALS = [
    ("training", "shared prefix 6 x 2", "stock 3 x 4, checkpointing", (4, 6)),
    ("training", "shared prefix 12 x 1", "stock 3 x 4", (3, 4)),
    ("scoring", "label tree", "generate", (3, None)),
    ("scoring", "label tree", "request per label", (None, 40)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    name = parser.parse_args().name
    if not torch.cuda.is_available():
        print("no CUDA device here, so nothing was measured: run this on a machine that has one with 40 GiB or more")
        return
    error = varlen_error("cuda", torch.bfloat16)
    print(f"varlen attention: largest gradient error {error:.4f} of the largest gradient, against masks in float32")
    if error > 0.02:
        raise SystemExit("the varlen kernel's gradients are wrong on this machine; nothing that uses it was measured")
    peak = matmul_tflops("cuda", 8192)
    print(f"matrix product: {peak:.0f} TFLOP/s in bf16")

    model = measure.random_model(SHAPE, "cuda", "bfloat16")
    liger = fuse_layers(model)
    report = measure.compare(model, GOALS, ROUNDS, UPDATES, TEXTS, PER_LABEL, BATCHES)
    report |= {"model": SHAPE | {"dtype": "bfloat16"}, "liger": liger, "varlen_gradient_error": error}
    report |= {"matmul_tflops": peak, "of_the_floor": of_the_floor(model, report, peak)}
    del model
    torch.cuda.empty_cache()
    report["key_value_heads"] = [
        measure.decoding({**SHAPE, "num_key_value_heads": heads}, "cuda", "bfloat16", batch, context)
        for heads in (8, 32)
        for batch, context in ((1, 150), (32, 150), (16, 4096), (32, 4096))
    ]
    measure.show(report)
    for row in report["of_the_floor"] + report["key_value_heads"]:
        print(row)
    measure.save(report, name)


def varlen_error(device: str, dtype: torch.dtype) -> float:
    """Largest error of packed rows' gradients in `dtype`, against one masked call a row in float32, relative."""
    torch.manual_seed(0)
    lengths = [70, 41, 55, 120]
    rows = [{"input_ids": [0] * (100 + n), "labels": [-100] * (99 + n) + [1]} for n in lengths]
    batch = SharedPrefixCollator(100)(rows)
    layout = {key: batch[key].to(device) for key in ("key_tokens", "cu_seq_lens_q", "cu_seq_lens_k")}
    layout |= {key: batch[key] for key in ("max_length_q", "max_length_k")}
    tokens = batch["input_ids"].shape[1]
    heads = [torch.randn(1, n, tokens, 64, device=device) for n in (8, 2, 2)]
    upstream = torch.randn(1, tokens, 8, 64, device=device)

    def gradients(kind: torch.dtype) -> list[torch.Tensor]:
        inputs = [states.to(kind).requires_grad_() for states in heads]
        out, _ = shared_prefix_attention(None, *inputs, None, 64**-0.5, **layout)
        return torch.autograd.grad(out, inputs, upstream.to(kind))

    pairs = zip(gradients(dtype), gradients(torch.float32), strict=True)
    return max(((found.float() - exact).abs().max() / exact.abs().max()).item() for found, exact in pairs)


def matmul_tflops(device: str, size: int) -> float:
    """Of this card's own product of two square bf16 matrices, the median of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, 20) / 1e12


def of_the_floor(model: PreTrainedModel, report: dict, peak_tflops: float) -> list[dict]:
    """Training against its arithmetic: 4 FLOP for each weight of the layers and packed token (the base is frozen).

    A row's tokens are its text and its share, a twelfth, of the instruction; the floor is that at the card's own peak.
    """
    weights = sum(p.numel() for p in model.get_decoder().layers.parameters())
    rows = []
    for task, size in report["tasks"].items():
        speed = report["rows_per_second"][task]["training"]["shared prefix 12 x 1"]["median"]
        tokens = size["text_tokens"] + size["instruction_tokens"] / measure.UPDATE
        tflops = 4 * weights * tokens * speed / 1e12
        rows.append({"task": task, "tokens_per_second": tokens * speed, "tflops": tflops})
        rows[-1]["times_the_floor"] = peak_tflops / tflops
    return rows


def _median_seconds(run, times: int) -> float:
    found = []
    for _ in range(times):
        started = measure.now()
        run()
        found.append(measure.now() - started)
    return statistics.median(found)


if __name__ == "__main__":
    main()
