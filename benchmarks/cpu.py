"""Training and scoring of short texts against the stock ways, on this machine's CPU: `make bench`, about 15 minutes.

The model is a random Qwen3 of 30 million parameters (512 wide, 8 layers, 8 and 4 heads, vocabulary 8,192), so that its
body and not its vocabulary costs the time; speed does not depend on the weights. Texts are those of the two tasks.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure

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
    ("training", "shared prefix 12 x 1", "stock 3 x 4, checkpointing", (3, 5)),
    ("training", "shared prefix 12 x 1", "stock 3 x 4", (2, 3)),
    ("scoring", "label tree", "generate", (2.5, None)),
    ("scoring", "label tree", "request per label", (None, 35)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    name = parser.parse_args().name
    model = measure.random_model(SHAPE, "cpu", "float32")
    report = measure.compare(model, GOALS, ROUNDS, UPDATES, TEXTS, PER_LABEL, BATCHES)
    measure.show(report)
    measure.save(report | {"model": SHAPE | {"dtype": "float32"}}, name)


if __name__ == "__main__":
    main()
