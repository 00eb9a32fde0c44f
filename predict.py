"""Label headlines with a trained run: a file of any length, or lines as they come.

    python predict.py runs/sentiment/tiny news.csv --text-column title -o labelled.csv
    tail -f wire.txt | python predict.py runs/sentiment/tiny - > labelled.jsonl

CSV, JSONL (both gzip'd too) and Parquet. Killed, the same command goes on. Exit code 3: done, some rows rejected.
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from fintune.errors import UserError, run
from fintune.inference import Classifier
from fintune.labeling import label_file, label_stream


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a run of train_sft.py or train_cls.py")
    parser.add_argument("input", help=".csv, .csv.gz, .jsonl, .jsonl.gz, .parquet, or - for lines of standard input")
    parser.add_argument("-o", "--output", type=Path, help="a file of the input's format; not with -")
    parser.add_argument("--text-column", default="text", help="column that is labelled (default: text)")
    parser.add_argument("--prefix", default="", help="put in front of the names of the added columns")
    least = parser.add_mutually_exclusive_group()
    least.add_argument("--abstain-below", type=float, default=0.0, help="confidence below which a row is abstained")
    least.add_argument("--target-accuracy", type=float, help="abstain so that validation rows reached this share")
    parser.add_argument("--spreadsheet-safe", action="store_true", help="CSV: put ' before what would be a formula")
    args = parser.parse_args(argv)
    if (args.input == "-") == (args.output is not None):
        raise UserError("a file needs -o OUTPUT; lines of standard input (-) are answered on standard output, without")

    with redirect_stdout(sys.stderr):  # standard output is for answers
        classifier = Classifier.from_pretrained(args.run_dir)
    threshold = args.abstain_below
    if args.target_accuracy is not None:
        threshold = classifier.threshold(args.target_accuracy)
        print(f"abstains below a confidence of {threshold:.4f}", file=sys.stderr)

    if args.input == "-":
        labelled, rejected = label_stream(classifier, threshold, args.prefix)
    else:
        labelled, rejected = label_file(
            classifier,
            args.run_dir,
            Path(args.input),
            args.output,
            args.text_column,
            threshold,
            args.prefix,
            args.spreadsheet_safe,
        )
    where = f", see {args.output}.rejected.jsonl" if rejected and args.output else ""
    print(
        f"{labelled + rejected:,} rows: {labelled:,} labelled, {rejected:,} rejected{where}; {classifier.cut_texts:,} "
        f"texts cut to {classifier.max_length} tokens",
        file=sys.stderr,
    )
    return 3 if rejected else 0


if __name__ == "__main__":
    run(main)
