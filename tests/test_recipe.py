"""Every recipe parses, every mistake in one is named, and nothing is dropped in silence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, SMALL, script
from transformers.models.qwen3 import modeling_qwen3
from trl import ModelConfig, SFTConfig

from fintune import machine
from fintune.errors import UserError
from fintune.machine import GPU_TIERS, check_disk, check_fits, choose_model
from fintune.recipe.identity import differences
from fintune.recipe.recipe import SftArguments, dump_recipe, parse_recipe

TASKS = sorted(ROOT.glob("data/*.yaml"))
MODELS = sorted(ROOT.glob("configs/*.yaml"))
BASELINES = sorted(ROOT.glob("configs/baselines/*.yaml"))
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
ACCELERATE = sorted(ROOT.glob("configs/accelerate/*.yaml"))
# without distilled.yaml, which a language model refuses: tests/test_distillation.py
OVERLAYS = sorted(path for path in ROOT.glob("configs/overlays/*.yaml") if path.stem != "distilled")


def parse(*argv):
    return parse_recipe(list(map(str, argv)), SftArguments, SFTConfig, ModelConfig)


@pytest.mark.parametrize("task", TASKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=lambda path: path.stem if path else "plain")
def test_every_combination_parses(task, model, overlay):
    flags = ["--bf16", "false", "--use_cpu", "true"]  # this test runs on machines without a GPU
    layers = [task, model] + [overlay] * (overlay is not None)
    recipe = parse(*layers, *flags)
    run_args, training_args, model_args = recipe.run_args, recipe.training_args, recipe.model_args
    assert recipe.task.task == task.stem
    assert training_args.output_dir == f"runs/{task.stem}/{'-'.join(path.stem for path in layers[1:])}"
    rows = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    paper_mode = overlay is not None and overlay.stem == "paper-mode"
    assert rows == (48 if model.stem == "smollm2-135m" and not paper_mode else 12)  # the paper's are 12
    assert model_args.use_rslora
    assert model_args.lora_r == 8
    assert training_args.neftune_noise_alpha == 0.3
    assert Path(recipe.task.template).is_file()
    assert run_args.batching == ("padded" if paper_mode else "shared_prefix")


def test_the_paper_recipe_is_the_papers():
    recipe = parse(ROOT / "data/topic.yaml", ROOT / "configs/qwen3-8b.yaml", "--bf16", "false", "--use_cpu", "true")
    run_args, training_args, model_args = recipe.run_args, recipe.training_args, recipe.model_args
    assert (training_args.learning_rate, training_args.num_train_epochs, training_args.max_length) == (5e-5, 3, 360)
    assert (model_args.lora_dropout, model_args.model_name_or_path) == (0.1, "Qwen/Qwen3-8B")
    assert recipe.task.paper[run_args.paper_row] == 0.9315
    assert re.fullmatch(r"[0-9a-f]{40}", model_args.model_revision)


@pytest.mark.parametrize(
    "free,name", [(139, "qwen3-8b"), (39, "qwen3-8b"), (19, "qwen3-8b-qlora"), (7, "qwen3-0.6b"), (0, "tiny")]
)
def test_model_auto_chooses_by_free_memory(free, name):
    chosen, flags, reason = choose_model(free)
    assert chosen == name
    assert ("gradient_checkpointing" in flags) == (20 <= free < 40)
    assert name in reason
    parse(
        ROOT / "data/topic.yaml", ROOT / f"configs/{name}.yaml", *flags.split(), "--bf16", "false", "--use_cpu", "true"
    )
    needs = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()).get("min_gpu_gib", 0)
    assert needs <= min([step for step, model, *_ in GPU_TIERS if model == name], default=0)


@pytest.mark.parametrize("flags", [{"avx512_bf16"}, {"avx2", "amx_bf16"}, {"avx2", "avx512f"}, set()])
def test_a_float32_recipe_trains_under_autocast_where_the_processor_has_bf16(flags, monkeypatch):
    monkeypatch.setattr(machine, "_processor_flags", lambda: flags)
    expected = ["--bf16", "true", "--use_cpu", "true"] if flags & {"avx512_bf16", "amx_bf16"} else []
    assert machine.autocast_flags("smollm2-135m") == ([] if torch.cuda.is_available() else expected)
    assert machine.autocast_flags("tiny") == []


def test_the_makefile_words_parse():
    out = subprocess.run([sys.executable, "-m", "fintune.machine", "auto"], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0
    assert "MODEL=auto chose" in out.stderr
    name = re.match(r"configs/(\S+)\.yaml", out.stdout).group(1)
    assert ROOT / f"configs/{name}.yaml" in MODELS


def test_later_layers_and_flags_win_and_numbers_are_numbers(task_folder):
    (task_folder / "over.yaml").write_text("learning_rate: 2e-5\nnum_train_epochs: 7\nlora_r: 4\n")
    recipe = parse("data/toy.yaml", "small.yaml", "over.yaml", *SMALL, "--lora_r", "16")
    assert recipe.training_args.learning_rate == 2e-5  # a string to YAML
    assert recipe.training_args.num_train_epochs == 1  # SMALL's flag
    assert recipe.model_args.lora_r == 16
    assert recipe.name == "small-over"
    saved = task_folder / "saved.yaml"
    saved.write_text(dump_recipe(recipe))
    again = parse(saved)
    assert again.training_args.learning_rate == 2e-5
    assert again.model_args.lora_r == 16
    assert again.task == recipe.task


MISTAKES = {
    "unknown key": (
        "learning_rat: 1",
        r"over.yaml: unknown key `learning_rat`; the nearest known one is learning_rate",
    ),
    "unknown task key": ("label: [a, b]", "nearest known one is labels"),
    "not a number": ("learning_rate: fast", "over.yaml: `learning_rate` is 'fast', which is not a number"),
    "not a whole number": ("lora_r: 8.5", "`lora_r` is 8.5, which is not a whole number"),
    "not a choice": ("batching: packt", "batching"),
    "a list for a value": ("lora_r: [8]", "takes one value"),
    "a value for a list": ("lora_target_modules: q_proj", "takes a list"),
    "not yes or no": ("use_rslora: perhaps", "which is not yes or no"),
    "a secret": ("hub_token: hf_abc", "is a secret"),
    "no mapping": ("- a\n- b", "holds list"),
    "no YAML": ("a: [", "not valid YAML"),
    "extends itself": ("extends: over.yaml", "cannot extend itself"),
    "extends nothing": ("extends: gone.yaml", "gone.yaml: no such recipe file"),
    "python object": ("learning_rate: !!python/object/apply:os.system ['touch hacked']", "not valid YAML"),
    "a day that is none": ("run_name: 2020-02-30", "not valid YAML"),
    "a tag that fits nothing": ("a: !!int x", "not valid YAML"),
    "extends no path": ('extends: "\\0"', "cannot be read|no such recipe file"),
    "Hugging Face's own refusal": ("eval_strategy: sometimes", "sometimes"),
    "a file that Hugging Face lacks": ("accelerator_config: gone.json", "gone.json"),
}


@pytest.mark.parametrize("text,message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_recipe_are_named(task_folder, text, message):
    (task_folder / "over.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse("data/toy.yaml", "small.yaml", "over.yaml", *SMALL)
    assert not (task_folder / "hacked").exists()


@pytest.mark.parametrize(
    "argv,message",
    [
        (
            ["data/toy.yaml", "small.yaml", "--learning_rat", "1"],
            "unknown argument --learning_rat; .* --learning_rate",
        ),
        (["data/toy.yaml", "small.yaml", "--lora_r", "x"], "--lora.r: invalid int value: 'x'"),
        (["data/toy.yaml", "small.yaml", "--hf_token=hf_abc"], "unknown argument --hf_token; (?!.*hf_abc)"),
        (["data/toy.yaml", "gone.yaml"], "gone.yaml: no such recipe file"),
        (["data/toy.yaml", "small.yaml", "--hub_token", "hf_x"], "command line: `hub_token` is a secret"),
        (["small.yaml"], "no `task` in any layer"),
        ([], "no recipe given"),
    ],
)
def test_mistakes_on_the_command_line_are_named(task_folder, argv, message):
    with pytest.raises(UserError, match=message):
        parse(*argv)


def test_a_seed_has_a_folder_of_its_own(task_folder):
    recipe = parse("data/toy.yaml", "small.yaml", "--seed", "7")
    assert recipe.training_args.output_dir == "runs/toy/small-seed7"
    assert recipe.overrides["seed"] == 7


def test_what_cannot_run_is_refused_before_anything_is_fetched(task_folder, monkeypatch):
    with pytest.raises(UserError, match=r"needs 1e\+06 GiB of free GPU memory, this machine has"):
        check_fits("Qwen/Qwen3-8B", 1e6, use_cpu=False)
    check_fits("Qwen/Qwen3-8B", 1e6, use_cpu=True)
    with pytest.raises(UserError, match=r"GiB of disk free, the run needs 3[0-9]{6}\."):
        check_disk(task_folder / "runs/a/b", 10**14, 1)


TEMPLATES = {
    "no text": ("Answer!", r"it must use \{\{ text \}\}"),
    "unknown variable": ("{{ text }} {{ headline }}", "headline"),
    "syntax": ("{{ text }", "templates/toy.jinja:1: "),
}


@pytest.mark.parametrize("template,message", TEMPLATES.values(), ids=TEMPLATES)
def test_bad_templates_are_refused(task_folder, template, message):
    (task_folder / "templates/toy.jinja").write_text(template)
    with pytest.raises(UserError, match=message):
        script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL])


def one_line(command: list[str], **kwargs) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_exit_code_two_and_one_line_for_the_user(task_folder):
    train = str(ROOT / "train_sft.py")
    assert one_line([train, "data/toy.yaml", "small.yaml", "--lora_q", "1"]).startswith("error: command line: unknown")
    assert "not a finished run" in one_line([str(ROOT / "evaluate.py"), str(task_folder / "data")])
    assert not (task_folder / "runs").exists()


def test_a_model_that_is_not_there_is_named(task_folder):
    with pytest.raises(UserError, match="model no/such-model cannot be loaded: check the name, or connect"):
        script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, "--model_name_or_path", "no/such-model"])
    assert not (task_folder / "runs").exists()


def test_a_full_disk_is_one_line(task_folder):
    code = "from fintune.errors import run\nrun(lambda argv: open('/dev/full', 'w').write('x' * 10**6))"
    assert one_line(["-c", code]).startswith("error: no space left on the disk")


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_takes_its_configurations(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    assert config.mixed_precision == "no"  # the recipe says it, and a second word on it could differ
    wrapped = (config.fsdp_config or {}).get("fsdp_transformer_layer_cls_to_wrap", "Qwen3DecoderLayer")
    assert hasattr(modeling_qwen3, wrapped)


@pytest.mark.parametrize(
    ("content", "message"),
    [(BOMB, "line 2: an alias"), ("a: &a [*a]\n", "line 1: an alias"), ("a: 1\n" + "#" * 2**20, "at most 1,048,576")],
    ids=["bomb", "cycle", "large"],
)
def test_a_recipe_that_would_never_end_is_refused(content, message, tmp_path):
    (tmp_path / "bomb.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        parse(tmp_path / "bomb.yaml")


def test_help_lists_the_projects_own_keys_first_and_where_the_others_are_documented(task_folder):
    for name, key in (("train_sft", "batching"), ("train_cls", "early_stopping_patience"), ("train_linear", "C")):
        done = subprocess.run([sys.executable, ROOT / f"{name}.py", "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ours, _, rest = done.stdout.partition("Keys of a task")
        assert f"  --{key}" in ours and "  --paper_row" in ours and rest
    assert not (task_folder / "runs").exists()


def test_a_recipe_of_another_script_is_refused_by_name(task_folder):
    recipe = str(ROOT / "configs/baselines/bert-base.yaml")
    with pytest.raises(UserError, match=r"bert-base.yaml: is a recipe of train_cls.py; run it with train_cls.py"):
        script("train_sft").main(["data/toy.yaml", recipe])


def test_two_runs_are_the_same_when_nothing_that_changes_a_result_differs(task_folder):
    def identity(*more: str) -> dict:
        return parse("data/toy.yaml", "small.yaml", *more).identity("0" * 64)

    first = identity("--learning_rate", "2e-5")
    assert json.loads(json.dumps(first)) == first
    (task_folder / "over.yaml").write_text("learning_rate: 2e-5\n")  # a string to YAML
    same = [
        "--output_dir",
        "elsewhere",
        "--report_to",
        "none",
        "--gradient_checkpointing",
        "true",
        "--use_cpu",
        "true",
    ]
    assert differences(first, parse("data/toy.yaml", "small.yaml", "over.yaml", *same).identity("0" * 64)) == []
    for key, value in (("lora_r", "3"), ("seed", "7"), ("neftune_noise_alpha", "1")):
        assert differences(first, identity("--learning_rate", "2e-5", f"--{key}", value)) == [key]
    assert differences(first, parse("data/toy.yaml", "small.yaml", "over.yaml").identity("1" * 64)) == ["data"]
    template = task_folder / "templates/toy.jinja"
    template.write_text(template.read_text() + " Think.")
    assert differences(first, identity("--learning_rate", "2e-5")) == ["template"]
    toy = task_folder / "data/toy.yaml"
    toy.write_text(toy.read_text() + "train_share: 0.5\n")
    assert differences(first, identity("--learning_rate", "2e-5"), besides=("template",)) == ["train_share"]


def test_the_order_of_labels_and_the_encoding_of_files_tell_runs_apart_but_not_what_is_only_shown(task_folder):
    def identity(yaml_text: str, *more: str) -> dict:
        (task_folder / "data/toy.yaml").write_text("task: toy\n" + yaml_text)
        return parse("data/toy.yaml", "small.yaml", *more).identity("0" * 64)

    rest = "files: {all: toy.csv}\n"
    first = identity("labels: [Up, Up or down, Down]\n" + rest)
    assert differences(first, identity("labels: [Down, Up or down, Up]\n" + rest)) == ["labels"]
    other = "files: {all: {path: toy.csv, encoding: latin-1}}\n"
    assert differences(first, identity("labels: [Up, Up or down, Down]\n" + other)) == ["encodings"]
    shown = ["--logging_steps", "7", "--run_name", "mine", "--save_total_limit", "9", "--paper_row", "bert"]
    assert differences(first, identity("labels: [Up, Up or down, Down]\n" + rest, *shown)) == []


def test_a_prompt_edited_during_training_does_not_change_what_the_run_was(task_folder):
    recipe = parse("data/toy.yaml", "small.yaml")
    before = recipe.identity("0" * 64)
    (task_folder / "templates/toy.jinja").write_text("Other words: {{ text }}")
    assert recipe.identity("0" * 64) == before


def test_an_encoder_and_a_linear_model_need_no_prompt(task_folder):
    (task_folder / "templates/toy.jinja").unlink()
    recipe = ["data/toy.yaml", str(ROOT / "configs/baselines/majority.yaml"), "--report_to", "none"]
    script("train_linear").main(recipe)
    assert "template" not in json.loads((task_folder / "runs/toy/majority/metrics.json").read_text())["identity"]
    with pytest.raises(UserError, match=r"toy\.jinja: (cannot be read|no such template)"):
        script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL])
