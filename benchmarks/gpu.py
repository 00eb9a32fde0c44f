"""Qwen3-8B at its true size on one GPU, random weights: training, scoring and decoding against the stock ways.

    python benchmarks/gpu.py --name h200 [--quick]      # 9 minutes, 4 with --quick; without a CUDA device it says so

Speed does not depend on the weights, so nothing is downloaded. The vocabulary has the size of Qwen3's; the tokens of
the texts come from one trained on the invented samples, which splits a text about as Qwen3's does. What cannot be
measured is named with its reason, and the rest goes on; the result's file is written after each section.
"""

import argparse
import copy
import gc
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure
import psutil
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel
from trl import SFTTrainer

from fintune import machine
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
SMALL = SHAPE | {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 4}  # to check
DEVICE, COMPILER = "cuda", "inductor"
STARTED = psutil.Process().create_time()  # importing takes a while too
SIZES = 5, 2, 480, 48, [32, 64, 128]  # rounds; updates, texts, texts of a request per label; batches of stock ways
QUICK = 2, 1, 240, 24, [128]
SECONDS, QUICK_SECONDS = 520, 210  # after which no section begins
ROWS = [12, 48, 192]  # of an update
# (what, ours, against, aim for sentiment and topic)
GOALS = [
    ("training", "shared prefix 6 x 2", "stock 3 x 4, checkpointing", (4, 6)),
    ("training", "shared prefix 12 x 1", "stock 3 x 4", (8, 8)),
    ("scoring", "label tree", "generate", (3, None)),
    ("scoring", "label tree", "request per label", (None, 45)),
]


class Sections:
    """Measures one thing after another into a report, whatever happens to each of them.

    Attributes:
        report: name -> what was found; `skipped` has the reasons of what was not.
    """

    def __init__(self, name: str, seconds: float):
        """
        Args:
            name: of the file in benchmarks/results/.
            seconds: from the start of the program, after which no section begins.
        """
        self.name, self.seconds = name, seconds
        self.report = {"machine": machine.description(), "skipped": {}}

    def __call__(self, what: str, run: Callable, keep: bool = True):
        """What `run` returns, in the report if it is to be kept; None where it failed, or where no time was left."""
        passed = time.time() - STARTED
        print(f"{passed:4.0f} s  {what}", flush=True)
        found, reason = None, None if passed < self.seconds else "no time was left"
        try:
            found = run() if reason is None else None
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {said[0][:300]} ({Path(where.filename).name}:{where.lineno})"
        if reason is None and keep:
            self.report[what] = found
        if reason is not None:
            self.report["skipped"][what] = reason
            print(f"        not measured: {reason}", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        measure.write(self.report, self.name)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    parser.add_argument("--quick", action="store_true", help="4 minutes: fewer rounds and rows, no decoding")
    args = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, so nothing was measured: run this on a machine that has one with 40 GiB or more")
        return
    section = Sections(args.name, QUICK_SECONDS if args.quick else SECONDS)
    report = section.report
    error = section("varlen_gradient_error", lambda: varlen_error(DEVICE, torch.bfloat16))
    if error is None or error > 0.02:
        raise SystemExit(f"the varlen kernel's gradients are wrong here ({error}); nothing that uses it was measured")
    section("matmul_tflops", lambda: matmul_tflops(DEVICE, 8192 if DEVICE == "cuda" else 64))
    errors = section("fused_gradient_errors", lambda: layer_errors("fused", "stock"))
    measure.FUSED = errors is not None and errors["fused"] < 2 * errors["stock"]
    if not measure.FUSED:
        print(f"        the fused layers are left out: {errors}", flush=True)

    model = section("model", lambda: measure.random_model(SHAPE, DEVICE, "bfloat16"), keep=False)
    if model is None:
        raise SystemExit("no model, so nothing else was measured")
    report |= {"shape": SHAPE | {"dtype": "bfloat16"}, "liger": fuse_layers(model), "fused": measure.FUSED}
    with tempfile.TemporaryDirectory() as folder:
        measure_trainer(section, model, Path(folder), 3 if args.quick else 5)
        sizes = QUICK if args.quick else SIZES
        goals = GOALS[1:] if args.quick else GOALS
        report |= measure.compare(model, goals, *sizes, section=section)
        section("qlora", lambda: qlora(model, Path(folder)))
        if measure.FUSED:
            section("compiled", lambda: compiled(model, Path(folder), 3 if args.quick else 5, report))
    measure.show(report)
    if not args.quick:
        del model
        for heads in (8, 32):
            section(f"decoding, {heads} key-value heads", partial(decoding, heads))
    measure.save(report, args.name)
    print(f"{time.time() - STARTED:4.0f} s  done", flush=True)


def measure_trainer(section: Sections, model: PreTrainedModel, folder: Path, rounds: int) -> None:
    """Sections of one trainer, whose memory is free again behind them."""
    trainer = section("trainer", lambda: sentiment_trainer(model, folder), keep=False)
    if trainer:
        section("updates", lambda: updates(trainer, rounds, section.report.get("matmul_tflops")))
        section("profile", lambda: profiled(trainer))


def decoding(heads: int) -> list[dict]:
    shape, sizes = SHAPE | {"num_key_value_heads": heads}, ((1, 150), (32, 150), (16, 4096), (32, 4096))
    return [measure.decoding(shape, DEVICE, "bfloat16", batch, context) for batch, context in sizes]


def sentiment_trainer(model: PreTrainedModel, folder: Path) -> SFTTrainer:
    prompt, data = measure.setting("sentiment")
    model.config.pad_token_id = prompt.tokenizer.pad_token_id
    return measure.trainer_of(model, prompt, data.splits["train"], folder, "shared_prefix")


def updates(trainer: SFTTrainer, rounds: int, peak_tflops: float | None) -> list[dict]:
    """Updates of several sizes, with the fused layers and with transformers' and PEFT's own for the smallest."""
    best = "fused" if trainer._fused else "stock"
    found = []
    for rows, layers in [*((rows, best) for rows in ROWS), (ROWS[0], "stock")]:
        with measure.layers_of(trainer, layers):
            measure.update(trainer, rows, rows)
            found.append({"layers": layers} | timed(trainer, rows, rounds, peak_tflops))
    return found


def timed(trainer: SFTTrainer, rows: int, rounds: int, peak_tflops: float | None) -> dict:
    """An update's time, the median of `rounds`, and its share of the card's own peak.

    TFLOP/s count 4 FLOP for each weight of the layers and token (the base is frozen); the floor is that at the card's
    own peak.
    """
    layers = trainer.model.get_decoder().layers
    weights = sum(p.numel() for name, p in layers.named_parameters() if "lora_" not in name)
    turns = [measure.once(lambda at=at: measure.update(trainer, rows, rows, at)) for at in range(rounds)]
    seconds = statistics.median(rows / turn["rows_per_second"] for turn in turns)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])
    tokens = batch["input_ids"].shape[1]
    tflops = 4 * weights * tokens / seconds / 1e12
    found = {"rows": rows, "tokens": tokens, "ms": 1000 * seconds, "rows_per_second": rows / seconds}
    found |= {"tflops": tflops, "peak_mib": turns[-1]["peak_mib"]}
    found["times_the_floor"] = peak_tflops and peak_tflops / tflops
    print(f"        {found}", flush=True)
    return found


def profiled(trainer: SFTTrainer) -> list[dict]:
    """What the card does in an update of 12 rows, with the fused layers and with stock ones."""
    found = []
    for layers in ["fused", "stock"] if trainer._fused else ["stock"]:
        with measure.layers_of(trainer, layers):
            measure.update(trainer, 12, 12)
            found.append({"layers": layers} | seen(trainer))
    return found


def seen(trainer: SFTTrainer) -> dict:
    """Launches (kernels, copies) of an update of 12 rows, their time and its share of the whole."""
    alone = measure.once(lambda: measure.update(trainer, 12, 12))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        measure.update(trainer, 12, 12)
        measure.now()
    events = [
        e for e in run.events() if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]
    busy, whole = sum(e.time_range.elapsed_us() for e in events) / 1000, 12000 / alone["rows_per_second"]
    times = {}
    for event in events:
        count, ms = times.get(event.name[:80], (0, 0.0))
        times[event.name[:80]] = count + 1, ms + event.time_range.elapsed_us() / 1000
    most = sorted(times.items(), key=lambda pair: -pair[1][1])[:15]
    found = {"launches": len(events), "card_ms": busy, "ms": whole, "busy": busy / whole}
    print(f"        {found}", flush=True)
    return found | {"longest": [{"name": name, "times": count, "ms": ms} for name, (count, ms) in most]}


def compiled(model: PreTrainedModel, folder: Path, rounds: int, report: dict) -> dict:
    """The same with compiled layers, and what compiling takes: that of the first batch, and of any length."""
    found = {"gradient_error": layer_errors("compiled")["compiled"]}
    if found["gradient_error"] > 2 * report["fused_gradient_errors"]["stock"]:
        raise RuntimeError(f"compiled layers' gradients are wrong here ({found['gradient_error']})")
    trainer = sentiment_trainer(model, folder)
    with measure.layers_of(trainer, "compiled", COMPILER):
        started = measure.now()
        for at in range(3):
            measure.update(trainer, 12, 12, at)
        found["first_updates_seconds"] = measure.now() - started
        peak = report.get("matmul_tflops")
        found["updates"] = [{"layers": "compiled"} | timed(trainer, rows, rounds, peak) for rows in ROWS]
        found["profile"] = {"layers": "compiled"} | seen(trainer)
    return found


def layer_errors(*kinds: str) -> dict[str, float]:
    """Error of the gradients under bf16 autocast with each kind of layers, against float32, of the norm."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prompt, data = measure.setting("sentiment")
        model = measure.random_model(SMALL, DEVICE, "float32")
        model.config.pad_token_id = prompt.tokenizer.pad_token_id
        trainer = measure.trainer_of(model, prompt, data.splits["train"], Path(folder), "shared_prefix")
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer._fused._dropout = 0.0
        torch.manual_seed(0)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:  # zeros at first, after which no A has a gradient
                torch.nn.init.normal_(weight, std=0.02)
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(12)]))
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        exact = None
        for kind, bf16 in (("stock", False), *((kind, True) for kind in kinds)):
            trainer.args.bf16 = bf16
            with measure.layers_of(trainer, kind, COMPILER), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                loss = trainer.compute_loss(trainer.model, dict(batch))
                gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])
            if exact is None:
                exact = gradients
            else:
                found[kind] = ((gradients - exact).norm() / exact.norm()).item()
    return found


def qlora(model: PreTrainedModel, folder: Path) -> dict:
    """Memory and speed of updates of 12 rows over the same weights in 4 bits (NF4, double quantization)."""
    import bitsandbytes as bnb

    prompt, data = measure.setting("sentiment")
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    base = copy.deepcopy(model, memo={id(weights): weights for weights in model.parameters()})
    for layer in base.get_decoder().layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if type(linear) is torch.nn.Linear:
                    four = bnb.nn.Linear4bit(
                        linear.in_features, linear.out_features, False, torch.bfloat16, quant_type="nf4", device="meta"
                    )
                    weights = bnb.nn.Params4bit(
                        linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True
                    )
                    four.weight = weights.to(DEVICE)
                    setattr(part, name, four)
    base.is_loaded_in_4bit = True
    layers = (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) - held
    trainer = measure.trainer_of(base, prompt, data.splits["train"], folder, "shared_prefix")
    measure.update(trainer, 12, 12)
    turns = [measure.once(lambda at=at: measure.update(trainer, 12, 12, at)) for at in range(3)]
    found = {"layers_mib": layers / 2**20, "peak_mib": statistics.median(turn["peak_mib"] for turn in turns)}
    found["rows_per_second"] = statistics.median(turn["rows_per_second"] for turn in turns)
    print(f"        {found}", flush=True)
    return found


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


def _median_seconds(run, times: int) -> float:
    found = []
    for _ in range(times):
        started = measure.now()
        run()
        found.append(measure.now() - started)
    return statistics.median(found)


if __name__ == "__main__":
    main()
