"""Runs whose weights are pickled, truncated or another model's."""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizer

from faults.shared import HEADLINES, Fault, good_run, script, succeed
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError
from fintune.files import hashes
from fintune.model.load import base_fingerprint

ADAPTER, BASE, ENCODER = "adapter_model.safetensors", "base/model.safetensors", "model.safetensors"
PAYLOAD = "payload.bin"
TRIES = 4  # of each way


class Payload:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def foreign_weights(fault: Fault) -> None:
    """Weights that are not the run's, half of them with hashes to match: nothing is unpickled, nothing is loaded."""
    sentinel, copy = Path("unpickled").resolve(), Path("foreign")
    torch.save({"weight": Payload(sentinel)}, PAYLOAD)
    torch.load(PAYLOAD, weights_only=False)
    assert sentinel.exists(), "the pickles would not run anything anywhere"
    sentinel.unlink()
    runs = good_run(), _encoder_run()
    for run in runs:  # as they are, they load
        Classifier.from_pretrained(run)
    ways = _ways(*runs, sentinel)
    for number in range(TRIES * len(ways)):
        how = list(ways)[number % len(ways)]
        source, spoil, may_pass = ways[how]
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("checkpoint-*", ".lock"))
        before = hashes(copy)
        spoil(copy)
        fired = before != hashes(copy)
        if number >= TRIES // 2 * len(ways) and not may_pass:
            _match_hashes(copy, source == good_run())
        said = ""
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                Classifier.from_pretrained(copy)
            except UserError as error:
                said = str(error)
            except Exception as error:
                how += f", {type(error).__name__}: {str(error)[:200]}"
        fault.record(fired, bool(said) and not sentinel.exists(), f"{how}: {said or 'accepted, or a traceback'}")


def _encoder_run() -> Path:
    """A BERT of one layer that was trained on the toy task by train_cls.py."""
    words = sorted({word for text in HEADLINES for word in text.lower().split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained("encoder")
    BertTokenizer(vocab=vocabulary).save_pretrained("encoder")
    recipe, folder = str(ROOT / "configs/baselines/bert-base.yaml"), Path("classifier")
    flags = ["--model_name_or_path", "encoder", "--num_train_epochs", "2", "--report_to", "none"]
    succeed(script("train_cls.py", "data/toy.yaml", recipe, *flags, "--output_dir", str(folder)))
    return folder


def _match_hashes(run: Path, is_language_model: bool) -> None:
    """As somebody would do it who can write to the folder."""
    result = json.loads((run / "metrics.json").read_text())
    result["files"] = {name: found for name, found in hashes(run).items() if name in result["files"]}
    if is_language_model:
        result["model"]["fingerprint"] = base_fingerprint(str(run / "base"), None)
    (run / "metrics.json").write_text(json.dumps(result))


def _ways(run: Path, encoder_run: Path, sentinel: Path) -> dict[str, tuple[Path, Callable[[Path], object], bool]]:
    """How -> (the run, what is done to a copy of it, whether it would pass with hashes to match)."""
    remote = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    other = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    return {
        "a pickled adapter": (run, _pickled(ADAPTER, "adapter_model.bin"), False),
        "an honest pickled adapter": (run, _honestly_pickled, False),
        "a pickled base": (run, _pickled(BASE, "pytorch_model.bin"), False),
        "a pickled encoder": (encoder_run, _pickled(ENCODER, "pytorch_model.bin"), False),
        "a pickle named safetensors": (run, lambda copy: shutil.copy(PAYLOAD, copy / ADAPTER), False),
        "truncated weights": (run, _truncated(random.Random(0)), False),
        "another vocabulary": (run, _weights(BASE, _shorter), False),
        "other names in the adapter": (run, _weights(ADAPTER, _renamed("q_proj", "p_proj")), False),
        "other names in the encoder": (encoder_run, _weights(ENCODER, _renamed("query", "quarry")), False),
        "another architecture": (run, _config(sentinel, other), False),
        "remote code": (run, _config(sentinel, remote), False),
        "another base": (run, _weights(BASE, lambda name, weight: (name, weight + 1)), True),
        "truncated metrics": (run, _truncated_metrics, True),
    }


def _pickled(name: str, pickle: str):
    def spoil(run: Path) -> None:
        (run / name).unlink()
        shutil.copy(PAYLOAD, run / Path(name).parent / pickle)

    return spoil


def _honestly_pickled(run: Path) -> None:
    weights = load_file(run / ADAPTER)
    (run / ADAPTER).unlink()
    torch.save(weights, run / "adapter_model.bin")


def _truncated(rng: random.Random):
    def spoil(run: Path) -> None:
        path = rng.choice([run / ADAPTER, run / BASE])
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])

    return spoil


def _truncated_metrics(run: Path) -> None:
    (run / "metrics.json").write_text((run / "metrics.json").read_text()[:100])


def _weights(name: str, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]):
    """Every weight of a file changed."""

    def spoil(run: Path) -> None:
        changed = dict(change(key, weight) for key, weight in load_file(run / name).items())
        save_file(changed, run / name, metadata={"format": "pt"})

    return spoil


def _shorter(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    return name, weight[:-3] if "embed" in name else weight


def _renamed(before: str, after: str):
    return lambda name, weight: (name.replace(before, after), weight)


def _config(sentinel: Path, keys: dict):
    """Other keys in the base's config, and code beside it that they may name."""

    def spoil(run: Path) -> None:
        path = run / "base/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))
        code = f"import os\nos.system('touch {sentinel}')\nclass C: pass\nclass M: pass\n"
        (run / "base/evil.py").write_text(code)

    return spoil
