"""Set finished runs side by side: tables, paired tests, and one page to look at.

    python compare.py [runs] [--readme README.md] [--wandb]

Writes runs/report.html and runs/report.md; only runs that were scored on the same rows share a table.
"""

import argparse
from pathlib import Path

from fintune.comparison import compare_runs

from fintune import report
from fintune.errors import UserError, run
from fintune.files import write_text


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="where runs are searched")
    parser.add_argument("--readme", type=Path, help="write the tables between this file's compare:begin and end marks")
    parser.add_argument(
        "--wandb", action="store_true", help="also save a W&B report; needs `.[report]` and an account"
    )
    args = parser.parse_args(argv)
    if args.readme:
        report.check_readme(args.readme)

    groups, left_out = compare_runs(args.folder)
    if not groups:
        for left in left_out:
            print(left)
        raise UserError(f"{args.folder}: no finished run to compare; `make train-sentiment` makes one")
    report.print_comparison(groups, left_out)

    write_text(args.folder / "report.md", report.markdown(groups, left_out))
    page = report.html_page(groups, left_out, Path(__file__).parent / "templates")
    write_text(args.folder / "report.html", page)
    print(f"open {args.folder / 'report.html'} in a browser ({len(page.encode()) / 2**20:.1f} MiB)")
    if args.readme:
        report.update_readme(args.readme, groups)
    if args.wandb:
        report.publish(groups)


if __name__ == "__main__":
    run(main)
