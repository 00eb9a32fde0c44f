"""Look at a task's rows before training on them: repeats, leaks, contradictions, odd texts.

    python audit.py data/topic.yaml          # make audit TASK=topic

Training prints the short form of it first, and stops where more of the test split than the task's `max_leakage`
stands in training.
"""

import argparse
from pathlib import Path

from fintune import audit
from fintune.data import load_data
from fintune.errors import run
from fintune.recipe import read_task


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, help="a task's YAML")
    args = parser.parse_args(argv)
    task = read_task(args.task)
    data = load_data(task, allow_sample=True)
    audit.show(task, audit.audit(task, data))
    audit.check_leakage(task, data)


if __name__ == "__main__":
    run(main)
