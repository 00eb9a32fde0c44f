"""What one more token costs with more or fewer key-value heads: batches of 1, 32, 64 behind 150 and 4,096 tokens.

    .venv/bin/python benchmarks/decode.py        # a minute on two cores; for docs/ablations.md

Random weights in the shape of `tiny`; Qwen3-8B's is in benchmarks/gpu.py.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure
import torch

from fintune import machine
from fintune.recipe.layers import read_layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    args = parser.parse_args()
    shape = read_layer(measure.ROOT / "configs/tiny.yaml")["tiny_config"] | {"vocab_size": 8192}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for context in (150, 4096):
        for batch in (1, 32, 64):
            for heads in (1, 2, 6):
                changed = {**shape, "num_key_value_heads": heads}
                rows.append(measure.decoding(changed, device, "float32", batch, context))
                print(rows[-1])
    measure.save({"machine": machine.description(), "model": "tiny", "decoding": rows}, f"{args.name}-decode")


if __name__ == "__main__":
    main()
