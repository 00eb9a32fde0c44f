"""Wrong labels are found where they were planted, and rows that are left out stay out of training alone."""

import csv
import random
import re
from itertools import product

import numpy as np
import pytest
from conftest import COMPANIES

from fintune.cli import command
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.model.linear import LinearArguments
from fintune.recipe.layers import read_task
from fintune.scoring import suspects

PHRASES = {
    "Up": ["raised its dividend", "won a large order", "reports a record profit", "lifts its outlook"],
    "Down": ["cut its dividend", "lost a large client", "reports a heavy loss", "lowers its outlook"],
    "Flat": ["holds its meeting", "moves its head office", "names a new auditor", "publishes its calendar"],
}
WHEN = ["in spring", "on Monday", "after the summer", "before the vote", "despite the strike"]


def planted(folder):
    """(the task, (text, planted label) of 36 of 720 rows, 5 %, whose label was changed); two texts contradict others.

    Each text is there once, so that its words and not a copy give it away.
    """
    texts = {
        f"{company} {phrase} {when}": label
        for label, phrases in PHRASES.items()
        for company, phrase, when in product(COMPANIES, phrases, WHEN)
    }
    rng = random.Random(0)
    rows = rng.sample(sorted(texts.items()), len(texts))
    flipped = {text: rng.choice([name for name in PHRASES if name != label]) for text, label in rows[:36]}
    rows = [(text, flipped.get(text, label)) for text, label in rows]
    rng.shuffle(rows)
    rows += [("Zinc mines of the north close over winter as every year", "Up")]
    rows += [("Zinc mines of the north close over winter, as every year!", "Down")]
    rows += [("All ships of the line wait for 12 days off the eastern coast of the island", "Flat")]
    rows += [("All ships of the line wait for 12 days off the eastern coast of an island", "Up")]
    path = folder / "data/news.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "data/news.yaml").write_text("task: news\nlabels: [Up, Down, Flat]\nfiles: {all: news.csv}\n")
    (folder / "templates/news.jinja").write_text("{{ text }}")
    return read_task(folder / "data/news.yaml"), set(flipped.items())


def read_csv(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_most_of_the_first_suspects_are_the_planted_ones(task_folder, capsys):
    _, flipped = planted(task_folder)
    command(["audit", "data/news.yaml", "--suspects", "suspects.csv"])
    said = capsys.readouterr().out.splitlines()[-1]
    found = read_csv("suspects.csv")
    predicted = [row for row in found if "contradicts" not in row["why"]]
    hits = [(row["text"], row["label"]) in flipped for row in predicted]
    assert sum(hits[:20]) >= 18
    assert sum(hits) >= 30
    print(sum(hits[:20]), sum(hits), len(hits), said)
    for text, label in flipped:
        pass
