"""Baichuan2-7B read into the Llama architecture: its released code is not run, and fails on transformers 5 anyway.

After baichuan-inc/Baichuan2-7B-Base, modeling_baichuan.py and tokenization_baichuan.py. The 7B model is Llama with two
differences: one matrix W_pack holds query, key and value, and the head (NormHead) scales each of its rows to length 1.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from fintune.errors import UserError
from fintune.files import modes_of_umask

CACHE = Path(HF_HOME) / "fintune"  # 15 GB for Baichuan2-7B, beside the Hub's own cache
FILES = ["config.json", "tokenizer.model", "*.safetensors"]  # what is fetched: neither code nor pickles
SHARD = 2**30  # bytes of a written file, and with one tensor about what is held in memory
SAFETENSORS = "--model_revision refs/pr/6"  # of Baichuan2-7B-Base, by the Hub's conversion bot
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # SentencePiece's kinds of pieces (sentencepiece_model.proto)

# keys of config.json that mean the same in LlamaConfig
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAME = (*SIZES, "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def as_llama(base: str, revision: str | None) -> tuple[str, str | None]:
    """The folder of a Baichuan2-7B as Llama, written at the first call, and its revision; other models as they came.

    Args:
        base: a name on the Hub or a local folder.

    Raises:
        UserError: another Baichuan than 2-7B, or one without safetensors.
        OSError: what transformers raises for a model that is missing or gated.
    """
    stated = _config(base, revision)
    if stated.get("model_type") != "baichuan":
        return base, revision
    config = llama_config(stated, base)
    source = Path(base)
    if not source.is_dir():
        source = Path(snapshot_download(base, revision=revision, allow_patterns=FILES))
    if not list(source.glob("*.safetensors")):
        raise UserError(
            f"{base}: revision {revision} holds no safetensors, and pickled weights are never read; take one that "
            f"does (for Baichuan2-7B-Base {SAFETENSORS})"
        )
    files = sorted(path for pattern in FILES for path in source.glob(pattern))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((str(source.resolve()), stats)).encode()).hexdigest()[:16]
    target = CACHE / f"{Path(base).name}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # one process of a launch writes, the others wait
        if not target.is_dir():
            print(f"baichuan: {base} is written as Llama, once, to {target}")
            convert(source, target, config)
    return str(target), None


def convert(source: Path, target: Path, config: LlamaConfig) -> None:
    """Write a folder with Baichuan2-7B's tensors and vocabulary as a Llama that `from_pretrained` reads, whole or not.

    Raises:
        UserError: a tensor is missing or has another shape than `config` says, or the vocabulary is of another kind.
    """
    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in LlamaForCausalLM(config).state_dict().items()}
    tokenizer = fast_tokenizer(source / "tokenizer.model")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    found, tensors = {}, {}

    def flush() -> None:
        name = f"model-{len(set(found.values())) + 1:05}.safetensors"
        save_file(tensors, part / name, metadata={"format": "pt"})
        found.update(dict.fromkeys(tensors, name))
        tensors.clear()

    for key, tensor in _llama_tensors(sorted(source.glob("*.safetensors"))):
        if expected.get(key) != tensor.shape:
            raise UserError(
                f"{source}: its tensor {key} {tuple(tensor.shape)} does not belong to Baichuan2-7B; fetch it again"
            )
        tensors[key] = tensor
        if sum(tensor.nbytes for tensor in tensors.values()) >= SHARD:
            flush()
    if tensors:
        flush()
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{source}: {len(missing)} tensors are missing, such as {missing[0]}; fetch it again")
    (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": found}))
    config.save_pretrained(part)
    tokenizer.save_pretrained(part)
    modes_of_umask(part)
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    part.replace(target)


def llama_config(stated: dict, base: str) -> LlamaConfig:
    """What Baichuan2-7B's config.json states, as LlamaConfig; positions are rotary in both, with base 10,000.

    Raises:
        UserError: it is the first generation, whose head is not normalised, or a 13B, which counts positions by ALiBi.
    """
    if stated.get("architectures") != ["BaichuanForCausalLM"]:
        raise UserError(f"{base}: architecture {stated.get('architectures')}; of Baichuan only Baichuan2-7B is read")
    if "max_position_embeddings" not in stated:  # 13B states model_max_length alone
        raise UserError(
            f"{base}: hidden size {stated.get('hidden_size')} and no max_position_embeddings, so this is a 13B model, "
            "whose ALiBi positions Llama does not have; of Baichuan only Baichuan2-7B is read"
        )
    return LlamaConfig(
        **{key: stated[key] for key in (*SAME, *IDS) if key in stated},
        num_key_value_heads=stated["num_attention_heads"],
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        dtype=stated.get("torch_dtype") or stated.get("dtype"),
        architectures=["LlamaForCausalLM"],
    )


def fast_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The SentencePiece vocabulary `tokenizer.model` as a fast tokenizer with the same ids.

    Its user-defined pieces of several characters (runs of spaces, `<reserved_106>`, ...) are found before anything is
    merged, as in SentencePiece; inside a headline the visible ones stay plain characters (model/prompt.py). It has no
    bos_token: Baichuan2 was trained without (`add_bos_token: false`).

    Raises:
        UserError: there is no such file, or it is not a byte-fallback BPE without normalisation, as Baichuan2's is.
    """
    from sentencepiece import sentencepiece_model_pb2  # of the extra `baichuan`

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; fetch the model again") from error
    spec, trained = proto.normalizer_spec, proto.trainer_spec
    normalises = spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces
    if trained.model_type != trained.BPE or not trained.byte_fallback or normalises:
        raise UserError(f"{path}: its SentencePiece model is of another kind than Baichuan2's; fetch the model again")
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(
        models.BPE(pieces, _merges(proto), unk_token=trained.unk_piece, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    defined = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED and len(piece.piece) > 1]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in defined])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=trained.unk_piece,
        eos_token=trained.eos_piece,
        pad_token=trained.unk_piece,  # as Baichuan2's own
        clean_up_tokenization_spaces=False,
    )


def _merges(proto) -> list[tuple[str, str]]:
    """Pairs of pieces in the order of merging: SentencePiece joins the neighbours whose joint piece scores highest."""
    normal = {piece.piece for piece in proto.pieces if piece.type == NORMAL}
    order = sorted((piece for piece in proto.pieces if piece.type == NORMAL), key=lambda piece: -piece.score)
    halves = ((piece.piece[:cut], piece.piece[cut:]) for piece in order for cut in range(1, len(piece.piece)))
    return [pair for pair in halves if normal.issuperset(pair)]


def _llama_tensors(shards: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Llama's names and tensors, one tensor in memory at a time."""
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, safe_open has no iterator
                tensor = file.get_tensor(key)
                if key.endswith(".self_attn.W_pack.weight"):
                    for name, third in zip("qkv", tensor.chunk(3), strict=True):  # (3 hidden, hidden), rows in thirds
                        yield key.replace("W_pack", f"{name}_proj"), third.clone()
                elif key == "lm_head.weight":
                    yield key, _unit_rows(tensor)
                else:
                    yield key, tensor


def _unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """(vocabulary, hidden) rows of length 1, computed in float32, 8,192 rows at a time."""
    return torch.cat([F.normalize(rows.float()).to(weight.dtype) for rows in weight.split(8192)])


def _config(base: str, revision: str | None) -> dict:
    """config.json; {} for a local folder without one, such as an adapter's."""
    if Path(base).is_dir():
        path = Path(base) / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return PreTrainedConfig.get_config_dict(base, revision=revision)[0]
