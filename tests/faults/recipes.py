"""Recipes of random YAML: code in them, values of every kind, bombs and cycles."""

import random
from pathlib import Path

import yaml
from conftest import ROOT
from trl import ModelConfig, SFTConfig

from faults.shared import Fault, refusal
from fintune.errors import UserError
from fintune.recipe.recipe import SftArguments, parse_recipe

MUTATED = Path("mutated.yaml")
CLASSES = SftArguments, SFTConfig, ModelConfig
VALUES = ["null", "[]", "{}", "yes", "2e-5", "1:2:3", "'x'", "-1", "1e999", ".nan", "[1, [2, [3]]]", "{a: {b: 1}}"]
VALUES += ["!!binary aGk=", "!!int x", "!!int ''", "!!timestamp x", "!!bool x", "2020-02-30", "0x_", "&a [*a]", "*b"]
VALUES += ["\x00", "\ud7ff", "[" * 3000, "{" * 500, '"' + "x" * 5000 + '"', "<<: {a: 1}", "? a", "2020-01-01"]
VALUES += ["|\n  x", "gone.json"]


def random_yaml(fault: Fault) -> None:
    """2,000 mutations of a sound recipe and 6 large or circular ones: each is a recipe, or refused in one line."""
    rng, sentinel = random.Random(0), Path("sentinel").resolve()
    sound = [line.split(" #")[0] for line in (ROOT / "configs/tiny.yaml").read_text().splitlines()]
    sound = [line for line in sound if line and not line.startswith("#")]
    code = f"!!python/object/apply:os.system ['touch {sentinel}']"
    yaml.load(f"a: {code}", Loader=yaml.UnsafeLoader)
    assert sentinel.exists(), "the code in the recipes would not run anywhere"
    sentinel.unlink()
    parsed = with_code = 0
    for number in range(2000):
        lines = _mutated(rng, sound, [*VALUES, code, code, code])
        MUTATED.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        with_code += any(code in line for line in lines)
        try:
            parse_recipe(["data/toy.yaml", str(MUTATED), "--use_cpu", "true", "--report_to", "none"], *CLASSES)
            parsed += 1
            held, what = True, ""
        except UserError as error:
            held, what = len(str(error)) < 2000, str(error)[:200]
        except Exception as error:
            held, what = False, f"{type(error).__name__}: {str(error)[:200]}: {lines}"
        fault.record(True, held and not sentinel.exists(), f"recipe {number}: {what}")
    _bombs_and_cycles(fault)
    fault.measured = f"{parsed:,} parsed, {fault.tried - parsed:,} refused, {with_code:,} with code in them"
    if with_code < 100:
        fault.lost.append(f"only {with_code} held code")


def _mutated(rng: random.Random, sound: list[str], values: list[str]) -> list[str]:
    """A recipe's lines with 1 to 4 of them changed: the value, the key, a line added, something in the middle."""
    lines = list(sound)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        kind, key = rng.random(), lines[at].split(":")[0]
        if kind < 0.5:
            lines[at] = f"{key}: {rng.choice(values)}"
        elif kind < 0.65:
            lines[at] = key[: rng.randint(0, len(key))] + rng.choice(["", "x", "-", "é"]) + ": 1"
        elif kind < 0.8:
            lines.insert(at, rng.choice(sound))
        else:
            middle = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:middle] + rng.choice(values)[:20] + lines[at][middle:]
    return lines


def _bombs_and_cycles(fault: Fault) -> None:
    large = "a: 1\n" * 2_000_000
    bomb = "a: &a [x]\n" + "".join(f"{c}: &{c} [*a, *a]\n" for c in "bcd")
    cycles = ["extends: mutated.yaml", "extends: other.yaml"]
    for content in (large, bomb, *cycles, 'extends: "\\0"', "extends: " + "x" * 5000):
        MUTATED.write_text(content)
        Path("other.yaml").write_text("extends: mutated.yaml")
        said = refusal(lambda: parse_recipe([str(MUTATED)], *CLASSES))
        fault.record(True, bool(said), f"accepted, or several lines: {content[:60]}")
