"""What a recipe says of the adapter and of the tokenizer's tokens is found in the base, or named as missing there."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, script
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig
from trl import ModelConfig, SFTConfig

from fintune.data.load import load_data
from fintune.deploy.classifier import Classifier
from fintune.deploy.export import export
from fintune.errors import UserError
from fintune.model.adapter import new_adapter, peft_config
from fintune.model.load import load_tokenizer
from fintune.model.tiny import train_tokenizer
from fintune.recipe.layers import read_task

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_model(kind: str):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 90} if kind == "gpt2" else SIZES
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, eos_token_id=2, **sizes))


def adapter(model, targets=None, **more):
    args = ModelConfig(
        use_peft=True, lora_target_modules=targets, **{f"lora_{key}": value for key, value in more.items()}
    )
    return peft_config(args, model)


MISSING = {
    "phi3": (
        SEVEN,
        "gate_proj, k_proj, q_proj, up_proj, v_proj match nothing in Phi3ForCausalLM",
        "qkv_proj, gate_up_",
    ),
    "gpt_neox": (SEVEN, "down_proj, gate_proj.* match nothing in GPTNeoXForCausalLM", "query_key_value, dense"),
    "gpt2": (["c_attn", "v_proj"], "v_proj matches nothing in GPT2LMHeadModel", "c_attn, c_proj, c_fc"),
    "llama": (["q_proj", "query"], "query matches nothing in LlamaForCausalLM", "q_proj, k_proj, v_proj, o_proj"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_target_modules_that_match_nothing_are_named_with_those_that_the_model_has(kind):
    targets, missing, has = MISSING[kind]
    with pytest.raises(UserError, match=rf"`lora_target_modules`: {missing}; it has .*{has}.* or \[all-linear\]"):
        adapter(base_model(kind), targets)


def test_what_is_no_layer_for_an_adapter_is_no_match_either():
    llama = base_model("llama")
    for name in ("mlp", "norm", "self_attn", "all-linear", "("):
        with pytest.raises(UserError, match=r"`lora_target_modules`: .* matches nothing"):
            adapter(llama, ["q_proj", name])
    with pytest.raises(UserError, match="embed_tokens matches nothing"):  # PEFT leaves it to modules_to_save
        adapter(llama, ["q_proj", "embed_tokens"], modules_to_save=["embed_tokens"])
    with pytest.raises(UserError, match=r"`lora_modules_to_save`: embeddings matches nothing .* embed_tokens"):
        adapter(llama, ["q_proj"], modules_to_save=["embeddings"])
    with pytest.raises(UserError, match=r"`lora_modules_to_save`: embed_tokens .* it has embed_in"):
        adapter(base_model("gpt_neox"), ["dense"], modules_to_save=["embed_tokens"])
    with pytest.raises(UserError, match=r"`lora_target_parameters`: experts.up matches nothing .* up_proj.weight"):
        adapter(llama, ["q_proj"], target_parameters=["experts.up"])
    with pytest.raises(UserError, match=r"`lora_target_modules`: .* matches nothing in Ernie4_5ForCausalLM"):
        adapter(base_model("ernie4_5"))  # PEFT knows no default for it


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], [r".*(q_proj|head)"], [".*"]])
def test_the_head_takes_no_adapter_and_what_it_takes_is_named(targets):
    with pytest.raises(UserError, match=r"lm_head is the head, .* `lora_modules_to_save: \[lm_head\]`"):
        adapter(base_model("llama"), targets)


@pytest.mark.parametrize(
    "targets, more, said",
    [
        ([r".*self_attn(\.q_proj)?"], {}, "LlamaAttention.* is not supported"),
        (["q_proj"], {"target_parameters": ["up_proj.weight"], "dropout": 0.1}, "lora_dropout != 0"),
        (["q_proj"], {"target_parameters": ["norm.weight"], "dropout": 0.0}, "1 dimensional"),
    ],
)
def test_an_adapter_that_peft_does_not_have_is_refused_in_one_line(targets, more, said):
    args = {f"lora_{key}": value for key, value in more.items()}
    args = ModelConfig(use_peft=True, lora_target_modules=targets, **args)
    with pytest.raises(UserError, match=f"LlamaForCausalLM cannot have this adapter: .*{said}") as caught:
        new_adapter(base_model("llama"), args, SFTConfig("out", use_cpu=True, bf16=False))
    assert "\n" not in str(caught.value)


def test_the_seed_alone_draws_an_adapter():
    model_args, drawn = ModelConfig(use_peft=True, lora_target_modules=["q_proj"]), []
    for seed in (1, 1, 2):
        torch.rand(5)  # as whatever came before may draw
        model = new_adapter(base_model("llama"), model_args, SFTConfig("out", use_cpu=True, bf16=False, seed=seed))
        drawn.append(next(weights for name, weights in model.named_parameters() if "lora_A" in name))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_names_patterns_and_all_linear_are_taken():
    from peft import get_peft_model

    for kind, targets, more, layers in (
        ("llama", SEVEN, {"modules_to_save": ["embed_tokens"]}, 14),
        ("llama", ["q_proj"], {}, 2),  # one name, of which ModelConfig makes a string
        ("llama", [r".*\.1\..*_proj"], {}, 7),
        ("llama", ["all-linear"], {}, 14),
        ("phi3", ["all-linear"], {}, 8),
        ("gpt2", None, {}, 2),  # PEFT's own choice
    ):
        model = base_model(kind)
        adapted = get_peft_model(model, adapter(model, targets, **more))
        assert len(adapted.targeted_module_names) == layers, (kind, targets)


@pytest.fixture
def llama(task_folder) -> Path:
    """A local llama with a tokenizer of its own: <|im_end|> ends a turn, <|endoftext|> pads."""
    task = read_task(Path("data/toy.yaml"))
    tokenizer = train_tokenizer(task, load_data(task).splits["train"]["text"], 500)
    tokenizer.chat_template = Path("base.jinja").read_text() if Path("base.jinja").exists() else CHAT
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id})
    AutoModelForCausalLM.from_config(config).save_pretrained("base")
    tokenizer.save_pretrained("base")
    return Path("base").absolute()


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END, PAD = "<|im_end|>", "<|endoftext|>"
TOKENS = {  # eos_token, pad_token of the base, what is said, the flags that mend it
    "pad is the end": (END, END, r"equals the end token, <\|im_end\|>; set --pad_token '<\|endoftext\|>'"),
    "no pad": (END, None, r"there is no padding token; set --pad_token '<\|endoftext\|>'"),
    "no turn ends in it": (PAD, PAD, r"equals the end token, .* a turn with .*; set --eos_token '<\|im_end\|>' "),
    "neither": (PAD, None, r"no padding token, and .*; set --eos_token '<\|im_end\|>' --pad_token '<\|endoftext\|>'"),
}  # fmt: skip
MENDED = {
    "pad is the end": ["--pad_token", PAD],
    "no pad": ["--pad_token", PAD],
    "no turn ends in it": ["--eos_token", END],
    "neither": ["--eos_token", END, "--pad_token", PAD],
}


def train(base: Path, *flags: str) -> None:
    more = ["--model_name_or_path", str(base), "--output_dir", "run", "--min_steps", "0", *flags]
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, *more])


@pytest.mark.parametrize("kind", TOKENS)
def test_a_missing_padding_token_is_told_from_one_that_ends_a_turn_and_the_remedy_works(kind, llama):
    eos, pad, message = TOKENS[kind]
    path = llama / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": eos, "pad_token": pad}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    Path("small.yaml").write_text(Path("small.yaml").read_text() + "chat_template_path: null\n")
    with pytest.raises(UserError, match=message):
        train(llama)
    assert not Path("run").exists()
    train(llama, *MENDED[kind], *(["--batching", "padded"] if kind == "pad is the end" else []))
    tokenizer = AutoTokenizer.from_pretrained("run")
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    rows = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    classifier = Classifier.from_pretrained(Path("run"))
    assert classifier([row["text"] for row in rows])[0] == [row["prediction"] for row in rows]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in classifier.scorer.encoder.label_ids)
    export(Path("run"), Path("plain"), None)
    generation = GenerationConfig.from_pretrained("plain")
    assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_token_that_the_vocabulary_lacks_is_named_before_the_model_loads(llama):
    for key in ("eos_token", "pad_token"):
        with pytest.raises(
            UserError, match=rf"`{key}` is '<\|pad\|>', no token of its vocabulary; control tokens: .*im_end"
        ):
            train(llama, f"--{key}", "<|pad|>")


def test_smollm2s_padding_token_is_still_its_unknown_one(llama):
    path = llama / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": END, "unk_token": PAD}))
    assert load_tokenizer(str(llama), None).pad_token == PAD


def test_a_template_of_any_file_name_is_taken_and_one_that_is_none_is_named(llama):
    Path("chat.txt").write_text(CHAT)
    train(llama, "--chat_template_path", str(Path("chat.txt").absolute()))
    Path("bad.jinja").write_bytes(b"\xff\xfe{{")
    for name in ("bad.jinja", "gone.jinja", "."):
        with pytest.raises(UserError, match="no such chat template, or none in UTF-8"):
            train(llama, "--chat_template_path", str(Path(name).absolute()))
