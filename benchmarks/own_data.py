"""Run the README's three commands from a labelled file to a service, and write what they print into the README.

Of the audit's lines only their place is shown.

.venv/bin/python benchmarks/own_data.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from fintune.files import replace_block

ROOT = Path(__file__).resolve().parents[1]
HEADLINE = "Alder raised its dividend again"
PREPARE = ["--text", "text", "--label", "label", "--task", "mine"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copytree(ROOT / "data/sample", "data/sample")
        Path("configs").symlink_to(ROOT / "configs")
        prepared = run("-m", "fintune.cli", "prepare", "data/sample/sentiment.csv", *PREPARE)
        tfidf = "data/mine.yaml", "configs/baselines/tfidf.yaml"
        trained = run(str(ROOT / "train_linear.py"), *tfidf, "--report_to", "none")
        answer = ask("runs/mine/tfidf")
    trained = trained[trained.index("mine: tfidf on test") :]
    shown = re.sub(r"(audit: .*\n)+", "...\n", prepared)
    lines = ["```", *shown.splitlines(), "", *trained.splitlines(), ""]
    asked = f"""$ curl localhost:8000/classify -H 'Content-Type: application/json' -d '{{"text": "{HEADLINE}"}}'"""
    lines += [asked, answer, "```"]
    replace_block(ROOT / "README.md", "own", "\n".join(line.rstrip() for line in lines))


def run(*words: str) -> str:
    """What a command prints on standard output."""
    environment = os.environ | {"COLUMNS": "100", "WANDB_MODE": "disabled"}
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return ANSI.sub("", done.stdout)


def ask(run_dir: str) -> str:
    """The service's answer to one headline."""
    command = [sys.executable, "-m", "fintune.cli", "serve", run_dir, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as service:
        address = next(found[1] for line in service.stderr if (found := re.search(r"running on (http://\S+)", line)))
        request = urllib.request.Request(
            f"{address}/classify", json.dumps({"text": HEADLINE}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            said = answer.read().decode()
        service.kill()
    return said


if __name__ == "__main__":
    main()
