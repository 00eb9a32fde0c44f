"""A recipe's adapter on its base; what a recipe names and the model lacks is refused before training."""

from collections.abc import Iterable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, SFTConfig, get_peft_config

from fintune.errors import UserError

ADAPTED = (torch.nn.Linear, Conv1D, torch.nn.Embedding)  # what LoRA can be on; quantized layers are Linear too


def new_adapter(model: PreTrainedModel, model_args: ModelConfig, training_args: SFTConfig) -> PeftModel:
    """The base with a new adapter, drawn as SFTTrainer would draw it, so that all of it is looked at before training.

    Raises:
        UserError: the recipe names what the model lacks, or PEFT has no such adapter for one of the layers.
    """
    config, plugin = peft_config(model_args, model), training_args.deepspeed_plugin
    mixed = plugin is None or plugin.zero_stage != 3 or getattr(model, "is_quantized", False)  # see SFTTrainer
    set_seed(training_args.seed)
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=mixed)
    except (ValueError, TypeError, NotImplementedError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{type(model).__name__} cannot have this adapter: {why}; change `lora_target_modules` or what it names"
        ) from error


def peft_config(model_args: ModelConfig, model: PreTrainedModel) -> LoraConfig:
    """TRL's `get_peft_config`, with trained embeddings kept tied to the head where the base ties them.

    Args:
        model: the base, which must have every layer that the recipe names.

    Raises:
        UserError: names in `lora_target_modules`, `lora_target_parameters` or `lora_modules_to_save` match nothing.
    """
    config = get_peft_config(model_args)
    if config.modules_to_save:
        config.ensure_weight_tying = True
    _check_target_modules(config, model)
    parameters = [name for name, _ in model.named_parameters()]
    _check("lora_target_parameters", config.target_parameters, parameters, _same_end, model, parts=2)
    modules = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    within = [name for name, _ in model.named_modules()]
    _check("lora_modules_to_save", config.modules_to_save, within, str.endswith, model, own=modules)
    return config


def _check_target_modules(config: LoraConfig, model: PreTrainedModel) -> None:
    """ModelConfig makes a list of one name a string, which PEFT reads as a pattern; a plain name stays a name.

    The head has no adapter: SFTTrainer multiplies states by its weight alone.
    """
    head, wanted = model.get_output_embeddings(), config.target_modules
    layers = {name: each for name, each in model.named_modules() if isinstance(each, ADAPTED) and each is not head}
    ends = [name for name, each in model.named_modules() if each is head and wanted and _targets(wanted, name, config)]
    if ends:
        raise UserError(
            f"`lora_target_modules`: {ends[0]} is the head, which takes no adapter; leave it out, or train all of it "
            f"with `lora_modules_to_save: [{ends[0].split('.')[-1]}]`"
        )
    if wanted is None:
        known = model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        wanted = [] if known or config.target_parameters else ["(nothing)"]
    elif isinstance(wanted, str):
        if wanted.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
            return
        if any(_targets(wanted, layer, config) for layer in layers):
            return
        wanted = config.target_modules = {wanted}

    def matches(layer: str, name: str) -> bool:
        return _targets([name], layer, config)

    linear = [name for name, layer in layers.items() if not isinstance(layer, torch.nn.Embedding)]
    _check("lora_target_modules", wanted, layers, matches, model, linear, ", or [all-linear] for all of them")


def _targets(wanted: str | list[str], layer: str, config: LoraConfig) -> bool:
    """Whether PEFT puts an adapter on a layer; not where `modules_to_save` trains it whole."""
    one = LoraConfig(target_modules=wanted, modules_to_save=config.modules_to_save)
    try:
        return bool(check_target_module_exists(one, layer))
    except Exception:  # no pattern
        return False


def _same_end(parameter: str, name: str) -> bool:
    return parameter == name or parameter.endswith(f".{name}")


def _check(key: str, wanted, names: Iterable[str], matches, model, own=None, more: str = "", parts: int = 1) -> None:
    """Refuse what matches none of a model's names.

    Args:
        wanted: of the recipe, under `key`.
        own: of the names those to show, by their last `parts`.
    """
    missing = sorted(name for name in wanted or () if not any(matches(each, name) for each in names))
    if missing:
        ends = dict.fromkeys(".".join(name.split(".")[-parts:]) for name in own or names)
        shown = [end for end in ends if end and not end.isdigit()]
        raise UserError(
            f"`{key}`: {', '.join(missing)} {'match' if len(missing) > 1 else 'matches'} nothing in "
            f"{type(model).__name__}; it has {', '.join(shown)}: name these{more}"
        )
