"""A labelled file as people bring it becomes a service in three commands."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import ROOT

ROWS = {"Zahlen": 150, "Personal": 80, "Aktie": 45, "Übernahme": 25}
WORDS = {
    "Zahlen": "sales profit quarter earnings revenue margin loss forecast guidance results",
    "Personal": "chief staff hires resigns board director layoffs chairman workers union",
    "Aktie": "shares stock analysts target rating downgrade buyback dividend investors rally",
    "Übernahme": "bids merger takeover rival deal acquires stake offer approval talks",
}
OTHERS = "Alder Birch Cedar Elm Fir Hazel Larch after before while over amid says new in Europe on Monday again"


@pytest.fixture
def news(tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """news.csv of 300 rows in four uneven classes, with semicolons and in UTF-16, as a spreadsheet saves it."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    rows = [
        (" ".join(draw.sample(OTHERS.split(), 5) + draw.sample(WORDS[label].split(), 4)), label)
        for label, count in ROWS.items()
        for _ in range(count)
    ]
    draw.shuffle(rows)
    lines = ["Schlagzeile;Thema", *(";".join(row) for row in rows)]
    Path("news.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-16", newline="")
    return rows


def run(*words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_commands_from_a_file_to_a_service(news):
    said = run(
        *["-m", "fintune.cli", "prepare", "news.csv"],
        *["--text", "Schlagzeile", "--label", "Thema", "--task", "mine"],
    )
    assert "UTF-16" in said and "semicolons" in said
    tfidf = str(ROOT / "configs/baselines/tfidf.yaml")
    run(str(ROOT / "train_linear.py"), "data/mine.yaml", tfidf, "--report_to", "none")
    result = json.loads(Path("runs/mine/tfidf/metrics.json").read_text())
    assert sum(result["data"]["rows"].values()) == 300
    assert result["test"]["accuracy"] >= result["test"]["simple"]["TF-IDF"]["accuracy"]
    assert result["test"]["accuracy"] > result["test"]["simple"]["majority class"]["accuracy"] + 0.2

    command = [sys.executable, "-m", "fintune.cli", "serve", "runs/mine/tfidf", "--port", "0"]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[1] for line in service.stderr if (found := re.search(r"running on (http://\S+)", line)))
        answers = httpx.post(f"{address}/classify", json={"texts": [text for text, _ in news]}, timeout=60).json()
    finally:
        service.kill()
        service.communicate()
    right = [answer["label"] == label for answer, (_, label) in zip(answers["results"], news, strict=True)]
    assert sum(right) / len(right) > 0.9
