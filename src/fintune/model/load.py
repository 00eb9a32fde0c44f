"""A causal language model, its tokenizer and its adapter: where they come from, and what is refused."""

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DebertaV2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig, SFTConfig, get_quantization_config

from fintune import machine
from fintune.errors import UserError
from fintune.files import sha256
from fintune.model.baichuan import as_llama
from fintune.model.chat_date import freeze_date
from fintune.model.deberta import with_own_normalizer
from fintune.model.kv_heads import set_key_value_heads


def load_tokenizer(
    base: str,
    revision: str | None,
    chat_template_path: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
    begun: Path | None = None,
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the recipe's own chat template, end and padding token where it names them.

    A chat template that asks for the date is given today's for good: the run's own copy of it states that date.

    Args:
        begun: folder of a run that goes on, from whose checkpoints the date is taken.

    Raises:
        UserError: the model is missing or gated, the template cannot be read, or a token is not in the vocabulary.
    """
    with missing_model(base):
        folder, revision = as_llama(base, revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    if isinstance(tokenizer, DebertaV2Tokenizer) and str(getattr(tokenizer, "vocab_file", None)).endswith(".model"):
        tokenizer = with_own_normalizer(tokenizer)
    for key, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is not None:
            if token not in tokenizer.get_vocab():
                known = ", ".join(sorted(tokenizer.get_added_vocab())) or "none"
                raise UserError(f"{base}: `{key}` is {token!r}, no token of its vocabulary; control tokens: {known}")
            setattr(tokenizer, key, token)
    if pad_token is None and tokenizer.pad_token_id in (None, tokenizer.eos_token_id) and tokenizer.unk_token:
        # LLaMA has none, SmolLM2's is its end token; padding with the end token would mask the end
        tokenizer.pad_token = tokenizer.unk_token
    if chat_template_path:
        try:
            tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{chat_template_path}: no such chat template, or none in UTF-8 ({error}); fix `chat_template_path`"
            ) from error
    freeze_date(tokenizer, begun)
    return tokenizer


def tokenizer_keys(training_args: SFTConfig) -> dict[str, str | None]:
    """What a recipe says of the tokenizer, as `load_tokenizer` takes it."""
    return {key: getattr(training_args, key) for key in ("chat_template_path", "eos_token", "pad_token")}


def load_model(
    model_args: ModelConfig,
    base: str,
    device: torch.device,
    key_value_heads: int | None = None,
    adapter: Path | None = None,
) -> PreTrainedModel:
    """The base model in the recipe's dtype and quantization, with a run's adapter on it.

    On CUDA, norms, rotations and SwiGLU are liger-kernel's where it is installed.

    Args:
        key_value_heads: of the recipe; None leaves the base as it is.

    Raises:
        UserError: the model is missing, gated or not a causal language model in safetensors; the adapter does not fit.
    """
    with missing_model(base):
        folder, revision = as_llama(base, model_args.model_revision)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation or machine.attention(),
            quantization_config=get_quantization_config(model_args),
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,  # stated, because transformers would ask at a terminal
        )
    if key_value_heads is not None:
        set_key_value_heads(model, key_value_heads)
    fused = fuse_layers(model)
    print(
        f"model: {base} in {model.dtype}, {model.num_parameters():,} parameters, "
        f"attention {model.config._attn_implementation}{', liger layers' if fused else ''}"
    )
    return model if adapter is None else load_adapter(model, adapter, base)


def load_adapter(model: PreTrainedModel, adapter: Path, base: str) -> PeftModel:
    """A run's adapter on its base.

    Raises:
        UserError: it is pickled, lacks weights or does not fit.
    """
    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would read a pickle instead
        raise UserError(f"{adapter}: no adapter_model.safetensors, and pickled weights are never read; train again")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, adapter)
        except (
            UserWarning,
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            SafetensorError,
        ) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{adapter}: its adapter does not fit {base}: {why}; train the run again") from error


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with its adapter added to the weights.

    Where only the embeddings, or only the head that is tied to them, are adapted, the head gets weights of its own
    first: what is added to the one would be added to the other.
    """
    base = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    embeddings, head = (getattr(module, "base_layer", module) for module in ends)
    if head.weight is embeddings.weight and any(isinstance(module, BaseTunerLayer) for module in ends):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    return model.merge_and_unload()


def fuse_layers(model: PreTrainedModel) -> bool:
    """Fuse a model's norms, rotations and SwiGLU in place, on CUDA where liger-kernel is installed; whether it did."""
    fits = model.device.type == "cuda" and is_liger_kernel_available()
    if fits:  # the loss is computed at the label alone, where nothing is left to fuse
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    return fits


def base_fingerprint(base: str, revision: str | None) -> str:
    """What an adapter was trained on: hash of a local folder's weights, or name and revision on the Hub."""
    if not Path(base).is_dir():
        return f"{base}@{revision}"
    digest = hashlib.sha256()
    for path in sorted(Path(base).glob("*.safetensors")):
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def model_summary(
    model: PreTrainedModel, name: str, base: str, revision: str | None, weights: str | None = None
) -> dict:
    """What was trained on what: names, sizes, dtypes.

    Args:
        name: `model_name_or_path` of the recipe.
        base: where its weights are, on the Hub or on this machine.
        weights: what they come from in place of the Hub.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if hasattr(model, "get_nb_trainable_parameters"):  # counts 4-bit weights whole
        parameters = model.get_nb_trainable_parameters()[1]
        parameters -= sum(p.numel() for name, p in model.named_parameters() if "original_module" in name)
    else:
        parameters = model.num_parameters()
    return {
        "base": name,
        "weights": weights,
        "fingerprint": base_fingerprint(base, revision),
        "parameters": parameters,
        "trained_parameters": sum(p.numel() for p in trained),
        "dtype": str(model.dtype).removeprefix("torch."),
        "trained_dtype": str(trained[0].dtype).removeprefix("torch.") if trained else None,
    }


def is_sharded(trainer: Trainer) -> bool:
    """Whether processes share the model among them: FSDP, ZeRO-3."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def whole_model(
    trainer: Trainer, base: str, model_args: ModelConfig, key_value_heads: int | None
) -> PreTrainedModel | None:
    """The trained model in one piece; where processes share it, the first one saves its adapter and loads it again.

    Returns:
        None in the other processes that share it.
    """
    if not is_sharded(trainer):
        return trainer.model
    adapter = Path(trainer.args.output_dir, "whole")
    trainer.save_model(str(adapter))  # gathered from all processes
    trainer.model = trainer.model_wrapped = trainer.optimizer = None  # room for the whole one
    trainer.accelerator.free_memory()
    if trainer.args.process_index > 0:
        return None
    model = load_model(model_args, base, trainer.args.device, key_value_heads, adapter)
    shutil.rmtree(adapter)
    return model


@contextmanager
def missing_model(base: str) -> Iterator[None]:
    """Turn errors of loading a model into one line with the remedy.

    Raises:
        UserError: the model is missing, gated, pickled, damaged or of a kind that transformers refuses.
    """
    try:
        yield
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:  # odd keys in a config.json raise errors of every kind, JSON nested too deep its own
        text = " ".join(f"{type(error).__name__}: {error}".split())
        own = isinstance(error, RuntimeError) and not isinstance(error, RecursionError)  # CUDA's
        if own and "mismatch" not in text:
            raise
        if isinstance(error, OSError) and error.errno in (ENOSPC, EACCES, EPERM, EROFS):  # of the disk, not the model
            raise
        if "gated repo" in text.lower() or isinstance(error.__cause__, GatedRepoError):
            remedy = f"it is gated: ask for access on https://huggingface.co/{base} and set HF_TOKEN"
        elif "tiktoken" in text:  # what transformers asks for where it cannot read a SentencePiece vocabulary
            remedy = "its vocabulary needs `pip install 'fintune[sentencepiece]'`"
        elif isinstance(error, SafetensorError) or "safetensors" in text:
            remedy = "it has no complete safetensors weights; fetch it again (pickled weights are never read)"
        elif isinstance(error, OSError):
            remedy = "check the name, or connect; with HF_HUB_OFFLINE=1 it must be in the Hub cache"
        else:
            remedy = "transformers refuses it"
        raise UserError(f"model {base} cannot be loaded: {remedy} ({text[:200]})") from error
