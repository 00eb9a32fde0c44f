"""What `fintune predict` does: everything that can be wrong is found before a model is loaded."""

import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

from fintune.data.inputs import named_columns
from fintune.deploy.classifier import Classifier, Long
from fintune.deploy.label_file import label_file, open_table, run_fingerprint
from fintune.deploy.stream import label_stream
from fintune.errors import UserError
from fintune.results.verify import caveat, read_result, stage_names


def predict(
    run_dir: Path,
    source: str,
    output: str | None,
    text_column: str,
    prefix: str,
    abstain_below: float,
    target_accuracy: float | None,
    spreadsheet_safe: bool,
    engine: str,
    delimiter: str | None = None,
    encoding: str | None = None,
    columns: Iterable[str] = (),
    base: Path | None = None,
    long: Long = "cut",
) -> int:
    """Label a file, standard input (`source` is -) or, with the engine `ray`, a folder; for the rest see the command.

    Args:
        columns: `ticker=Symbol` for a column of the run that the input calls otherwise.
        base: see `Classifier.from_pretrained`.
        long: how a text of over `max_length` tokens is read; see `Classifier.from_pretrained`.

    Returns:
        The exit code: 3 where rows were rejected, else 0.

    Raises:
        UserError: the run, the input, the output or the options cannot be used.
        Stopped: SIGTERM or SIGINT came.
    """
    streaming = source == "-"
    if streaming and getattr(sys.stdout, "name", "") == os.devnull:  # see `fintune.errors.run`
        raise UserError("standard output is closed, and the answers go there; redirect it, as in > labelled.jsonl")
    if streaming == (output is not None):
        raise UserError("a file needs -o OUTPUT; with -, answers go to standard output and -o is not allowed")
    if engine == "ray" and (streaming or spreadsheet_safe or delimiter or encoding):
        raise UserError("--engine ray labels a folder of Parquet files, without options for text files")
    if streaming and delimiter:
        raise UserError("--delimiter: lines of standard input are texts, not cells; leave it out")
    if streaming and spreadsheet_safe:
        raise UserError("--spreadsheet-safe: answers on standard output are JSON, not CSV; leave it out")
    result = read_result(run_dir)
    names, calibration = result["data"]["labels"], result["calibration"]
    columns = find_columns(result["data"].get("columns", []), named_columns(columns))
    goes_on = " since it went on" if output and Path(f"{output}.parts").exists() else ""
    if engine == "local" and not streaming:
        if Path(source).is_dir():
            raise UserError(f"{source}: is a folder; --engine ray labels the .parquet files in it, or name one file")
        files, options = (Path(source), Path(output)), (prefix, spreadsheet_safe, delimiter, encoding, columns)
        table = open_table(*files, text_column, names, *options, bool(stage_names(result)))
        if table.about:
            print(f"{source}: {table.about}", file=sys.stderr)
    threshold = find_threshold(calibration, abstain_below, target_accuracy)

    if engine == "ray":
        from fintune.deploy.fleet import label_folder  # pip install 'fintune[ray]'

        if said := caveat(result):  # the actors' own standard error is not shown
            print(f"{run_dir}: {said}", file=sys.stderr)
        run = run_fingerprint(run_dir, names, calibration)
        options = text_column, threshold, prefix, columns, base, long
        labelled, rejected = label_folder(run_dir, run, source, output, *options)
        print(f"{labelled + rejected:,} rows: {labelled:,} labelled, {rejected:,} rejected", file=sys.stderr)
        return 3 if rejected else 0

    with redirect_stdout(sys.stderr):  # standard output is for answers
        classifier = Classifier.from_pretrained(run_dir, base=base, long=long)
    if streaming:
        labelled, rejected = label_stream(classifier, threshold, prefix, text_column, columns, encoding)
    else:
        labelled, rejected = label_file(classifier, run_dir, *files, text_column, threshold, *options)
    where = f" (see the column {prefix}rejected)" if rejected else ""
    if output and Path(f"{output}.rejected.jsonl").exists():
        where = f" (see the column {prefix}rejected, and {output}.rejected.jsonl for lines that are no rows)"
    cut = f"; {classifier.truncated_texts:,} texts truncated to {classifier.max_length} tokens{goes_on}"
    said = f"{labelled + rejected:,} rows: {labelled:,} labelled, {rejected:,} rejected{where}"
    print(said + cut * (classifier.max_length is not None), file=sys.stderr)
    return 3 if rejected else 0


def find_columns(columns: list[str], renamed: dict[str, str]) -> dict[str, str]:
    """Column of a run -> column of the input, the same but for the renamed ones.

    Raises:
        UserError: another column is renamed than the run has.
    """
    if foreign := [name for name in renamed if name not in columns]:
        has = f"reads {', '.join(columns)}" if columns else "reads the text alone"
        raise UserError(f"--column {foreign[0]}={renamed[foreign[0]]}: the run has no such column, it {has}")
    return {name: renamed.get(name, name) for name in columns}


def find_threshold(calibration: dict, abstain_below: float, target_accuracy: float | None) -> float:
    """The confidence below which a run abstains; where it does, standard error says what that promises.

    Raises:
        UserError: both are given, or the accuracy is beyond what the run reached on its validation rows.
    """
    from fintune.scoring.calibration import check_threshold, threshold_for, threshold_line  # loads scikit-learn

    if abstain_below and target_accuracy is not None:
        raise UserError("--abstain-below and --target-accuracy: give one of them")
    given = target_accuracy is None
    threshold = check_threshold(abstain_below) if given else threshold_for(calibration, target_accuracy)
    if threshold or not given:
        print(threshold_line(calibration, threshold), file=sys.stderr)
    return threshold
