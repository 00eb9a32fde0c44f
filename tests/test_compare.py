"""The comparison of finished runs, on runs that the tests write: counts are chosen, so every figure is known."""

import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import BINARY, Chromium
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from fintune.errors import UserError
from fintune.recipe.identity import identity
from fintune.recipe.task import make_task
from fintune.results import page, publish, tables
from fintune.results.cells import compare_runs
from fintune.results.compare import compare
from fintune.results.statistics import Pair, compare_pairs, percentiles, resampled_accuracies
from fintune.results.verify import SCHEMA
from fintune.scoring.curves import coverage_risk, reliability
from fintune.training import tracking

LABELS = ["Up", "Flat | even", "Down"]
RECIPE = {"model_name_or_path": "tiny", "learning_rate": "3e-4", "seed": 42, "output_dir": "x"}


def write_run(
    folder: Path, wrong: set[int], n: int = 60, recipe: dict = RECIPE, texts=None, template="{{ text }} ?", **changes
) -> None:
    """A run that mislabels the rows in `wrong`; `changes` replace keys of its metrics.json."""
    folder.mkdir(parents=True)
    truth = [i % 3 for i in range(n)]
    answers = [(t + 1) % 3 if i in wrong else t for i, t in enumerate(truth)]
    rows = []
    for i, (label, answer) in enumerate(zip(truth, answers, strict=True)):
        probabilities = dict.fromkeys(LABELS, 0.1) | {LABELS[answer]: 0.8}
        text = texts[i] if texts else f"headline {i}"
        row = {"file": "toy.csv", "line": i + 2, "text": text, "label": LABELS[label], "prediction": LABELS[answer]}
        rows.append(json.dumps(row | {"clean": True, "probabilities": probabilities}, ensure_ascii=False))
    (folder / "predictions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    accuracy = 1 - len(wrong) / n
    test = {"rows": n, "accuracy": accuracy, "accuracy_interval": [max(0, accuracy - 0.1), min(1, accuracy + 0.1)]}
    (folder / "template.jinja").write_text(template)
    files = recipe.get("files", {"all": "toy.csv"})
    task = make_task({"task": "toy", "labels": LABELS, "files": files, "template": folder / "template.jinja"}, "toy")
    result = {
        "schema": SCHEMA,
        "task": "toy",
        "name": "tiny",
        "identity": identity(recipe, task, changes.get("data", {}).get("sha256", "ab" * 32)),
        "data": {"source": "mirror", "sha256": "ab" * 32, "labels": LABELS, "license": "MIT"},
        "split": "test",
        "test": test | {"macro_f1": accuracy, "accuracy_clean": accuracy, "rows_per_second": 10.0},
        "paper": None,
        "machine": {"processor": "Some CPU", "cores": 2, "gpu": None},
        "peak_memory_gib": {"ram": 1.5},
        "model": {"base": "tiny", "parameters": 2_500_000, "trained_parameters": 500_000},
        "training": {
            "train_runtime": 30.0,
            "epoch": 2.0,
            "log": [{"epoch": e, "loss": 1 / e, "step": e} for e in (1, 2)] + [{"epoch": 2, "eval_accuracy": 0.8}],
        },
    }
    (folder / "metrics.json").write_text(json.dumps(result | changes))


def write_data(source: str, sha256: str) -> dict:
    return {"data": {"source": source, "sha256": sha256, "labels": LABELS}}


# Statistics


def rows_of(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize("table", [(101, 33, 9, 40), (50, 0, 0, 3), (0, 5, 0, 0), (800, 61, 59, 80)])
def test_mcnemar_is_the_exact_binomial(table):
    a, b = rows_of(*table)
    [pair] = compare_pairs([a[None], b[None]], [a, b])
    _, only_first, only_second, _ = table
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert pair.p == pytest.approx(expected, abs=1e-12)
    assert pair.p == mcnemar([[table[0], only_first], [only_second, table[3]]], exact=True).pvalue
    assert (pair.only_first, pair.only_second, pair.rows) == (only_first, only_second, sum(table))
    assert pair.difference == pytest.approx((only_first - only_second) / sum(table))


def test_paired_interval_is_that_of_scipy():
    a, b = rows_of(301, 63, 29, 91)
    [pair] = compare_pairs([a[None], b[None]], [a, b])
    expected = stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert pair.interval == pytest.approx((expected.low, expected.high), abs=0.005)
    # pairing matters: rows drawn for each on its own would give an interval 1.4 times as wide here
    unpaired = np.hypot(a.std(), b.std()) / len(a) ** 0.5
    assert pair.interval[1] - pair.interval[0] < 0.8 * 2 * 1.96 * unpaired


def test_interval_over_seeds_is_wider_than_over_rows():
    rng = np.random.default_rng(3)
    hits = rng.random((4, 500)) < np.array([0.6, 0.7, 0.8, 0.9])[:, None]
    [draws] = resampled_accuracies(hits)
    between = hits.mean(axis=1).var() / 4  # variance of a mean of 4 seeds drawn with replacement
    within = hits.mean(axis=0).var() / 500
    assert draws.mean() == pytest.approx(hits.mean(), abs=0.002)
    assert draws.std() == pytest.approx((between + within) ** 0.5, rel=0.06)
    [one] = resampled_accuracies(hits[:1])
    assert percentiles(one) == pytest.approx(
        stats.norm.interval(0.95, hits[0].mean(), hits[0].std() / 500**0.5), abs=0.006
    )


def test_holm_over_all_pairs_of_a_group():
    rng = np.random.default_rng(0)
    cells = [rng.random(300) < accuracy for accuracy in (0.9, 0.84, 0.8, 0.78)]
    pairs = compare_pairs([cell[None] for cell in cells], cells)
    p = np.array([pair.p for pair in pairs])
    order = np.argsort(p)  # Holm 1979: the smallest times m, the next times m - 1, never falling, at most 1
    expected = np.empty(len(p))
    expected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    assert len(pairs) == 6
    assert [pair.p_holm for pair in pairs] == pytest.approx(expected.tolist())


def test_verdict_needs_both_tests():
    pair = Pair(0, 1, 0.03, (0.01, 0.05), 40, 10, 0.001, 0.01, rows=4117)
    assert pair.verdict == "real at n = 4,117"
    for weaker in ({"p_holm": 0.06}, {"interval": (-0.001, 0.05)}):
        assert Pair(**vars(pair) | weaker).verdict == "inside noise"


def test_curves_on_known_rows():
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, False, True, False])
    assert coverage_risk(confidence, correct) == [(0.25, 0.0), (0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
    assert coverage_risk(np.full(4, 0.7), correct) == [(1.0, 0.5)]  # a tie is answered as one, whatever its order
    assert reliability(confidence, correct, bins=2) == [(pytest.approx(0.65), 0.5, 2), (pytest.approx(0.85), 0.5, 2)]
    assert reliability(np.full(4, 0.7), correct) == [(pytest.approx(0.7), 0.5, 4)]


# Groups and seeds


def test_seeds_of_one_recipe_are_pooled(tmp_path):
    for seed, wrong in ((1, 6), (2, 12), (3, 9)):
        recipe = RECIPE | {"seed": seed, "output_dir": f"runs/{seed}", "files": {"all": f"/home/{seed}/toy.csv"}}
        write_run(tmp_path / f"tiny-seed{seed}", set(range(wrong)), recipe=recipe, name=f"tiny-seed{seed}")
    write_run(tmp_path / "lr", set(range(20)), recipe=RECIPE | {"learning_rate": 1e-3})
    write_run(tmp_path / "same-as-flag", {1}, recipe=RECIPE | {"seed": 9, "learning_rate": 0.0003})
    [group], left_out = compare_runs(tmp_path)
    assert left_out == []
    assert [(cell.label, len(cell.runs)) for cell in group.cells] == [
        ("tiny (learning_rate 0.0003)", 4),
        ("tiny (learning_rate 0.001)", 1),
    ]
    pooled, single = group.cells
    accuracies = [54 / 60, 48 / 60, 51 / 60, 59 / 60]
    assert pooled.metric("accuracy") == pytest.approx(np.mean(accuracies))
    assert pooled.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert pooled.run.seed == 3  # 51 / 60: of four the lower median
    low, high = pooled.interval
    assert low < np.mean(accuracies) < high
    assert single.deviation is None and single.interval == tuple(single.run.metrics["accuracy_interval"])


@pytest.mark.parametrize("change", [{"lora_r": 16}, {"learning_rate": 1e-3}, {"max_steps": 10}])
def test_another_recipe_is_another_cell(tmp_path, change):
    write_run(tmp_path / "a", {1}, recipe=RECIPE)
    write_run(tmp_path / "b", {2}, recipe=RECIPE | {"seed": 1} | change)
    [group], _ = compare_runs(tmp_path)
    assert len(group.cells) == 2


def test_another_template_or_name_is_another_cell(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        changes = {"c": {"name": "other"}, "b": {"template": "{{ text }}"}}.get(name, {})
        write_run(tmp_path / name, {1}, recipe=RECIPE | {"seed": seed}, **changes)
    [group], _ = compare_runs(tmp_path)
    assert sorted(cell.label for cell in group.cells) == ["other", "tiny (a)", "tiny (b)"]


def test_a_seed_that_comes_twice_is_no_second_seed(tmp_path):
    write_run(tmp_path / "a", {1}, recipe=RECIPE)
    write_run(tmp_path / "b", {1}, recipe=RECIPE | {"output_dir": "y"})
    [group], left_out = compare_runs(tmp_path)
    assert [run.path for run in group.runs] == ["a"]
    assert [left.path for left in left_out] == ["b"] and "seed 42 are those of a" in left_out[0].reason


def test_other_data_never_share_a_table(tmp_path):
    same, other = "ab" * 32, "cd" * 32
    data = {"mirror": same, "hub": same, "file": same, "sample": same}
    for source, sha256 in data.items():
        write_run(tmp_path / source, {1}, name=source, **write_data(source, sha256))
    write_run(tmp_path / "elsewhere", {1}, name="elsewhere", **write_data("mirror", other))
    write_run(tmp_path / "task", {1}, task="another")
    groups, left_out = compare_runs(tmp_path)
    assert left_out == []
    assert [(g.task, g.sources, g.first.result["data"]["sha256"][:2]) for g in groups] == [
        ("another", ["mirror"], "ab"),
        ("toy", ["file"], "ab"),
        ("toy", ["hub", "mirror"], "ab"),  # two ways to the same files
        ("toy", ["mirror"], "cd"),
        ("toy", ["sample"], "ab"),  # invented rows last
    ]
    assert "These rows are invented" in tables.markdown(groups, [])


def test_paper_is_set_beside_published_rows_alone(tmp_path):
    paper = {"paper": {"row": "bert", "accuracy": 0.85}}
    write_run(tmp_path / "real", {1}, **paper)
    write_run(tmp_path / "sample", {1}, **paper, **write_data("sample", "cd" * 32))
    real, sample = compare_runs(tmp_path)[0]
    assert real.cells[0].paper == 0.85 and sample.cells[0].paper is None
    assert tables.flat(tables.table(real)[1])[0][-1] == "+13.3 (outside our interval)"
    assert "paper" in tables.table(real)[0] and "paper" not in tables.table(sample)[0]  # no column of dashes


# Runs that cannot be compared


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


BROKEN = {
    "no metrics.json": lambda run: (run / "metrics.json").unlink(),
    "metrics.json is not valid JSON": lambda run: truncate(run / "metrics.json"),
    "metrics.json has schema 99": lambda run: edit(run / "metrics.json", f'"schema": {SCHEMA}', '"schema": 99'),
    "metrics.json has schema None": lambda run: (run / "metrics.json").write_text("[]"),
    "metrics.json is incomplete": lambda run: edit(run / "metrics.json", '"accuracy_interval"', '"gone"'),
    "incomplete (KeyError: 'identity')": lambda run: edit(run / "metrics.json", '"identity"', '"gone"'),
    "incomplete (KeyError: 'seed')": lambda run: edit(run / "metrics.json", '"seed"', '"gone"'),
    "a number that is not finite": lambda run: edit(run / "metrics.json", '"macro_f1": 0.95', '"macro_f1": NaN'),
    "no predictions.jsonl": lambda run: (run / "predictions.jsonl").unlink(),
    "predictions.jsonl:31 cannot be read": lambda run: truncate(run / "predictions.jsonl"),
    "predictions.jsonl has 59 rows, metrics.json says 60": lambda run: (run / "predictions.jsonl").write_text(
        (run / "predictions.jsonl").read_text().split("\n", 1)[1]
    ),
    "gives accuracy 0.9667": lambda run: edit(run / "predictions.jsonl", '"label": "Flat | even"', '"label": "Down"'),
    "cannot be read (KeyError": lambda run: edit(run / "predictions.jsonl", '"label": "Up"', '"label": "Sideways"'),
    "are not a distribution": lambda run: edit(run / "predictions.jsonl", "0.8", "0.4"),
    "other rows than good1, the first is row 1": lambda run: edit(run / "predictions.jsonl", "headline 0", "other"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_run_is_named_and_the_rest_is_compared(tmp_path, reason):
    write_run(tmp_path / "good1", {1, 2}, recipe=RECIPE, name="one")
    write_run(tmp_path / "good2", {3}, recipe=RECIPE, name="two")
    write_run(tmp_path / "bad", {1, 4, 5}, recipe=RECIPE, name="bad")
    BROKEN[reason](tmp_path / "bad")
    [group], [left] = compare_runs(tmp_path)
    assert left.path == "bad" and reason in left.reason and "\n" not in str(left)
    assert [cell.label for cell in group.cells] == ["two", "one"] and len(group.pairs) == 1


def test_predictions_of_another_length_than_the_siblings(tmp_path):
    for name, n in (("a", 60), ("b", 60), ("c", 57)):
        write_run(tmp_path / name, {1}, n=n, name=name)
    [group], [left] = compare_runs(tmp_path)
    assert len(group.runs) == 2 and str(left).startswith("left out: c: 57 rows, a has 60")


def test_results_that_are_not_whole_yet(tmp_path):
    write_run(tmp_path / "old", {1})
    write_run(tmp_path / "old/staging", {1, 2})  # killed before the second result, which is whole, was moved in
    write_run(tmp_path / "older", {1}, name="older")
    write_run(tmp_path / "older/staging", {1, 2}, name="older")
    (tmp_path / "older/staging/metrics.json").unlink()  # killed while it was written
    (tmp_path / "training/checkpoint-20").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "names/checkpoint-500", {1}, name="checkpoint-500")  # runs of models that are called so
    write_run(tmp_path / "names/base", {1}, name="base")
    (tmp_path / "loop").symlink_to(tmp_path)
    [group], left_out = compare_runs(tmp_path)
    wrong = {run.path: int((~run.correct).sum()) for run in group.runs}
    assert wrong == {"names/base": 1, "names/checkpoint-500": 1, "old": 2, "older": 1}
    assert [left.path for left in left_out] == ["older/staging", "training"]


def test_comparing_loads_no_model_library():
    code = "import sys, fintune.results.compare; print({'torch', 'transformers', 'trl', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# What is written


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed in (1, 2):
        write_run(folder / f"tiny-{seed}", set(range(9, 9 + 6 * seed)), recipe=RECIPE | {"seed": seed})
    write_run(
        folder / "better", {1}, recipe=RECIPE | {"lora_r": 16}, name="better", paper={"row": "x", "accuracy": 0.9}
    )
    write_run(folder / "sample", {1, 5}, name="tiny", **write_data("sample", "cd" * 32))
    return folder


def test_it_writes_page_and_markdown(runs, capsys):
    compare(runs)
    out = capsys.readouterr().out
    assert "better" in out and "2 seeds" in out and "real at n = 60" in out
    assert max(len(line) for line in out.splitlines() if line[0] in "┏┃┡│├└") <= 100
    text = (runs / "report.md").read_text()
    assert text.count("| run |") == 2 and "2.5 M" in text and "inside noise" in text
    page = (runs / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_machine_that_runs_shared_says_how_many(runs):
    edit(runs / "better/metrics.json", '"cores": 2', '"cores": 2, "runs_at_once": 8')
    machines = compare_runs(runs)[0][0].machines
    assert machines == ["Some CPU, 2 cores, no GPU, 8 runs at once", "Some CPU, 2 cores, no GPU"]


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match="no finished run to compare"):
        compare(tmp_path)


BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"


def test_readme_block(runs, tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# Über\r\n\nkept <!-- other -->\n", "\n\nkept too, no newline at the end"
    readme.write_bytes(f"{before}{BEGIN}\nold{END}{after}".encode())
    table = {"row": "x", "accuracy": 0.9, "table": {"qwen3-8b": 0.8415}}
    write_run(runs / "best", set(), recipe=RECIPE | {"lora_r": 4}, name="best", model={"base": "a/model"}, paper=table)
    edit(runs / "better/metrics.json", '"base": "tiny"', '"base": "some/model"')
    compare(runs, readme)
    once = readme.read_bytes()
    compare(runs, readme)
    assert readme.read_bytes() == once
    text = once.decode()
    assert text.startswith(before + BEGIN) and text.endswith(END + after) and "old" not in text
    for said in ("mirror data", "sha256 abababababab", "Some CPU, 2 cores, no GPU", "0.9833", "invented"):
        assert said in text, said
    assert "| best | 1.0000 (0.9000 to 1.0000) | +1.7, inside noise |" in text  # over `better`
    assert "| tiny |" not in text and "| qwen3-8b | not run | – |" in text and "| 0.8415 |" in text


def test_the_results_page_holds_every_pair_and_the_commit(runs, tmp_path):
    page = tmp_path / "docs/results.md"
    compare(runs, results=page)
    once = page.read_text()
    for said in ("# Results", "commit ", "McNemar p", "Holm p", "| tiny |", "inside noise"):
        assert said in once, said
    compare(runs, results=page)
    assert page.read_text() == once


@pytest.mark.parametrize("content", [None, "", BEGIN, END + BEGIN, BEGIN * 2 + END], ids=repr)
def test_readme_without_its_marks(runs, tmp_path, content):
    readme = tmp_path / "README.md"
    if content is not None:
        readme.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(readme))):
        compare(runs, readme)
    assert not (runs / "report.html").exists()  # said before anything is written
    assert content is None or readme.read_text() == content


HOSTILE = [
    "<script>document.title='run'</script>",
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "<!-- compare:end --> </title> {{ 7 * 7 }} \u2028 ${1} ` \\u003c",
    "\ud83d\ude80 🚀 ' \" & &lt; \x1b[31m \x00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


@pytest.fixture
def hostile_runs(tmp_path):
    folder, texts = tmp_path / "runs", HOSTILE + [f"headline {i}" for i in range(55)]
    for number, name in enumerate((HOSTILE[1], "a | b [bold] \x1b[31m\n# *c*", HOSTILE[3])):
        write_run(folder / str(number), set(range(5 + number)), texts=texts, name=name)
    write_run(folder / "<b>broken", {1})
    (folder / "<b>broken/metrics.json").write_text("<script>")
    return folder


def test_hostile_texts_stay_texts(hostile_runs, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(BEGIN + END)
    compare(hostile_runs, readme)
    assert "\x1b" not in capsys.readouterr().out
    page = (hostile_runs / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and page.count("</script") == 2  # the data and our own
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    [group] = json.loads(data)
    assert {row[0] for row in group["rows"]["rows"]} >= set(HOSTILE)
    assert "<img" not in page and "<b>" not in page and html.escape("<b>broken") in page
    text = readme.read_text()
    assert text.count(END) == 1 and "<script" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1  # no name opens a column
    compare(hostile_runs, readme)
    assert readme.read_text() == text


def test_page_stays_small_and_says_what_it_leaves_out(tmp_path):
    texts = [f"{i} " + "long text " * 500 for i in range(3000)]
    for name in ("a", "b"):
        write_run(tmp_path / name, set(range(0, 3000, 2 if name == "a" else 3)), n=3000, texts=texts, name=name)
    groups, _ = compare_runs(tmp_path)
    found = page.disagreements(groups[0], 300_000)
    assert found["differ"] + found["all_wrong"] + found["all_right"] == 3000
    assert found["left_out"] == found["differ"] + found["all_wrong"] - len(found["rows"]) > 0
    assert len(json.dumps(found["rows"])) <= 300_000
    assert len(page.html_page(groups, [])) < 2.5e6


def test_wandb_says_in_one_line_what_it_lacks(runs, monkeypatch):
    monkeypatch.setattr(publish.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb-workspaces is not installed; pip install 'fintune\[report\]'"):
        publish.publish(compare_runs(runs)[0])


def test_wandb_report_is_built_without_texts_of_rows(runs):
    pytest.importorskip("wandb_workspaces", reason="the extra [report] is not installed")
    groups, _ = compare_runs(runs)
    built = publish.wandb_report(groups, "fintune", "someone")
    blocks = repr(built.blocks)
    assert "0.9833" in blocks and "train/loss" in blocks and "headline" not in blocks
    assert "Tags" in blocks  # each logged run has its task among them


def test_the_dashboard_lists_runs_by_name_and_accuracy(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "has_key", lambda host: False)
    with pytest.raises(UserError, match="no local runs yet"):
        publish.dashboard()
    (tmp_path / "wandb").mkdir()
    (runs / "better/wandb.json").write_text('{"id": "abc123", "name": "toy-better-lora_r=16", "group": "x"}')
    publish.dashboard()
    lines = [line for line in capsys.readouterr().out.splitlines() if "0." in line]
    assert "toy-better-lora_r=16" in lines[0] and "0.9833" in lines[0] and "abc123" in lines[0]
    accuracies = [float(re.search(r"0\.\d{4}", line)[0]) for line in lines]
    assert len(lines) == 4 and accuracies == sorted(accuracies, reverse=True)


# The page in a browser


needs_chromium = pytest.mark.skipif(BINARY is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(runs, browser, width):
    write_run(runs / "last", set(range(40)), name="last")
    compare(runs)
    browser.errors.clear(), browser.requests.clear()
    browser.size(width, 800, dark=width < 500, mobile=width < 500)
    browser.open(runs / "report.html")
    shown = "document.querySelector('.group:not([hidden])')"
    assert browser.js(f"{shown}.querySelectorAll('.chart svg').length") == 6
    assert browser.js("document.documentElement.scrollWidth") <= width  # the page itself never scrolls sideways

    # Sorting: by accuracy up, then down; a column of text from A
    names = f"[...{shown}.querySelector('.figures tbody').rows].map((row) => row.cells[0].textContent)"
    head = f"{shown}.querySelectorAll('.figures thead button')"
    browser.js(f"{head}[5].click()")
    down = browser.js(names)
    browser.js(f"{head}[5].click()")
    assert down == ["better", "tiny", "last"] and browser.js(names) == down[::-1]
    assert browser.js(f"{head}[5].closest('th').getAttribute('aria-sort')") == "ascending"
    browser.js(f"{head}[0].click()")
    assert browser.js(names) == sorted(down)

    # Search and filters
    found = f"{shown}.querySelector('.found').textContent"

    def put(control: str, value: str) -> str:
        change = f"c.value = {json.dumps(value)}; c.dispatchEvent(new Event('input'))"
        browser.js(f"(() => {{ const c = {shown}.querySelector('{control}'); {change} }})()")
        return browser.js(found)

    assert browser.js(found).startswith("40 rows found, 20 shown")
    browser.js(f"{shown}.querySelector('.more').click()")
    assert browser.js(f"{shown}.querySelectorAll('.row').length") == 40
    assert put("[type=search]", "HEADLINE 11").startswith("1 row found")
    assert browser.js(f"{shown}.querySelector('mark').textContent") == "headline 11"
    assert put("[type=search]", "").startswith("40 rows")
    assert put(".miss", "0").startswith("1 row found")
    assert put(".kind", "wrong").startswith("0 rows found")

    # Legend, tabs, confusion
    browser.js(f"{shown}.querySelector('.chip').click()")
    assert browser.js(f"{shown}.querySelector('.chip').getAttribute('aria-pressed')") == "false"
    assert browser.js(f"{shown}.querySelector('.confusion tbody').rows[0].cells[1].textContent") == "20"
    browser.js("document.querySelectorAll('[role=tab]')[1].click()")
    assert "invented" in browser.js(f"{shown}.textContent")
    assert browser.errors == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}


@needs_chromium
def test_hostile_texts_do_not_run(hostile_runs, browser):
    compare(hostile_runs)
    browser.errors.clear()
    browser.open(hostile_runs / "report.html")
    time.sleep(0.3)  # an onerror would come after load
    assert browser.js("document.title") == "Comparison of runs"
    assert browser.js("document.querySelectorAll('img, b:not(.answers b)').length") == 0
    shown = browser.js("[...document.querySelectorAll('blockquote')].map((text) => text.textContent)")
    assert HOSTILE[1] in shown
    assert browser.errors == []


@needs_chromium
def test_a_script_that_got_into_the_page_would_be_refused(runs, browser):
    """The twin of the test before: its policy holds even where escaping fails, and the test sees what it would do."""
    compare(runs)
    page = (runs / "report.html").read_text(encoding="utf-8")
    leak = "<main><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    for name, broken in (("refused", page), ("runs", re.sub(r"<meta http-equiv[^>]*>", "", page))):
        (runs / f"{name}.html").write_text(broken.replace("<main>", leak), encoding="utf-8")
        browser.open(runs / f"{name}.html")
        assert (browser.js("document.title") == "run") == (name == "runs")
