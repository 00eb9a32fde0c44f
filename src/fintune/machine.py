"""What this machine can train: `python -m fintune.machine auto` prints the recipe files and flags of `MODEL=auto`."""

import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

from fintune.errors import UserError

# torch, transformers and huggingface_hub take seconds to import: only the functions that need them do

GIB = 2**30
RUNS_AT_ONCE = "FINTUNE_RUNS_AT_ONCE"  # set for processes that share this machine with others of the same suite

FLOAT32_RECIPES = ("smollm2-135m",)  # stated in float32 for any processor; see `autocast_flags`

# (free GPU memory in GiB, recipe, flags, what it is): the first that fits is taken
GPU_TIERS = [
    (40, "qwen3-8b", "", "bf16"),
    (20, "qwen3-8b", "--gradient_checkpointing true", "bf16 with gradient checkpointing"),
    (12, "qwen3-8b-qlora", "", "4-bit"),
    (6, "qwen3-0.6b", "", "bf16"),
]


def console():
    """rich's console, at most 100 columns wide, so that a table can be read in a window and pasted."""
    from rich.console import Console

    found = Console()
    found.width = min(found.width, 100) if found.is_terminal else 100
    return found


def free_gpu_gib() -> float:
    """Free memory of the first CUDA device in GiB; 0 without one."""
    import torch

    return torch.cuda.mem_get_info()[0] / GIB if torch.cuda.is_available() else 0.0


def choose_model(free_gib: float) -> tuple[str, str, str]:
    """(recipe name, extra flags, reason) for a machine with that much free GPU memory."""
    for needed, name, flags, how in GPU_TIERS:
        if free_gib >= needed:
            return name, flags, f"{name} in {how}: {free_gib:.0f} GiB of GPU memory free, it wants {needed}"
    found = f"{free_gib:.1f} GiB of GPU memory free" if free_gib else "no CUDA device here"
    return "tiny", "", f"tiny: {found}, and {GPU_TIERS[-1][1]} wants {GPU_TIERS[-1][0]} GiB"


def autocast_flags(recipe: str) -> list[str]:
    """Flags that train a float32 recipe under bf16 autocast, where this machine has arithmetic for it: 2 to 4 times
    as fast there, and slower than float32 elsewhere.

    Args:
        recipe: its name; `tiny` is too small to gain.
    """
    import torch

    if recipe not in FLOAT32_RECIPES:
        return []
    if torch.cuda.is_available():
        return ["--bf16", "true"]
    return ["--bf16", "true", "--use_cpu", "true"] if {"avx512_bf16", "amx_bf16"} & _processor_flags() else []


def _processor_flags() -> set[str]:
    """What Linux says that the processor can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def smollm2_minutes() -> dict[str, float]:
    """About how long configs/smollm2-135m.yaml trains on this machine's cores, by task, from a product of its size.

    4 FLOP a token for each of the layers' 106 million weights: forward, and the gradient of what enters them. The
    products take half of the time (benchmarks/cpu.py). Tokens are those of the three epochs, the instruction shared.
    """
    import torch

    hidden, weight = torch.randn(2048, 576), torch.randn(576, 1536)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        hidden @ weight
        seconds.append(time.perf_counter() - started)
    flops = 2 * 2048 * 576 * 1536 / statistics.median(seconds)
    tokens = {"sentiment": 0.49e6, "topic": 2.6e6}
    return {task: 4 * 106e6 * count / (flops / 2) / 60 for task, count in tokens.items()}


def typed(program: str) -> str:
    """A program of this environment (`fintune`, `python`) as it must be typed here."""
    path = Path(sys.executable).with_name(program)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else program


def linear_command(task: str) -> str:
    """The command that trains TF-IDF on a task of data/."""
    return f"{typed('python')} train_linear.py data/{task}.yaml configs/baselines/tfidf.yaml"


def check_fits(model: str, min_gpu_gib: float, use_cpu: bool) -> None:
    """Refuse a model before anything of it is downloaded.

    Raises:
        UserError: less GPU memory is free than the recipe's `min_gpu_gib`, and the CPU was not asked for.
    """
    free = free_gpu_gib()
    if free < min_gpu_gib and not use_cpu:
        raise UserError(
            f"{model} needs {min_gpu_gib:g} GiB of free GPU memory, this machine has {free:.1f}; take a smaller model "
            "(MODEL=auto picks one), or force the CPU with --use_cpu true --bf16 false, which takes long"
        )


def check_one_gpu(n_gpu: int) -> None:
    """Refuse to spread one process over several GPUs, as transformers would: its batch grows, or TRL raises.

    Raises:
        UserError: more than one GPU is visible to this process.
    """
    if n_gpu > 1:
        raise UserError(
            f"{n_gpu} GPUs are visible to one process; take one with CUDA_VISIBLE_DEVICES=0, or all with accelerate "
            "launch --config_file configs/accelerate/ddp.yaml"
        )


def check_disk(folder: Path, trained_parameters: int, save_total_limit: int | None) -> None:
    """Refuse a run whose checkpoints would not fit on the disk of `folder`.

    A checkpoint holds 12 bytes a trained parameter (float32 and two Adam moments); one more than the limit exists
    while a new one is written, and one more is for the result.

    Raises:
        UserError: less is free.
    """
    needed_gib = 12 * trained_parameters * ((save_total_limit or 10) + 2) / GIB
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free < needed_gib:
        raise UserError(
            f"{folder}: {free:.2f} GiB of disk free, the run needs {needed_gib:.2f}; free some, or set output_dir"
        )


def reachable(url: str, seconds: float = 2.0) -> bool:
    """Whether a URL's host answers on its port: asked before a client that would retry for half a minute."""
    parsed = urlparse(url)
    try:
        port = parsed.port or (80 if parsed.scheme == "http" else 443)
        socket.create_connection((parsed.hostname, port), timeout=seconds).close()
        return True
    except OSError:
        return False


@cache
def hub_reachable() -> bool:
    """Whether the Hugging Face Hub (`HF_ENDPOINT`) may be asked: not in offline mode, and it answers."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    proxied = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")  # only the proxy need answer then
    return not HF_HUB_OFFLINE and bool(proxied or reachable(ENDPOINT))


def attention() -> str:
    """FlashAttention 2 where the package and a CUDA device are there, else PyTorch's own SDPA."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def peak_memory_gib() -> dict[str, float]:
    """Peak of this process so far: resident memory, and GPU memory where there is one."""
    import torch

    peak = {"ram": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # kilobytes on Linux
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / GIB
    return peak


def description() -> dict:
    """Where a number was measured: processor, GPU, versions, git commit."""
    import torch

    packages = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "evaluate",
        "scikit-learn",
        "skops",
        "bitsandbytes",
        "flash-attn",
        "fintune",
    )
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "runs_at_once": int(os.environ.get(RUNS_AT_ONCE, 1)),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """Of the checkout that this file belongs to; an installed wheel has none, whatever repository it lies in."""
    if not Path(__file__).parents[2].joinpath(".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return (
            subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
        )
    except OSError:  # no git here: a result without its commit is better than none
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(wanted: str = "auto") -> None:
    """Print the recipe file and flags of `MODEL=`."""
    name, flags, reason = choose_model(free_gpu_gib()) if wanted == "auto" else (wanted, "", "")
    if reason:
        print(f"MODEL=auto chose {reason}", file=sys.stderr)
    if reason and name == "tiny":
        cost = " and ".join(f"{minutes:.0f} min ({task})" for task, minutes in smollm2_minutes().items())
        print(
            f"tiny only shows that everything runs; MODEL=smollm2-135m labels well, and trains here in about {cost}",
            file=sys.stderr,
        )
    print(" ".join([f"configs/{name}.yaml", *flags.split(), *autocast_flags(name)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
