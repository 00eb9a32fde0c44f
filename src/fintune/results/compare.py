"""Finished runs side by side: tables, paired tests, and one page; what `fintune compare` does."""

from pathlib import Path

from fintune.errors import UserError
from fintune.files import check_block, check_replaceable, write_text
from fintune.results import tables
from fintune.results.cells import compare_runs
from fintune.results.page import html_page
from fintune.results.publish import publish


def compare(folder: Path, readme: Path | None = None, results: Path | None = None, wandb: bool = False) -> None:
    """Print the tables and write `folder`/report.md and report.html.

    Args:
        folder: searched for runs; those on the same rows share a table.
        readme: a file that gets a short table between its compare:begin and compare:end marks.
        results: a Markdown page that gets all tables of the models.
        wandb: also save a W&B report; needs the extra `report` and an account.

    Raises:
        UserError: no finished run is found, `readme` lacks its marks, `results` is no file, or W&B cannot be used.
    """
    if readme:
        check_block(readme, tables.MARK)
    if results:
        check_replaceable(results)
    groups, left_out = compare_runs(folder)
    if not groups:
        for left in left_out:
            print(left)
        raise UserError(f"{folder}: no finished run to compare; `make train-sentiment` makes one")
    tables.print_comparison(groups, left_out)

    write_text(folder / "report.md", tables.markdown(groups, left_out))
    page = html_page(groups, left_out)
    write_text(folder / "report.html", page)
    print(f"open {folder / 'report.html'} in a browser ({len(page.encode()) / 2**20:.1f} MiB)")
    if readme:
        tables.update_readme(readme, groups)
    if results:
        tables.write_results(results, groups)
    if wandb:
        publish(groups)
