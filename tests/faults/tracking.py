"""A Weights & Biases server that is unreachable, slow, refuses the key or fails."""

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from faults.shared import Fault, finish, free_port, server, train

KEY = "secretsecretsecretsecretsecretsecret0000"
OFFLINE = "wandb: offline ("


def tracking_fails(fault: Fault) -> None:
    """Training goes on, says so in one line, keeps the run on the disk and the key to itself."""
    cases = {
        "unreachable": (None, OFFLINE),
        "key refused": (lambda request: (401, b'{"errors": []}', {}), OFFLINE),
        "server errors": (lambda request: (500, b"no", {}), OFFLINE),
        "server slow": (_slow, OFFLINE),
        "server errors once the run is open": (_failing_once_open(), "wandb: not all was uploaded in "),
    }
    for name, (answer, line) in cases.items():
        with ExitStack() as stack:
            found = stack.enter_context(server(answer)) if answer else None
            folder = Path("wandb-" + name.replace(" ", "-"))
            environment = {
                "WANDB_MODE": None,
                "WANDB_BASE_URL": f"http://127.0.0.1:{found.server_port if found else free_port()}",
                "WANDB_API_KEY": KEY,
                "WANDB_DIR": str(Path.cwd()),
            }
            code, output = finish(train(folder, "--report_to", "wandb", "--max_steps", "8", **environment))
            once = sum(said.startswith(line) for said in output.splitlines()) == 1
            kept = list(Path("wandb").glob("*run-*/*.wandb"))
            files = [path for path in (*Path("wandb").rglob("*"), *folder.rglob("*")) if path.is_file()]
            secret = KEY not in output and not any(KEY.encode() in path.read_bytes() for path in files)
            held = code == 0 and (folder / "metrics.json").exists() and bool(kept) and once and secret
            what = f"{name}: {code}, {len(kept)} kept, said once {once}, key unseen {secret}: {output[-400:]}"
            fault.record(not answer or found.requests["POST"] > 0, held, what)
            shutil.rmtree("wandb", ignore_errors=True)


def _slow(request):
    time.sleep(12)
    return 200, b"{}", {}


def _failing_once_open():
    """Takes the key and opens the run, then nothing more."""
    viewer = {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
    viewer |= {"name": "me", "email": None, "admin": False, "deletedAt": None, "apiKeys": None}
    project = {"name": "fintune", "entity": {"name": "me"}}
    bucket = {"id": "1", "name": "1", "displayName": "1", "project": project}
    answered = []

    def answer(request):
        for name, found in (("viewer", viewer), ("upsertBucket", {"bucket": bucket, "inserted": True})):
            if name in request.body.decode(errors="replace") and name not in answered[1:]:
                answered.append(name)
                return 200, json.dumps({"data": {name: found}}).encode(), {}
        return 500, b"no", {}

    return answer
