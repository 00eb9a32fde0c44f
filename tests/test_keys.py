"""Every key of Hugging Face's classes has its effect, or is refused by name before a model loads."""

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import trl
from conftest import ROOT, SMALL, script
from transformers import Trainer, TrainingArguments, integrations, trainer_callback, trainer_optimizer
from trl import ModelConfig, SFTConfig, SFTTrainer, get_quantization_config

from fintune.errors import UserError
from fintune.model.encoder import EncoderArguments
from fintune.recipe import refused
from fintune.recipe.recipe import SECRETS, SftArguments, parse_recipe
from fintune.training.session import check_optimizer

pytestmark = pytest.mark.usefixtures("task_folder")
BERT = str(ROOT / "configs/baselines/bert-base.yaml")
# what a value of each kind becomes, for a key to differ from its default
OTHER = {"eval_do_concat_batches": "false", "remove_unused_columns": "false", "lora_task_type": "SEQ_CLS"}
OTHER |= {"hub_strategy": "end", "packing_strategy": "wrapped", "truncation_mode": "keep_end", "loss_type": "dft"}
OTHER |= {"dataset_num_proc": "4", "pad_to_multiple_of": "8", "local_rank": "3"}
OTHER |= {"include_for_metrics": "[loss]", "label_names": "[label]", "model_init_kwargs": "{use_cache: false}"}
OTHER |= {"parallelism_config": "{tp_size: 2}", "dataset_kwargs": "{skip_prepare_dataset: false}"}
OTHER |= {"liger_kernel_config": "{rope: true}", "dataset_text_field": "title", "length_column_name": "size"}
OTHER |= {"hub_model_id": "me/x", "hub_revision": "v1", "project": "mine"} | dict.fromkeys(refused.TRACKIO[2:], "mine")


def sft(*flags: str, layers: tuple = ("small.yaml",)):
    words = ["data/toy.yaml", *layers, *SMALL, *flags]
    return parse_recipe(words, SftArguments, SFTConfig, ModelConfig, script="train_sft.py")


def cls(*flags: str, layers: tuple = (BERT,)):
    words = ["data/toy.yaml", *layers, *SMALL, *flags]
    return parse_recipe(words, EncoderArguments, TrainingArguments, script="train_cls.py")


CASES = [(sft, key) for key in (refused.SFT | refused.SHARED_PREFIX)] + [(cls, key) for key in refused.ENCODER]
CASES += [(parse, key) for parse in (sft, cls) for key in refused.TRACKIO]


@pytest.mark.parametrize("parse, key", CASES, ids=lambda case: case if isinstance(case, str) else case.__name__)
def test_a_key_that_would_do_nothing_is_refused_by_name_in_a_layer(parse, key):
    Path("over.yaml").write_text(f"{key}: {OTHER.get(key, 'true')}\n")
    with pytest.raises(UserError, match=rf"^over\.yaml: `{key}` is .+: .+"):
        parse(layers=(("small.yaml" if parse is sft else BERT), "over.yaml"))


def test_a_refused_flag_is_the_command_lines_and_a_default_asks_for_nothing():
    with pytest.raises(UserError, match=r"^command line: `packing` is True: take `batching: shared_prefix`"):
        sft("--packing", "true")
    with pytest.raises(UserError, match="command line: `remove_unused_columns` is False"):
        sft("--no_remove_unused_columns")
    Path("over.yaml").write_text("packing: false\ndataset_text_field: text\nrouter_aux_loss_coef: 0\ndo_train: null\n")
    assert sft("--loss_type", "chunked_nll", layers=("small.yaml", "over.yaml"))
    for key, value in (("loss_type", "dft"), ("pad_to_multiple_of", "8")):
        assert str(getattr(sft("--batching", "padded", f"--{key}", value).training_args, key)) == value


VALUES = {
    "per_device_train_batch_size": "0",
    "gradient_accumulation_steps": "-1",
    "learning_rate": "-1",
    "lora_r": "0",
    "lora_dropout": "1.5",
    "label_smoothing_factor": "2",
    "num_train_epochs": "-1",
    "max_length": "0",
    "neftune_noise_alpha": "-5",
    "use_peft": "false",
    "metric_for_best_model": "eval_f1",
    "optim_target_modules": "all-linear",
}


@pytest.mark.parametrize("key", VALUES)
def test_a_value_that_would_end_in_an_error_of_a_library_is_refused_before(key):
    with pytest.raises(UserError, match=rf"command line: `{key}` is "):
        sft(f"--{key}", VALUES[key])


def test_what_is_no_number_is_refused_where_a_number_belongs():
    for key in ("learning_rate", "neftune_noise_alpha"):
        Path("over.yaml").write_text(f"{key}: {{a: {{b: 1}}}}\n")
        with pytest.raises(UserError, match=rf"over\.yaml: `{key}` is \{{'a': \{{'b': 1\}}\}}: it takes 0 or more"):
            sft(layers=("small.yaml", "over.yaml"))


def test_what_early_stopping_a_length_and_a_model_need_is_said():
    with pytest.raises(UserError, match="`eval_strategy` is 'no': early stopping"):
        cls("--eval_strategy", "no", "--load_best_model_at_end", "false", "--save_strategy", "no")
    Path("over.yaml").write_text("max_length: null\n")
    with pytest.raises(UserError, match=r"over\.yaml: `max_length` is None: it takes a number of tokens"):
        sft(layers=("small.yaml", "over.yaml"))
    Path("none.yaml").write_text("use_peft: true\n")
    with pytest.raises(UserError, match="recipe: `model_name_or_path` is None: name a model"):
        sft(layers=("none.yaml",))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lr_scheduler_type", "cosine_with_min_lr"], "cosine_with_min_lr: .*min_lr"),
        (["--lr_scheduler_kwargs", '{"depth": 3}'], "linear: .*depth"),
        (["--optim", "adamw_anyprecision"], "`optim` adamw_anyprecision"),
        (["--optim", "galore_adamw"], "galore"),
        (["--fp16", "true"], "needs a GPU"),
    ],
)
def test_an_optimizer_or_schedule_that_lacks_something_is_named_before_the_model_loads(flags, message):
    parse = cls if "--fp16" in flags else sft
    with pytest.raises(UserError, match=message):
        check_optimizer(parse("--use_cpu", "true", *flags).training_args)


def test_a_quoted_no_is_no_for_a_key_that_is_on_by_default():
    Path("over.yaml").write_text("dataloader_pin_memory: 'no'\n")
    assert sft(layers=("small.yaml", "over.yaml")).training_args.dataloader_pin_memory is False


def test_a_finished_runs_own_recipe_is_read_whatever_it_states():
    Path("over.yaml").write_text("completion_only_loss: true\nuse_cache: true\n")
    words = ["data/toy.yaml", "small.yaml", "over.yaml", *SMALL]
    assert parse_recipe(words, SftArguments, SFTConfig, ModelConfig).training_args.completion_only_loss
    with pytest.raises(UserError, match="command line: `packing`"):
        parse_recipe([*words, "--packing", "true"], SftArguments, SFTConfig, ModelConfig)


RECIPES = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/baselines/*.yaml")]


@pytest.mark.parametrize("path", sorted(RECIPES), ids=lambda path: path.stem)
def test_no_recipe_of_the_project_states_a_refused_key(path):
    text = path.read_text()
    if "train_linear.py" in text:
        return
    encoder = "bert-base.yaml" in text or path.stem == "bert-base" or "roberta-base.yaml" in text
    (cls if encoder else sft)("--bf16", "false", "--use_cpu", "true", layers=(str(path),))


def test_every_key_is_refused_or_read():
    """By the Trainer or SFTTrainer through the arguments, by fintune, or, of the model's, by PEFT and transformers.

    The keys of SFTConfig alone are read where SFTTrainer prepares rows, pads or loads a model, which happens without
    it here: each needs a decision.
    """
    ours = {
        "chat_template_path",
        "eos_token",
        "max_length",
        "pad_token",
    }  # read by fintune
    theirs = {"activation_offloading", "router_aux_loss_coef", *refused.SHARED_PREFIX}  # of SFTTrainer's steps
    of_sft = {field.name for field in dataclasses.fields(SFTConfig)}
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert of_sft - of_trainer == ours | theirs | (refused.SFT.keys() - of_trainer - {"lora_task_type"})

    modules = [Trainer, TrainingArguments, trainer_callback, trainer_optimizer, SFTTrainer]
    sources = [inspect.getsource(inspect.getmodule(each) if inspect.isclass(each) else each) for each in modules]
    sources.append((Path(inspect.getfile(integrations)).parent / "integration_utils.py").read_text())
    sources += [path.read_text() for path in [*ROOT.glob("src/fintune/**/*.py"), *ROOT.glob("train_*.py")]]
    source = "\n".join(sources)
    known = {*refused.TRAINER, *SECRETS}
    unread = {key for key in of_trainer - known if not re.search(rf"(args|self)\.{key}\b", source)}
    assert unread == set()


CHANGED = {
    "lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "lora_target_modules": ["q_proj", "v_proj"],
    "lora_target_parameters": ["mlp.up_proj.weight"], "lora_modules_to_save": ["embed_tokens"], "use_rslora": True,
    "use_dora": True,
}  # fmt: skip
QUANTIZED = {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "bfloat16"}


def test_every_key_of_the_model_reaches_peft_or_the_loading():
    loading = {"model_name_or_path", "model_revision", "dtype", "attn_implementation", "use_peft"}  # of load_model
    keys = {field.name for field in dataclasses.fields(ModelConfig)} - {"trust_remote_code"}
    assert keys == loading | CHANGED.keys() | QUANTIZED.keys() | {"load_in_4bit", "load_in_8bit", "lora_task_type"}
    plain = trl.get_peft_config(ModelConfig(use_peft=True)).to_dict()
    for key, value in CHANGED.items():
        found = trl.get_peft_config(ModelConfig(use_peft=True, **{key: value})).to_dict()
        assert [name for name in plain if found[name] != plain[name]] in ([key], [key.removeprefix("lora_")]), key
    nf4 = get_quantization_config(ModelConfig(load_in_4bit=True)).to_dict()
    for key, value in QUANTIZED.items():
        assert get_quantization_config(ModelConfig(load_in_4bit=True, **{key: value})).to_dict() != nf4, key


def test_a_linear_model_refuses_what_it_does_not_read():
    main, recipe = script("train_linear").main, "configs/baselines/{}.yaml"
    for name, flags, message in (
        ("majority", ["--C", "1", "3"], r"`C` is not read by linear_model: majority"),
        ("majority", ["--ngram_max", "3"], "`ngram_max` is not read"),
        ("tfidf", ["--max_length", "99"], r"`max_length` is not read by linear_model: tfidf"),
    ):
        with pytest.raises(UserError, match=message):
            main(["data/toy.yaml", str(ROOT / recipe.format(name)), "--report_to", "none", *flags])


@pytest.mark.parametrize(
    "stated, message",
    [
        (
            "{hidden_size: 32, num_attention_heads: 2}",
            "num_attention_heads is 2, no multiple of num_key_value_heads, 32",
        ),
        ("{hiden_size: 32}", "hiden_size: not keys of Qwen3Config"),
        ("{vocab_size: 99}", "vocab_size: not keys"),
        ("{hidden_size: wide}", "`tiny_config`: .*hidden_size"),
    ],
)
def test_a_tiny_model_that_cannot_be_is_refused(stated, message):
    Path("over.yaml").write_text(f"tiny_config: {stated}\n")
    with pytest.raises(UserError, match=message):
        script("train_sft").main(["data/toy.yaml", "small.yaml", "over.yaml", *SMALL])


@pytest.mark.parametrize(
    "flag", ["seed", "learning_rate", "lora_r", "output_dir", "per_device_eval_batch_size", "lora_alpha"]
)
def test_an_evaluation_refuses_flags_that_it_does_not_read(flag, run_dir):
    for words in ([str(run_dir)], ["some/model", "--task", "data/toy.yaml"]):
        with pytest.raises(
            UserError, match=rf"^command line: --{flag} changes nothing in an evaluation, .*, max_length"
        ):
            script("evaluate").main([*words, f"--{flag}", "7"])
    assert not list(run_dir.glob("*-flags*"))


def test_an_evaluation_of_a_model_without_a_trainer_refuses_its_keys_too():
    recipe = str(ROOT / "configs/baselines/tfidf.yaml")
    script("train_linear").main(["data/toy.yaml", recipe, "--report_to", "none"])
    with pytest.raises(UserError, match=r"--ngram_max changes nothing in an evaluation"):
        script("evaluate").main(["runs/toy/tfidf", "--ngram_max", "3"])


def test_an_evaluation_reads_what_it_takes(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "runs/toy/copy")
    script("evaluate").main([str(run), "--max_length", "50", "--dtype", "bfloat16", "--report_to", "none"])
    whole, cut = (json.loads((run / f"metrics{end}.json").read_text()) for end in ("", "-flags"))
    assert cut["test"]["log_loss"] != whole["test"]["log_loss"]
    assert (cut["identity"], cut["model"]) == (whole["identity"], whole["model"])
