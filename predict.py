"""Label headlines with a trained run: a file of any length, lines as they come, or a folder on a cluster.

    python predict.py runs/sentiment/tiny news.csv --text-column title -o labelled.csv
    tail -f wire.txt | python predict.py runs/sentiment/tiny - > labelled.jsonl
    python predict.py runs/sentiment/tiny s3://bucket/news --engine ray -o s3://bucket/labelled

CSV, JSONL (both gzip'd too) and Parquet; with Ray the Parquet files of a folder. Killed, the same command goes on.
Exit code 3: done, some rows rejected.
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from fintune.calibration import check_threshold, threshold_for
from fintune.inference import Classifier
from fintune.labeling import identity, label_file, label_stream

from fintune import runs
from fintune.errors import UserError, run


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a run of train_sft.py or train_cls.py")
    parser.add_argument(
        "input", help=".csv, .csv.gz, .jsonl, .jsonl.gz, .parquet, - for lines of standard input, or a folder for Ray"
    )
    parser.add_argument("-o", "--output", help="a file of the input's format, or a folder for Ray; not with -")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="ray: RAY_ADDRESS, else this machine"
    )
    parser.add_argument("--text-column", default="text", help="column that is labelled (default: text)")
    parser.add_argument("--prefix", default="", help="put in front of the names of the added columns")
    least = parser.add_mutually_exclusive_group()
    least.add_argument("--abstain-below", type=float, default=0.0, help="confidence below which a row is abstained")
    least.add_argument("--target-accuracy", type=float, help="abstain so that validation rows reached this share")
    parser.add_argument("--spreadsheet-safe", action="store_true", help="CSV: put ' before what would be a formula")
    args = parser.parse_args(argv)
    if (args.input == "-") == (args.output is not None):
        raise UserError("a file needs -o OUTPUT; lines of standard input (-) are answered on standard output, without")
    result = runs.read_result(args.run_dir)
    runs.check_weights(args.run_dir)
    calibration, threshold = runs.calibration_of(result), check_threshold(args.abstain_below)
    if args.target_accuracy is not None:
        threshold = threshold_for(calibration, args.target_accuracy)
        print(f"abstains below a confidence of {threshold:.4f}", file=sys.stderr)

    if args.engine == "ray":
        from fintune.fleet import label_folder  # pip install 'fintune[ray]'

        if args.input == "-" or args.spreadsheet_safe:
            raise UserError("--engine ray labels a folder of Parquet files, without --spreadsheet-safe")
        run_id = identity(args.run_dir, result["data"]["labels"], calibration)
        options = args.text_column, threshold, args.prefix
        labelled, rejected = label_folder(args.run_dir, run_id, args.input, args.output, *options)
        print(f"{labelled + rejected:,} rows: {labelled:,} labelled, {rejected:,} rejected", file=sys.stderr)
        return 3 if rejected else 0

    with redirect_stdout(sys.stderr):  # standard output is for answers
        classifier = Classifier.from_pretrained(args.run_dir)
    if args.input == "-":
        labelled, rejected = label_stream(classifier, threshold, args.prefix)
    else:
        files = Path(args.input), Path(args.output)
        options = args.text_column, threshold, args.prefix, args.spreadsheet_safe
        labelled, rejected = label_file(classifier, args.run_dir, *files, *options)
    where = f", see {args.output}.rejected.jsonl" if rejected and args.output else ""
    print(
        f"{labelled + rejected:,} rows: {labelled:,} labelled, {rejected:,} rejected{where}; {classifier.cut_texts:,} "
        f"texts cut to {classifier.max_length} tokens",
        file=sys.stderr,
    )
    return 3 if rejected else 0


if __name__ == "__main__":
    run(main)
