"""What a variant of an ablation is called: by the values that its sweep varies, in words."""

import numpy as np

from fintune.results.ablation_variants import Variant

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
BATCHING = {"shared_prefix": "shared prefix", "padded": "padded by TRL"}


def name_of(variant: Variant, varied: list[str]) -> str:
    """The values that the sweep varies, with a note at the recipe's own.

    Args:
        varied: recipe keys, in the order of the words.
    """
    return values_of(variant, varied) + " (recipe)" * variant.is_recipe


def values_of(variant: Variant, varied: list[str]) -> str:
    return ", ".join(value_of(variant, key) for key in varied)


def value_of(variant: Variant, key: str) -> str:
    """One key's value in words."""
    value = variant.recipe.get(key)
    match key:
        case "neftune_noise_alpha":
            return f"α = {value:g}" if value else "no noise"
        case "lora_r":
            return f"rank {value}"
        case "use_rslora":
            return "rsLoRA" if value else "LoRA"
        case "lora_target_modules":
            return _modules(value)
        case "num_train_epochs":
            return "1 epoch" if value == 1 else f"{value:g} epochs"
        case "train_share":
            return share(value)
        case "per_device_train_batch_size":
            return f"{value * variant.recipe.get('gradient_accumulation_steps', 1)} rows"
        case "learning_rate":
            return rate(value)
        case "batching":
            return BATCHING.get(value, value)
        case "key_value_heads":
            return _heads(variant)
    return str(value)


def share(value: float) -> str:
    return f"{100 * value:g} %"


def rate(value: float) -> str:
    """A learning rate as recipes write it: 7e-4."""
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def _modules(names: list[str]) -> str:
    if set(names) == ATTENTION:
        return "attention"
    if set(names) > ATTENTION:
        return "all linear"
    return " and ".join(name.removesuffix("_proj") for name in names)


def _heads(variant: Variant) -> str:
    heads, own = variant.key_value_heads, variant.shape and variant.shape["num_key_value_heads"]
    if "key_value_heads" not in variant.recipe:
        return f"{heads} heads, its own" if heads else "its own heads"
    how = f", {'repeated' if heads > own else 'averaged'}" if own else ""
    return f"{heads} head{'s' * (heads > 1)}{how}"
