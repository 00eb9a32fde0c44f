"""Training and scoring of short texts against the stock ways, on this machine's CPU: `make bench`, about 15 minutes.

The model is a random Qwen3 of 30 million parameters (512 wide, 8 layers, 8 and 4 heads, vocabulary 8,192), so that its
body and not its vocabulary costs the time; speed does not depend on the weights. Texts are those of the two tasks.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
from fintune import machine
from fintune.data import load_data
from fintune.prompt import Prompt
from fintune.recipe import read_layer
from fintune.scoring import common_prefix, label_tree
from fintune.task import TASK_KEYS, make_task
from fintune.tiny import train_tokenizer

import measure

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
ROUNDS, UPDATES, TEXTS, PER_LABEL = 5, 2, 384, 6
AGAINST = {"sentiment": "generate", "topic": "request per label"}  # how peers score a few labels, and many
# (what, ours, against, must reach for sentiment and topic)
GOALS = [
    ("training", "shared prefix 12 x 1", "stock 3 x 4, checkpointing", (3, 5)),
    ("training", "shared prefix 12 x 1", "stock 3 x 4", (2, 3)),
    ("scoring", "label tree", "generate", (2.5, None)),
    ("scoring", "label tree", "request per label", (None, 35)),
]


def setting(name: str):
    """(model, prompt, data) of a task, with a vocabulary trained on its own texts."""
    path = ROOT / f"data/{name}.yaml"
    task = make_task({key: value for key, value in read_layer(path).items() if key in TASK_KEYS}, str(path))
    data = load_data(task, allow_sample=True)
    tokenizer = train_tokenizer(task, data.splits["train"]["text"], 8192)
    tokenizer.chat_template = (ROOT / "templates/qwen3-chat.jinja").read_text()
    set_seed(0)
    config = Qwen3Config(vocab_size=8192, eos_token_id=tokenizer.eos_token_id, **SHAPE)
    config.pad_token_id = tokenizer.pad_token_id
    return Qwen3ForCausalLM(config).eval(), Prompt(task, tokenizer, 360), data


def ways_of(name: str, folder: Path) -> tuple[dict[str, dict], dict]:
    """What is measured on a task, and the task's size in tokens."""
    model, prompt, data = setting(name)
    texts = data.splits["train"]["text"][:TEXTS]
    prompts = prompt.encode(texts)
    shared = common_prefix(prompts)
    size = {
        "data": data.source,
        "instruction_tokens": shared,
        "text_tokens": statistics.mean(map(len, prompts)) - shared,  # and the frame behind the text
        "label_tree_tokens": len(label_tree(prompt.label_ids).tokens),
        "vocabulary": len(prompt.tokenizer),
    }
    ways = {
        "scoring": measure.scoring(model, prompt, texts, AGAINST[name], [4, 8, 16], PER_LABEL),
        "training": measure.training(
            Qwen3ForCausalLM(model.config), prompt, data.splits["train"], folder, UPDATES, bf16=False
        ),
    }
    return ways, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    target = ROOT / "benchmarks/results" / f"{parser.parse_args().name}.json"
    target.parent.mkdir(exist_ok=True)
    report = {"machine": machine.description(), "model": SHAPE | {"vocab_size": 8192, "dtype": "float32"}}
    report |= {"rounds": ROUNDS, "tasks": {}, "rows_per_second": {}, "ratios": []}
    for at, task in enumerate(("sentiment", "topic")):
        with tempfile.TemporaryDirectory() as folder:
            ways, report["tasks"][task] = ways_of(task, Path(folder))
            found = {kind: measure.interleaved(ways[kind], ROUNDS) for kind in ways}
            report["rows_per_second"][task] = found
            for kind, ours, against, goals in GOALS:
                if goals[at]:
                    report["ratios"].append(ratio(task, kind, ours, against, goals[at], found[kind]))
    target.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    print(f"written to {target.relative_to(ROOT)}")


def ratio(task: str, kind: str, ours: str, against: str, goal: float, found: dict) -> dict:
    """Ours against the best batch size of a stock way: medians of rows per second."""
    batches = [name for name in found if name == against or name.startswith(f"{against}, batch")]
    stock = max(batches, key=lambda name: found[name]["median"])
    return {
        "what": f"{kind}, {task}",
        "against": stock,
        "ours": found[ours]["median"],
        "stock": found[stock]["median"],
        "ratio": found[ours]["median"] / found[stock]["median"],
        "must_reach": goal,
    }


def show(report: dict) -> None:
    table = Table(title=f"rows per second, {report['machine']['processor']}, {report['machine']['cores']} threads")
    for column in ("what", "against", "ours", "stock", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    for row in report["ratios"]:
        figures = [f"{row['ours']:.1f}", f"{row['stock']:.2f}", f"{row['ratio']:.2f}", f"{row['must_reach']:g}"]
        table.add_row(row["what"], row["against"], *figures)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
