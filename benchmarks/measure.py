"""Training and scoring against the stock ways, for any model and machine, interleaved in one process."""

import copy
import ctypes
import gc
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, StaticCache, set_seed
from trl import SFTConfig, SFTTrainer

from fintune.data.load import load_data
from fintune.model.adapted_layers import HALVES
from fintune.model.forward import common_prefix
from fintune.model.prompt import IGNORE, Prompt
from fintune.model.tiny import train_tokenizer
from fintune.recipe.layers import read_task
from fintune.scoring.label_scorer import LabelScorer, label_tree
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"

LORA = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "use_rslora": True,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
UPDATE = 12  # rows
DEPTH = {  # Qwen3-8B's, for counting
    "vocab_size": 8192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 36,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
FUSED = True  # False after a check that failed: transformers' and PEFT's own layers then
AGAINST = {"sentiment": "generate", "topic": "request per label"}  # how peers score a few labels, and many


def random_model(shape: dict, device: str, dtype: str) -> PreTrainedModel:
    """A Qwen3 of that shape with random weights."""
    set_seed(0)
    with torch.device(device):
        return Qwen3ForCausalLM._from_config(Qwen3Config(**shape), dtype=getattr(torch, dtype)).eval()


@cache
def setting(name: str, max_length: int = 360):
    """(prompt, data) of a task, with a vocabulary of up to 8,192 tokens trained on its own texts."""
    task = read_task(ROOT / f"data/{name}.yaml")
    data = load_data(task, allow_sample=True)
    tokenizer = train_tokenizer(task, data.splits["train"]["text"], 8192)
    tokenizer.chat_template = (ROOT / "templates/qwen3-chat.jinja").read_text()
    return Prompt(task, tokenizer, max_length), data


def compare(
    model: PreTrainedModel,
    goals: list[tuple],
    rounds: int,
    updates: int,
    texts: int,
    per_label: int,
    batches: list[int],
    section: Callable = lambda what, run: run(),
) -> dict:
    """Both tasks, ours against every stock way, as far as `goals` names it.

    Args:
        goals: (training or scoring, our way, stock way, goal for sentiment and for topic, None where not compared).
        updates: of 12 rows, in one turn of a way of training.
        texts, per_label: rows that are scored in one turn; the second for a request per label, which is slow.
        batches: batch sizes that the stock ways of scoring try; their best counts.
        section: (name, function) -> what the function returns, or None where it could not be measured.
    """
    report = {"rounds": rounds, "tasks": {}, "rows_per_second": {}, "ratios": []}
    for at, task in enumerate(AGAINST):
        prompt, data = setting(task)
        model.config.pad_token_id = prompt.tokenizer.pad_token_id
        rows = data.splits["train"].select(range(min(texts, len(data.splits["train"]))))
        prompts = prompt.encode(rows["text"])
        shared = common_prefix(prompts)
        report["tasks"][task] = {
            "data": data.source,
            "instruction_tokens": shared,
            "text_tokens": statistics.mean(map(len, prompts)) - shared,  # and the frame behind the text
            "label_tree_tokens": len(label_tree(prompt.label_ids).tokens),
            "vocabulary": len(prompt.tokenizer),
        }

        named = {way for kind, *ways, goal in goals if kind == "training" and goal[at] for way in ways}

        def train(prompt=prompt, rows=data.splits["train"], named=named) -> dict:
            with tempfile.TemporaryDirectory() as folder:
                return interleaved(training(model, prompt, rows, Path(folder), updates, named), rounds)

        def score(prompt=prompt, rows=rows, task=task) -> dict:
            return interleaved(scoring(model, prompt, list(rows["text"]), AGAINST[task], batches, per_label), rounds)

        found = {"training": section(f"training, {task}", train), "scoring": section(f"scoring, {task}", score)}
        report["rows_per_second"][task] = found
        for kind, ours, against, goal in goals:
            if goal[at] and found[kind]:
                report["ratios"].append(ratio(task, kind, ours, against, goal[at], found[kind]))
    return report


def training(
    model: PreTrainedModel, prompt: Prompt, rows: Dataset, folder: Path, updates: int, named: set[str]
) -> dict:
    """Name -> function that runs the same updates (forward and backward, no optimiser) and returns rows done.

    TRL's own trainer with the paper's 3 x 4, with SFTConfig's gradient checkpointing and without, and this project's
    shared prefix at 12 x 1 and, for less memory, 6 x 2; each on an adapter model of its own over the same base. Those
    in `named` alone.
    """

    def way(batching: str, rows_at_once: int, checkpointing: bool = False) -> Callable[[], int]:
        trainer = trainer_of(model, prompt, rows, folder, batching, checkpointing)
        return lambda: sum(update(trainer, UPDATE, rows_at_once, at) for at in range(updates))

    ways = {
        "stock 3 x 4, checkpointing": ("padded", 3, True),
        "stock 3 x 4": ("padded", 3),
        "shared prefix 12 x 1": ("shared_prefix", 12),
        "shared prefix 6 x 2": ("shared_prefix", 6),
    }
    return {name: way(*how) for name, how in ways.items() if name in named}


def trainer_of(
    model: PreTrainedModel, prompt: Prompt, rows: Dataset, folder: Path, batching: str, checkpointing: bool = False
) -> SFTTrainer:
    """A trainer of the recipe's adapter over the model's own weights, under autocast where they are bf16."""
    dataset = prompt.training_rows(rows)
    base = copy.deepcopy(model, memo={id(weights): weights for weights in model.parameters()})
    collator = SharedPrefixCollator.of(batching, dataset)
    trainer = (SharedPrefixTrainer if collator else SFTTrainer)(
        model=get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA)),
        args=SFTConfig(
            str(folder),
            report_to="none",
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            gradient_checkpointing=checkpointing,
            neftune_noise_alpha=0.3,
        ),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=prompt.tokenizer,
    )
    if not FUSED and collator:
        trainer._fused = None
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    trainer.model = trainer.accelerator.prepare_model(trainer.model)  # train() does it: autocast comes with it
    return trainer


def update(trainer: SFTTrainer, rows: int, rows_at_once: int, at: int = 0) -> int:
    """One update of the next rows, in micro-batches, forward and backward; rows done."""
    dataset, count = trainer.train_dataset, len(trainer.train_dataset)
    batch = [dataset[i % count] for i in range(at * rows, (at + 1) * rows)]
    tokens = torch.tensor(sum(label != IGNORE for row in batch for label in row["labels"]))
    for i in range(0, rows, rows_at_once):
        inputs = trainer.data_collator(batch[i : i + rows_at_once])
        trainer.training_step(trainer.model, inputs, tokens.to(trainer.args.device))
    trainer.model.zero_grad()
    return rows


@contextmanager
def layers_of(trainer: SFTTrainer, kind: str, compiler: str = "inductor") -> Iterator[None]:
    """Let the trainer use `fused`, `compiled` (fused ones) or `stock` layers inside the block."""
    fused = trainer._fused
    if kind == "compiled":
        fused.compile(compiler)
    trainer._fused = None if kind == "stock" else fused
    try:
        yield
    finally:
        trainer._fused = fused
        if fused:
            fused.halves = HALVES


def layers_compared(shape: dict, compiler: str = "inductor", rounds: int = 5) -> dict:
    """Updates of 12 rows of the sentiment task in float32 on the CPU, with each kind of layers, interleaved."""
    prompt, data = setting("sentiment")
    model = random_model(shape, "cpu", "float32")
    model.config.pad_token_id = prompt.tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, prompt, data.splits["train"], Path(folder), "shared_prefix")

        def turn(kind: str) -> int:
            with layers_of(trainer, kind, compiler):
                return update(trainer, UPDATE, UPDATE)

        started = now()
        with layers_of(trainer, "compiled", compiler):
            for at in range(3):
                update(trainer, UPDATE, UPDATE, at)
        seconds = now() - started
        speeds = interleaved({kind: partial(turn, kind) for kind in ("stock", "fused", "compiled")}, rounds)
    return {"rows_per_second": speeds, "first_updates_seconds": seconds}


class Dispatched(TorchDispatchMode):
    """Counts operations that PyTorch dispatches inside the block, those of autograd too.

    Attributes:
        counts: times of each operation, by name.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[str(operation).removeprefix("aten.").removesuffix(".default")] += 1
        return operation(*args, **(kwargs or {}))


def operations(rows: int = UPDATE) -> Counter:
    """Operations of one update of the sentiment task, on Qwen3-8B's depth and a toy width, in bf16 on the CPU."""
    prompt, data = setting("sentiment")
    model = random_model(DEPTH, "cpu", "bfloat16")
    model.config.pad_token_id = prompt.tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, prompt, data.splits["train"], Path(folder), "shared_prefix")
        update(trainer, rows, rows)  # what is made once is not counted
        with Dispatched() as dispatched:
            update(trainer, rows, rows)
    return dispatched.counts


def scoring(
    model: PreTrainedModel, prompt: Prompt, texts: list[str], against: str, batch_sizes: list[int], per_label: int
) -> dict:
    """Name -> function that scores texts and returns rows done.

    Args:
        against: "generate", or "request per label", which is so slow that it gets `per_label` rows only.
        batch_sizes: tried by the stock way; the report keeps the best.
    """
    scorer = LabelScorer(model, prompt)
    stock, rows = (generate, texts) if against == "generate" else (requests, texts[:per_label])
    ways = {"label tree": lambda: len(scorer.probabilities(texts))}
    for size in batch_sizes:
        ways[f"{against}, batch {size}"] = lambda size=size: stock(model, prompt, rows, size)
    return ways


def generate(model: PreTrainedModel, prompt: Prompt, texts: list[str], batch: int) -> int:
    """Greedy generation and parsing, sorted by length, padded on the left: what peers do for a label alone."""
    prompts = sorted(prompt.encode(texts), key=len, reverse=True)
    read = 0
    for i in range(0, len(prompts), batch):
        ids, mask = _left_padded(prompts[i : i + batch], prompt.tokenizer.pad_token_id, model.device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(map(len, prompt.label_ids)),
                do_sample=False,
                pad_token_id=prompt.tokenizer.pad_token_id,
                eos_token_id=prompt.tokenizer.eos_token_id,
            )
        read += len(prompt.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))
    return read


def requests(model: PreTrainedModel, prompt: Prompt, texts: list[str], batch: int) -> int:
    """One sequence for each text and label, sorted by length, all logits: as lm-evaluation-harness does it."""
    wanted = [(ids, label) for ids in prompt.encode(texts) for label in prompt.label_ids]
    wanted.sort(key=lambda pair: -len(pair[0] + pair[1]))
    total = 0.0
    for i in range(0, len(wanted), batch):
        part = wanted[i : i + batch]
        rows = [torch.tensor(ids + label[:-1]) for ids, label in part]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        with torch.no_grad():
            log_probs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1, dtype=torch.float32)
        for row, (prompt_ids, label) in enumerate(part):
            at = torch.arange(len(label), device=ids.device) + len(prompt_ids) - 1
            total += log_probs[row, at, torch.tensor(label, device=ids.device)].sum().item()
    return len(texts)


def _left_padded(prompts: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def interleaved(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict]:
    """Rows per second of each way: one warm-up, then rounds in which every way takes its turn.

    Returns:
        name -> median, low and high rows per second over the rounds, and the median of peak_mib: of GPU memory on a
        GPU, else resident.
    """
    found: dict[str, list[dict]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            way = once(run)
            if turn:
                found[name].append(way)
    figures = {}
    for name, turns in found.items():
        speeds = [way["rows_per_second"] for way in turns]
        figures[name] = {"median": statistics.median(speeds), "low": min(speeds), "high": max(speeds)}
        figures[name]["peak_mib"] = statistics.median(way["peak_mib"] for way in turns)
    return figures


def once(run: Callable[[], int]) -> dict[str, float]:
    """Rows per second, and the most MiB that were held at once beyond what was held before."""
    held = _reset_peak()
    started = time.perf_counter()
    rows = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {"rows_per_second": rows / seconds, "peak_mib": (_peak() - held) / 2**20}


def _reset_peak() -> int:
    """Let the peak begin anew at what is held now; bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier way freed would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM begins anew
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def ratio(task: str, kind: str, ours: str, against: str, goal: float, found: dict) -> dict:
    """Ours against the best batch size of a stock way: medians of rows per second."""
    batches = [name for name in found if name == against or name.startswith(f"{against}, batch")]
    stock = max(batches, key=lambda name: found[name]["median"])
    return {
        "what": f"{kind}, {task}",
        "way": ours,
        "against": stock,
        "ours": found[ours]["median"],
        "stock": found[stock]["median"],
        "ratio": found[ours]["median"] / found[stock]["median"],
        "must_reach": goal,
        "peak_mib": found[ours]["peak_mib"],
        "peak_mib_stock": found[stock]["peak_mib"],
    }


@torch.no_grad()
def decoding(shape: dict, device: str, dtype: str, batch: int, context: int, steps: int = 16) -> dict:
    """Key-value memory and the median time of one more token, behind a context whose keys and values are random."""
    found = {"key_value_heads": shape["num_key_value_heads"], "batch": batch, "context": context}
    try:
        model = random_model(shape, device, dtype)
        cache = StaticCache(config=model.config, max_cache_len=context + steps + 1)
        size = (batch, shape["num_key_value_heads"], context, shape["head_dim"])
        for layer in range(shape["num_hidden_layers"]):
            keys = torch.randn(size, device=device, dtype=model.dtype)
            cache.update(keys, keys, layer)
        token, times = torch.zeros((batch, 1), dtype=torch.long, device=device), []
        for _ in range(steps + 1):  # the first warms up
            started = now()
            model(token, past_key_values=cache)
            times.append(now() - started)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    except torch.cuda.OutOfMemoryError:
        return found | {"out_of_memory": True}
    return found | {
        "bytes_per_token": held / batch / (context + steps + 1),
        "cache_mib": held / 2**20,
        "decode_ms": 1000 * statistics.median(times[1:]),
    }


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def show(report: dict) -> None:
    where = report["machine"]["gpu"] or f"{report['machine']['processor']}, {report['machine']['cores']} threads"
    table = Table(title=f"rows per second, and peak memory beyond the model's; {where}")
    for column in ("what", "way", "against", "ours", "stock", "ratio", "goal", "peak MiB", "stock"):
        table.add_column(column, justify="left" if column in ("what", "way", "against") else "right")
    for row in report["ratios"]:
        figures = [f"{row['ours']:.1f}", f"{row['stock']:.2f}", f"{row['ratio']:.2f}", f"{row['must_reach']:g}"]
        peaks = f"{row['peak_mib']:.0f}", f"{row['peak_mib_stock']:.0f}"
        table.add_row(row["what"], row["way"], row["against"], *figures, *peaks)
    Console(width=140).print(table)


def save(report: dict, name: str) -> None:
    print(f"written to {write(report, name)}")


def write(report: dict, name: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    return target
