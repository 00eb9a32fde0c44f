"""Checkpoints that count only when complete, and a run that stops on a signal without losing a step."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers import Trainer, TrainerCallback
from transformers.integrations.neftune import deactivate_neftune

from fintune.errors import Stopped, UserError, in_words
from fintune.files import check_writable, faults, finish_move, hashes, modes_of_umask, read_json, sha256, write_json
from fintune.recipe.identity import differences

MANIFEST = "manifest.json"


class CheckpointManifest(TrainerCallback):
    """Writes a manifest of every file's hash last, and turns a signal into a checkpoint after the current step."""

    def __init__(self, identity: dict, seconds: float = 0.0):
        """
        Args:
            identity: of the run; a checkpoint is resumed only by a run with the same identity.
            seconds: of training before the checkpoint that this one resumes from.
        """
        self.identity, self.seconds = identity, seconds
        self.signum = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # a signal reaches the processes at different steps, and all must save the same one
            self.signum = max(gather_object([self.signum or 0])) or None
        if self.signum:
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end  # which comes before the save of the same step

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.signum and state.epoch % 1:  # stopped within the epoch, and saved as it was there
            control.should_evaluate = control.should_save = False

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each process writes the state of its own random numbers
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        modes_of_umask(folder)
        files = hashes(folder)
        for name in (MANIFEST, f"{MANIFEST}.part"):  # of an earlier save of the same step
            files.pop(name, None)
        seconds = self.seconds + time.perf_counter() - self.started
        content = {"step": state.global_step, "seconds": seconds, "identity": self.identity, "sha256": files}
        write_json(folder / MANIFEST, content)


_locked = {}  # folder -> lock, held as long as the process lives


def lock_folder(folder: Path, process_index: int = 0) -> None:
    """Keep any other run from training into a folder for as long as this process lives.

    Args:
        process_index: of several processes that train one model the first locks it for all.

    Raises:
        UserError: another run has locked it, or it cannot be written.
    """
    if process_index > 0:
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder as output_dir")
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for inner in filter(Path.is_dir, folder.iterdir()):  # perhaps another user's
        check_writable(inner)
    lock = FileLock(folder.resolve() / ".lock", timeout=0, is_singleton=True)
    try:
        _locked[folder.resolve()] = lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another run is training into it; wait for that one, or give another --output_dir"
        ) from error
    except OSError as error:  # the lock is another user's
        raise UserError(in_words(error, folder / ".lock")) from error
    finish_move(folder)


@contextmanager
def interruptible(trainer: Trainer, manifest: CheckpointManifest) -> Iterator[None]:
    """Train inside the block: SIGTERM and SIGINT save and stop, a second one stops at once; NEFTune's hook is removed.

    Raises:
        Stopped: after the checkpoint was saved.
    """

    def flag(signum, frame):
        manifest.signum = signum
        signal.signal(signum, signal.SIG_DFL)
        step = trainer.state.global_step + 1
        print(f"\n{signal.Signals(signum).name}: saving after step {step}; a second signal stops at once", flush=True)

    before = {signum: signal.signal(signum, flag) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        # a train() that raised leaves its hook on the embedding, and the next one would add noise twice
        handle = trainer.__dict__.pop("neftune_hook_handle", None)
        if handle is not None and handle.id in handle.hooks_dict_ref():
            deactivate_neftune(trainer.model, handle, trainer.accelerator)
    if manifest.signum:
        whole = (path for path in _checkpoints(Path(trainer.args.output_dir)) if (path / MANIFEST).is_file())
        raise Stopped(manifest.signum, str(next(whole, "nothing")))


def checkpoint_to_resume(folder: Path, wanted: str | None, identity: dict) -> str | None:
    """The newest complete checkpoint, each partial or damaged one skipped by name; None to start from nothing.

    Args:
        wanted: `resume_from_checkpoint`: a folder, `true` for the newest, `false` to begin anew.

    Raises:
        UserError: the named checkpoint is damaged, the run changed since it was saved, or there is an unfinished run
            and nothing says what to do with it.
    """
    ours = [path for path in _checkpoints(folder) if (path / MANIFEST).is_file()]
    if wanted is None and (left := unfinished(folder)):
        raise UserError(
            f"{left[0]}: an unfinished run is here; continue it with --resume_from_checkpoint true, or discard it "
            "with --resume_from_checkpoint false"
        )
    if wanted is None or wanted.lower() in ("false", "no"):
        for old in ours:  # a later resume must not take an earlier run's for its own
            print(f"removed: {old}, of an earlier run")
            shutil.rmtree(old)
        return None
    newest = wanted.lower() in ("true", "yes")
    for path in _checkpoints(folder) if newest else [Path(wanted)]:
        fault = _fault(path)
        if fault and not newest:
            raise UserError(f"{path}: {fault}; resume from another checkpoint, or train from the beginning")
        if fault:
            print(f"resume: {path} is skipped: {fault}")
            continue
        before = read_json(path / MANIFEST)["identity"]
        if changed := differences(before, identity):
            key = changed[0]
            raise UserError(
                f"{path}: `{key}` was {before.get(key)!r} when it was saved and is {identity.get(key)!r} now; "
                "state the old value, or train from the beginning without --resume_from_checkpoint"
            )
        print(f"resume: from {path}")
        return str(path)
    print(f"resume: no complete checkpoint in {folder}; training starts from the beginning")
    return None


def seconds_until(checkpoint: str | None) -> float:
    """Training time, in all parts of its run, that a checkpoint holds; what came after the last one is lost."""
    if checkpoint is None:
        return 0.0
    return read_json(Path(checkpoint) / MANIFEST).get("seconds", 0.0)


def finished_checkpoints(folder: Path) -> dict[str, str]:
    """Name and hash of the manifest of each complete checkpoint, as metrics.json keeps them."""
    return {path.name: sha256(path / MANIFEST) for path in _checkpoints(folder) if (path / MANIFEST).is_file()}


def unfinished(folder: Path) -> list[Path]:
    """Complete checkpoints that the result in the folder, if there is one, does not list as its own, newest first."""
    try:
        own = read_json(folder / "metrics.json")["checkpoints"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        own = ()
    return [folder / name for name, manifest in finished_checkpoints(folder).items() if (name, manifest) not in own]


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def _fault(path: Path) -> str | None:
    try:
        content = read_json(path / MANIFEST)
        saved = {str(name): str(expected) for name, expected in content["sha256"].items()}
        content["identity"].items()
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so its saving was interrupted"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"its {MANIFEST} is not what was saved"
    for name, what in faults(path, saved):
        return f"{name} is {what}"
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    if added := sorted(found - saved.keys() - {MANIFEST}):
        return f"{added[0]} was not saved with it"
    return None
