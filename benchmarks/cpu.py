"""Training and scoring of short texts against the stock ways on a CPU: `make bench`, 20 minutes on two cores.

`--layers` compares stock, fused and compiled layers instead, in the shapes of `tiny` and of SmolLM2-135M.

The model is a random Qwen3 of 30 million parameters (512 wide, 8 layers, 8 and 4 heads, vocabulary 8,192), so that its
body and not its vocabulary costs the time; speed does not depend on the weights. Texts are those of the two tasks.
How scoring grows from 1,000 to 100,000 rows is measured with the shape of `tiny`, and drawn.
"""

import argparse
import platform
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import matplotlib
import measure
from rich.console import Console
from rich.table import Table

from fintune import machine
from fintune.recipe.layers import read_layer
from fintune.scoring.label_scorer import LabelScorer

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
ROUNDS, UPDATES, TEXTS, PER_LABEL, BATCHES = 5, 2, 384, 6, [4, 8, 16]
# (what, ours, against, must reach for sentiment and topic)
GOALS = [
    ("training", "shared prefix 6 x 2", "stock 3 x 4, checkpointing", (3, 5)),
    ("training", "shared prefix 12 x 1", "stock 3 x 4", (2, 3)),
    ("scoring", "label tree", "generate", (2.5, None)),
    ("scoring", "label tree", "request per label", (None, 35)),
]

SMOLLM2 = {  # config.json of HuggingFaceTB/SmolLM2-135M-Instruct; its vocabulary is not trained and costs little
    "vocab_size": 8192,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}

GROWTH = [1_000, 3_000, 10_000, 30_000, 100_000]  # rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    parser.add_argument("--layers", action="store_true", help="only kinds of layers, 5 minutes")
    args = parser.parse_args()
    name, tiny = args.name, read_layer(measure.ROOT / "configs/tiny.yaml")["tiny_config"] | {"vocab_size": 8192}
    if args.layers:
        found = {"tiny": measure.layers_compared(tiny), "smollm2-135m": measure.layers_compared(SMOLLM2)}
        measure.save({"machine": machine.description(), "layers": found}, f"{name}-layers")
        return
    counts = measure.operations()
    show_operations(counts)
    model = measure.random_model(SHAPE, "cpu", "float32")
    report = {"machine": machine.description()}
    report |= measure.compare(model, GOALS, ROUNDS, UPDATES, TEXTS, PER_LABEL, BATCHES)
    measure.show(report)
    report |= {"model": SHAPE | {"dtype": "float32"}, "operations": dict(counts.most_common()), "growth": growth(tiny)}
    measure.save(report, name)
    draw(report, measure.RESULTS / f"{name}-growth.png")


def show_operations(counts: Counter) -> None:
    table = Table(title=f"{counts.total():,} operations an update of 12 rows, 36 layers, bf16; the 20 most frequent")
    table.add_column("operation")
    table.add_column("times", justify="right")
    for name, times in counts.most_common(20):
        table.add_row(name, f"{times:,}")
    Console().print(table)


def growth(shape: dict) -> list[dict]:
    """Rows per second and peak memory of scoring the sentiment sample's texts, made distinct by a number."""
    prompt, data = measure.setting("sentiment")
    scorer = LabelScorer(measure.random_model(shape, "cpu", "float32"), prompt)
    texts = list(data.splits["train"]["text"])
    scorer.probabilities(texts)  # warm-up
    found = []
    for rows in GROWTH:
        many = [f"{texts[row % len(texts)]} {row}" for row in range(rows)]
        way = measure.once(lambda many=many: len(scorer.probabilities(many, progress=f"{len(many):,} rows")))
        found.append({"rows": rows} | way)
        print(f"{rows:,} rows: {way['rows_per_second']:.0f} a second, {way['peak_mib']:.0f} MiB beyond the model")
    return found


def draw(report: dict, path: Path) -> None:
    rows = [point["rows"] for point in report["growth"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(rows, [point["rows_per_second"] for point in report["growth"]], "o-", color="#0072b2")
    left.set(ylabel="rows per second", title="Speed of scoring")
    right.plot(rows, [point["peak_mib"] for point in report["growth"]], "o-", color="#d55e00")
    right.set(ylabel="MiB beyond model and texts", title="Peak memory of scoring")
    for axes in (left, right):
        axes.margins(y=0.1)
        axes.set(xscale="log", xlabel="rows scored in one call")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"tiny (3 million parameters), float32, {report['machine']['processor']}, {report['machine']['cores']} cores",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)
    print(f"drawn in {path.relative_to(measure.ROOT)}")


if __name__ == "__main__":
    main()
