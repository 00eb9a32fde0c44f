"""Training and scoring against the stock ways, for any model and machine, interleaved in one process."""

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fintune.prompt import IGNORE, Prompt
from fintune.scoring import Scorer
from fintune.trainer import OneLine, OneLineTrainer

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

LORA = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "use_rslora": True,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
UPDATE = 12  # rows


def training(model: PreTrainedModel, prompt: Prompt, rows: Dataset, folder: Path, updates: int, bf16: bool) -> dict:
    """Name -> function that runs the same updates (forward and backward, no optimiser) and returns rows done.

    TRL's own trainer with the paper's 3 x 4, with SFTConfig's gradient checkpointing and without, and this project's
    shared prefix at 12 x 1; each on an adapter model of its own over the same base weights.
    """
    dataset = prompt.training_rows(rows)
    batches = [list(dataset.select(range(i, i + UPDATE))) for i in range(0, updates * UPDATE, UPDATE)]

    def way(batching: str, rows_at_once: int, checkpointing: bool) -> Callable[[], int]:
        base = copy.deepcopy(model, memo={id(weights): weights for weights in model.parameters()})
        collator = OneLine.of(batching, dataset)
        trainer = (OneLineTrainer if collator else SFTTrainer)(
            model=get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA)),
            args=SFTConfig(
                str(folder), report_to="none", bf16=bf16, gradient_checkpointing=checkpointing, neftune_noise_alpha=0.3
            ),
            train_dataset=dataset,
            data_collator=collator,
            processing_class=prompt.tokenizer,
        )
        trainer.model.train()
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()

        def run() -> int:
            for batch in batches:
                tokens = torch.tensor(sum(label != IGNORE for row in batch for label in row["labels"]))
                for i in range(0, UPDATE, rows_at_once):
                    inputs = trainer.data_collator(batch[i : i + rows_at_once])
                    trainer.training_step(trainer.model, inputs, tokens.to(model.device))
                trainer.model.zero_grad()
            return len(batches) * UPDATE

        return run

    return {
        "stock 3 x 4, checkpointing": way("padded", 3, True),
        "stock 3 x 4": way("padded", 3, False),
        "shared prefix 12 x 1": way("shared_prefix", 12, False),
    }


def scoring(
    model: PreTrainedModel, prompt: Prompt, texts: list[str], against: str, batch_sizes: list[int], per_label: int
) -> dict:
    """Name -> function that scores texts and returns rows done.

    Args:
        against: "generate", or "request per label", which is so slow that it gets `per_label` rows only.
        batch_sizes: tried by the stock way; the report keeps the best.
    """
    scorer = Scorer(model, prompt)
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
        name -> median, low and high rows per second over the rounds, and peak GPU memory in GiB where there is a GPU.
    """
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    on_gpu = torch.cuda.is_available()
    for turn in range(rounds + 1):
        for name, run in ways.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            rows = run()
            if on_gpu:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            if turn:
                speeds[name].append(rows / (time.perf_counter() - started))
    return {
        name: {"median": statistics.median(found), "low": min(found), "high": max(found)}
        | ({"peak_gpu_gib": peaks[name]} if on_gpu else {})
        for name, found in speeds.items()
    }
