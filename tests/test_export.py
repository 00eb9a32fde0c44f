"""What is exported needs nothing of this project, answers as the run did, and says where it comes from."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from conftest import SMALL, script, write_task
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from fintune.cli import command
from fintune.deploy import export
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError
from fintune.files import sha256
from fintune.scoring.label_scorer import LabelScorer


def run_snippet(card: str, folder, monkeypatch) -> str:
    """Run the card's own lines where `fintune` cannot be imported."""
    code = card.split("```python\n")[1].split("```")[0]
    blind = "import sys\nsys.modules['fintune'] = None\n"
    done = subprocess.run([sys.executable, "-c", blind + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_plain_weights_answer_as_the_run_without_this_project(run_dir, tmp_path, capsys, monkeypatch):
    target = tmp_path / "plain"
    command(["export", str(run_dir), str(target)])
    assert "256 of 256 labels equal" in capsys.readouterr().out
    assert not {"adapter_config.json", "README.md.partial"} & {path.name for path in target.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]

    card = (target / "README.md").read_text()
    label = Classifier.from_pretrained(run_dir)(["Alder raised its dividend again"])[0][0]
    assert run_snippet(card, tmp_path, monkeypatch) == label
    result = json.loads((run_dir / "metrics.json").read_text())
    low, high = result["test"]["accuracy_interval"]
    for said in (
        result["data"]["sha256"],
        f"{result['test']['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})",
        f"temperature of {result['calibration']['temperature']:.4f}",
        f"{result['data']['rows']['train']} rows for training",
        "Licence of the data: not stated",
    ):
        assert said in " ".join(card.split())
    assert str(run_dir.parent) not in card
    assert ModelCard(card).data.eval_results[0].metric_value == result["test"]["accuracy"]
    with pytest.raises(UserError, match="already exists"):
        command(["export", str(run_dir), str(target)])


def test_a_non_commercial_licence_reaches_the_card(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    path = tmp_path / "run/metrics.json"
    result = json.loads(path.read_text())
    result["data"]["license"] = "CC BY-NC-SA 3.0"
    path.write_text(json.dumps(result))
    command(["export", str(tmp_path / "run"), str(tmp_path / "plain")])
    card = (tmp_path / "plain/README.md").read_text()
    assert ModelCard(card).data.license == "cc-by-nc-sa-3.0"
    assert "it is non-commercial" in card


def test_weights_that_answer_otherwise_are_not_exported(run_dir, tmp_path, monkeypatch):
    """As if the adapter were merged with alpha / r for alpha / sqrt(r), which flips labels."""
    save = LabelScorer.save_merged

    def save_wrongly(scorer, folder, run):
        save(scorer, folder, run)
        path = folder / "model.safetensors"
        save_file({key: value * 0.7 for key, value in load_file(path).items()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(LabelScorer, "save_merged", save_wrongly)
    with pytest.raises(UserError, match="labels differ from the run's"):
        command(["export", str(run_dir), str(tmp_path / "plain")])
    assert not (tmp_path / "plain").exists()


def test_a_run_in_4_bits_is_exported_without_rounding_twice(tmp_path, monkeypatch, capsys):
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "small.yaml"
    small = recipe.read_text().replace("hidden_size: 32", "hidden_size: 64")  # blocks of bitsandbytes: 64 and 32
    recipe.write_text(small.replace("head_dim: 8", "head_dim: 16"))
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, "--learning_rate", "1e-2"])
    run = tmp_path / "runs/toy/small"
    with (run / "recipe.yaml").open("a") as recipe:  # as it would read, trained on a GPU
        recipe.write("load_in_4bit: true\nbnb_4bit_quant_type: nf4\n")
    result = json.loads((run / "metrics.json").read_text())
    result["files"]["recipe.yaml"] = sha256(run / "recipe.yaml")
    (run / "metrics.json").write_text(json.dumps(result))
    assert Classifier.from_pretrained(run, merge=False).scorer.model.is_quantized
    command(["export", str(run), str(tmp_path / "plain")])
    assert float(re.search(r"256 of 256 labels equal, probabilities to (\S+)", capsys.readouterr().out)[1]) < 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    weights, base = load_file(tmp_path / "plain/model.safetensors"), load_file(run / "base/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights[name].shape == base[name].shape
    assert not torch.equal(weights[name], base[name])


def test_it_is_pushed_to_a_private_repository(run_dir, tmp_path, monkeypatch):
    """A Hub of our own that answers as the real one does and keeps what it gets."""
    asked, private = [], [True]

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers.get("Authorization"), body))
            there = "https://huggingface.co/me/toy"
            answer = {"url": there, "commitUrl": f"{there}/commit/1", "commitOid": "1", "errors": []}
            if "preupload" in self.path:
                files = json.loads(body)["files"]
                answer["files"] = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files
                ]
            self._send(answer | {"warnings": []})

        def _send(self, answer):
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            asked.append((self.path, None, b""))
            self._send({"id": "me/toy", "private": private[0], "siblings": []})

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = huggingface_hub.HfApi(endpoint, token="hf_secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
    command(["export", str(run_dir), str(tmp_path / "plain"), "--push", "me/toy"])
    create = json.loads(next(body for path, _, body in asked if path.endswith("/repos/create")))
    assert create["visibility"] == "private"
    assert {token for _, token, _ in asked if token} == {"Bearer hf_secret"}
    [commit] = [body for path, _, body in asked if "/commit/" in path]
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= sent
    assert b"hf_secret" not in commit

    private[0] = False
    with pytest.raises(UserError, match="me/toy: is public"):
        export.push_to_hub(tmp_path / "plain", "me/toy")
    assert sum("/commit/" in path for path, _, _ in asked) == 1
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="hf upload --private me/toy"):
        export.push_to_hub(tmp_path / "plain", "me/toy")
