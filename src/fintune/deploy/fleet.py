"""Label a folder of Parquet files on a Ray cluster: one file is the unit of work, written whole or not at all.

An actor labels a file as `fintune predict` does alone, so another actor continues what a killed one began. Folders are
paths that every node sees, or URIs of a bucket (s3://, gs://), whose files pass through a node's temporary folder.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from filelock import FileLock, Timeout
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files
from ray.data import ActorPoolStrategy

from fintune.deploy.classifier import Classifier, Long
from fintune.deploy.label_file import label_file
from fintune.errors import UserError

RUN = "_run.json"  # in the output folder: what its files were labelled with; a leading _ hides it from readers


def label_folder(
    run_dir: Path,
    run: list,
    source: str,
    target: str,
    text_column: str,
    threshold: float,
    prefix: str,
    columns: dict[str, str] | None = None,
    base: Path | None = None,
    long: Long = "cut",
) -> tuple[int, int]:
    """Label every .parquet file of `source` into the file of the same name in `target`; existing files are kept.

    Actors take a GPU each, or a CPU each in a cluster without one. The cluster is that of RAY_ADDRESS, else this
    machine. Stopped at any moment, the same call continues.

    Args:
        run_dir: the run, which every node must see at that path.
        run: its `run_fingerprint`.
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.
        columns: what the run reads beside the text -> the files' column; see `label_file`.
        base: where the run's base is, which every node must see at that path; see `Classifier.from_pretrained`.
        long: how a text of over `max_length` tokens is read; see `Classifier.from_pretrained`.

    Returns:
        (labelled, rejected) rows of all files, also those of earlier calls, counted in what was written.

    Raises:
        UserError: there is no Parquet file; `target` holds files of another run or other options, or another command
            is labelling into it; after all others are labelled, a file that could not be.
    """
    source, target = (folder if "://" in folder else str(Path(folder).resolve()) for folder in (source, target))
    if source == target:
        raise UserError(f"{target}: is the input's folder; name another folder for the output")
    files, options = parquet_files(source), (text_column, threshold, prefix)
    if not files:
        raise UserError(f"{source}: no .parquet file in it; name the folder that holds them")
    with _alone(target):
        existing = parquet_files(target, missing_ok=True)
        _check_run(target, [*run, *options, long, *(columns or {}).items()], begun=bool(existing))
        todo = sorted(set(files) - {name for name in existing if not _interrupted(target, name)})
        print(f"{len(files):,} files, {len(files) - len(todo):,} of them done before", file=sys.stderr)
        settings = str(run_dir.resolve()), source, target, options, columns, base and str(base.resolve()), long
        failed = _failed(todo, settings) if todo else []
    if failed:
        raise UserError(
            f"{len(failed)} of {len(files)} files could not be labelled, the others are; first {failed[0]['file']}: "
            f"{failed[0]['error']}"
        )
    return count(source, target, files, prefix)


def _failed(names: list[str], settings: tuple) -> list[dict]:
    """Have the files labelled; those that could not be, with their errors.

    Args:
        settings: of `Labeller`.
    """
    ray.init(ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": {"TQDM_DISABLE": "1"}})
    gpus, cpus = ray.cluster_resources().get("GPU", 0), ray.cluster_resources().get("CPU", 0)
    most = max(1, min(len(names), int(gpus or cpus)))
    work = ray.data.from_items([{"file": name} for name in names], override_num_blocks=len(names)).map_batches(
        Labeller,
        fn_constructor_args=settings,
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=1),
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
    )
    return [row for row in work.iter_rows() if row["error"]]


class Labeller:
    """An actor: the run, loaded once, and one file after the other."""

    def __init__(
        self,
        run_dir: str,
        source: str,
        target: str,
        options: tuple,
        columns: dict[str, str] | None,
        base: str | None = None,
        long: Long = "cut",
    ):
        self.run_dir, self.source, self.target = Path(run_dir), source, target
        self.options, self.columns = options, columns
        with redirect_stdout(sys.stderr):
            self.classifier = Classifier.from_pretrained(self.run_dir, base=base, long=long)

    def __call__(self, batch: dict) -> dict:
        [name] = batch["file"]
        try:
            self.label(name)
        except Exception as error:  # of one file, out of memory too: the others are labelled all the same
            return {"file": [name], "error": [f"{type(error).__name__}: {error}"]}
        return {"file": [name], "error": [""]}

    def label(self, name: str) -> None:
        (here, folder), (there, out) = location(self.source), location(self.target)
        local = LocalFileSystem()
        with tempfile.TemporaryDirectory() as scratch:
            taken, made = Path(folder, name), Path(out, name)
            if not isinstance(here, LocalFileSystem):
                taken = Path(scratch, "in", name)
                taken.parent.mkdir()
                copy_files(f"{folder}/{name}", str(taken), here, local)
            if not isinstance(there, LocalFileSystem):  # a bucket, where a file is whole or not there
                made = Path(scratch, "out", name)
            # else done, by an actor that died afterwards
            if not made.exists() or _interrupted(self.target, name):
                self._label(taken, made)
            if not isinstance(there, LocalFileSystem):
                copy_files(str(made), f"{out}/{name}", local, there)

    def _label(self, source: Path, target: Path) -> None:
        label_file(self.classifier, self.run_dir, source, target, *self.options, columns=self.columns)


def location(folder: str) -> tuple[FileSystem, str]:
    """File system and path of a folder: a path, or a URI."""
    if "://" not in folder:
        return LocalFileSystem(), str(Path(folder).resolve())
    try:
        return FileSystem.from_uri(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: {error}; give a path, or a URI such as s3://bucket/folder") from error


def parquet_files(folder: str, missing_ok: bool = False) -> list[str]:
    """Names of the .parquet files in a folder, not below it, without the hidden ones."""
    files, path = location(folder)
    try:
        found = files.get_file_info(FileSelector(path, allow_not_found=missing_ok))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error}); check the name and the access to it") from error
    hidden = (".", "_")
    return sorted(
        info.base_name
        for info in found
        if info.type is FileType.File and info.extension.lower() == "parquet" and not info.base_name.startswith(hidden)
    )


def _interrupted(target: str, name: str) -> bool:
    """Whether labelling the file was killed while it cleaned up."""
    files, path = location(target)
    return files.get_file_info(f"{path}/{name}.parts/manifest.json").type is FileType.File


@contextmanager
def _alone(target: str) -> Iterator[None]:
    """Holds the output folder, where it is a path; a bucket knows no locks.

    Raises:
        UserError: another command holds it, or it cannot be written.
    """
    if not isinstance(location(target)[0], LocalFileSystem):
        yield
        return
    folder = Path(location(target)[1])
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{target}: another command is labelling into it; wait for that one") from error
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error}); name another folder") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_run(target: str, run: list, begun: bool) -> None:
    """Refuse a folder whose files another run labelled; else write down which run labels it.

    Args:
        begun: whether it holds files already.
    """
    files, path = location(target)
    content, place = json.dumps(run).encode(), f"{path}/{RUN}"
    try:
        files.create_dir(path)
        if not begun:
            _check_ours(target, files, place)
            with files.open_output_stream(place) as stream:
                stream.write(content)
        with files.open_input_stream(place) as stream:
            same = stream.read() == content
    except OSError as error:
        raise UserError(f"{target}: {place} cannot be written and read ({error}); name another folder") from error
    if not same:
        raise UserError(f"{target}: was begun with another run or other options; name another folder")


def _check_ours(target: str, files: FileSystem, place: str) -> None:
    if files.get_file_info(place).type is FileType.NotFound:
        return
    with files.open_input_stream(place) as stream:
        if stream.read(1) not in (b"", b"["):  # empty: killed as it was written
            raise UserError(f"{target}: its {RUN} is not of `fintune predict`; move it away, or name another folder")


def count(source: str, target: str, names: list[str], prefix: str = "") -> tuple[int, int]:
    """(labelled, rejected) rows, counted in the files.

    Args:
        prefix: of the added columns' names.

    Raises:
        UserError: a file has more or fewer rows than its input, or was not labelled.
    """
    (here, folder), (there, out) = location(source), location(target)
    labelled = rejected = 0
    for name in names:
        rows_in = pq.read_metadata(f"{folder}/{name}", filesystem=here).num_rows
        try:
            reasons = pq.read_table(f"{out}/{name}", columns=[prefix + "rejected"], filesystem=there)[0]
        except (pa.ArrowException, OSError, IndexError) as error:
            raise UserError(
                f"{target}/{name}: is no file that was labelled ({error}); remove it and label it again"
            ) from error
        if rows_in != len(reasons):
            raise UserError(
                f"{target}/{name}: {len(reasons)} rows of {rows_in} in {source}; the input was changed "
                "since: remove the file and label it again"
            )
        labelled, rejected = labelled + reasons.null_count, rejected + len(reasons) - reasons.null_count
    return labelled, rejected
