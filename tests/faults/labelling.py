"""A labelling that is killed at every file event."""

import json
import sys
from collections import Counter
from pathlib import Path

from conftest import ROOT

from faults.shared import HEADLINES, Fault, finish, script, start, succeed

RUN = Path("runs/toy/tfidf")


def linear_run() -> Path:
    """TF-IDF on the toy task."""
    if not RUN.exists():
        recipe = str(ROOT / "configs/baselines/tfidf.yaml")
        succeed(script("train_linear.py", "data/toy.yaml", recipe, "--report_to", "none"))
    return RUN


def kills_at_every_file_event(fault: Fault) -> None:
    """Before each change of a file, and within each write; each once more with the second run killed too."""
    folder, events = Path("labelled"), Counter()
    folder.mkdir()
    lines = [
        f"{text},{number}" if number % 4 else f"{text},{number},one too many"
        for number, text in enumerate(HEADLINES[:22])
    ]
    (folder / "in.csv").write_text("text,id\n" + "\n".join(lines) + "\n,empty\n")
    words = [sys.executable, str(Path(__file__).with_name("file_events.py")), str(linear_run()), str(folder)]
    code, output = finish(start(words), seconds=1800)
    assert code == 0, output[-2000:]
    for line in output.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            fault.record(found["fired"], found["held"], found["what"][:300])
            events[found["event"]] += 1
    fault.measured = ", ".join(f"{count} at {name}" for name, count in events.most_common())
