"""Trainings that are killed or stopped by a signal, and checkpoints that are damaged or another recipe's."""

import contextlib
import io
import itertools
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.shared import (
    RESUME,
    Fault,
    finish,
    newest,
    outcome,
    reference,
    refusal,
    succeed,
    train,
    undisturbed_run,
    wait_for,
    wait_for_line,
)
from fintune.files import sha256
from fintune.training.checkpoints import MANIFEST, checkpoint_to_resume

CHAINS, KILLS = 8, 5  # trainings, kills of each


def kills(fault: Fault) -> None:
    """Chains of kills of one training, every second one aimed into a save."""
    expected, inside_a_save = reference(), Counter()

    def partial(path: Path | None) -> bool:
        return path is not None and not (path / MANIFEST).exists()

    def kill(folder: Path, rng: random.Random, aimed: bool) -> tuple[bool, bool]:
        """Whether it fired, and whether it left a partial checkpoint."""
        before = newest(folder)
        process = train(folder, *RESUME)
        begun = wait_for(lambda: newest(folder) not in (None, before), process)
        time.sleep(rng.uniform(0, 0.4))
        if aimed:
            begun = wait_for(lambda: partial(newest(folder)), process)
        process.kill()
        finish(process)
        fired = begun and process.returncode == -signal.SIGKILL
        return fired, fired and partial(newest(folder))

    def chain(number: int) -> None:
        rng, folder = random.Random(number), Path(f"killed-{number}")
        for count in range(KILLS):
            fired, half = kill(folder, rng, aimed=count % 2 == 1)
            inside_a_save[half] += 1
            fault.record(fired, True, f"kill {count} of chain {number}")
            if half:
                last, process = newest(folder), train(folder, *RESUME)
                skipped = wait_for_line(process, f"resume: {last} is skipped")
                process.kill()
                finish(process)
                if not skipped:
                    fault.revoke(1, f"{last} was not skipped by name")
        code, output = finish(train(folder, *RESUME))
        if code or outcome(folder) != expected:
            fault.revoke(KILLS, f"chain {number} ended differently (exit code {code}): {output[-300:]}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(chain, range(CHAINS)))
    fault.measured = f"{inside_a_save[True]} inside a save"
    if inside_a_save[True] < 5:
        fault.lost.append("fewer than 5 fired inside a save")


def damage(fault: Fault) -> None:
    """Each file of a checkpoint deleted, truncated, one bit flipped; and a recipe that changed."""
    source = newest(undisturbed_run())
    identity = json.loads((source / MANIFEST).read_text())["identity"]
    names, rng, folder = sorted(path.name for path in source.iterdir()), random.Random(0), Path("damaged")
    for name, how in itertools.product(names, ("deleted", "truncated", "flipped")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder / source.name)
        path = folder / source.name / name
        content = bytearray(path.read_bytes())
        if how == "deleted":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        named = refusal(lambda: checkpoint_to_resume(folder, str(folder / source.name), identity))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            refused = refusal(lambda: checkpoint_to_resume(folder, "true", identity))
        skipped = f"{source.name} is skipped" in output.getvalue()
        held = name in named and skipped and not refused
        if name == MANIFEST:  # a flipped bit of a hash or of the identity names the file or the key that it is about
            held = bool(named) and (skipped or bool(refused))
        fired = not path.exists() or sha256(path) != sha256(source / name)
        fault.record(fired, held, f"{name} {how}: {named or 'accepted'}")
    for key, value in (("learning_rate", 1.0), ("lora_r", 99), ("seed", 7), ("data", "0" * 64)):
        changed = identity | {key: value}
        said = refusal(lambda changed=changed: checkpoint_to_resume(undisturbed_run(), str(source), changed))
        fault.record(identity.get(key) != value, f"`{key}` was" in said, f"{key}: {said or 'accepted'}")


def signals(fault: Fault) -> None:
    """Half of them in a run that saves and evaluates at the end of epochs, so that the signal alone saves between."""
    by_epoch = ["--save_strategy", "epoch", "--eval_strategy", "epoch"]
    succeed(train(Path("undisturbed-by-epoch"), *by_epoch))
    kinds = [([], reference()), (by_epoch, outcome(Path("undisturbed-by-epoch")))]

    def one(number: int) -> None:
        signum, expected_code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[number % 2]
        flags, expected = kinds[number // 2 % 2]
        folder = Path(f"signal-{number}")
        process = train(folder, *flags, *RESUME)
        begun = wait_for(lambda: newest(folder) is not None, process)
        time.sleep(random.Random(number).uniform(0, 0.4))
        process.send_signal(signum)
        code, output = finish(process)
        announced, last = re.search(r"saving after step (\d+);", output), newest(folder)
        saved = f"saved {last};" in output and (last / MANIFEST).exists()
        at_once = announced and int(last.name.removeprefix("checkpoint-")) <= int(announced[1])
        again, resumed = finish(train(folder, *flags, *RESUME))
        held = code == expected_code and saved and at_once and f"resume: from {last}" in resumed and again == 0
        held = held and outcome(folder) == expected
        fault.record(begun and bool(announced), held, f"{signum.name}: {code}, {output[-200:]}; {resumed[-200:]}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(12)))
