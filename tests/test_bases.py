"""Bases of many architectures are scored and trained as their own forward says, or refused before anything is."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from bases import BASES, ENCODERS, EXPERTS, HEAD, one_label_at_a_time, random_base, random_encoder, shake
from conftest import COMPANIES, SMALL, TEXTS, script
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, GPT2Config, XLNetConfig
from trl import ModelConfig, SFTConfig, SFTTrainer

from fintune.cli import command
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError
from fintune.model import plain
from fintune.model.adapter import new_adapter
from fintune.model.encoder import EncoderInput
from fintune.model.load import merged
from fintune.model.plain import FITS
from fintune.model.prompt import IGNORE
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.scoring.greedy import greedy_label_rate
from fintune.scoring.label_scorer import LabelScorer
from fintune.training.own_forward import OwnForwardTrainer, choose_trainer
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = [name for name, (_, _, fits) in BASES.items() if not fits and "window 60" not in name]
NOT_BY_TRL = ["doge", "llama 4", "modernbert-decoder, window 16"]
SINGLE = ["x", "a much longer text, " * 6]


@pytest.mark.parametrize("name", BASES)
def test_scores_are_the_models_own(toy, name, capsys):
    _, data, prompt, _ = toy
    model, texts = random_base(name, prompt.tokenizer), [*data.splits["test"]["text"][:6], *SINGLE]
    expected = one_label_at_a_time(model, prompt, texts)
    attention = model.config._attn_implementation
    np.testing.assert_allclose(LabelScorer(model, prompt).log_likelihoods(texts), expected, atol=1e-4)
    assert (FITS[model] is not None) == BASES[name][2]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" does not fit")[0] for line in said] == ([] if BASES[name][2] else [f"scoring: {name}"])
    assert model.config._attn_implementation == attention
    greedy_label_rate(model, prompt, texts[:2])  # does not raise


@pytest.mark.parametrize("name", ["gemma3, window 16", "mistral, window 8", "stablelm", "diffllama", "llama"])
def test_scores_are_the_models_own_under_eager_attention(toy, name):
    _, data, prompt, _ = toy
    model, texts = random_base(name, prompt.tokenizer, "eager"), data.splits["test"]["text"][:6]
    expected = one_label_at_a_time(model, prompt, texts)
    np.testing.assert_allclose(LabelScorer(model, prompt).log_likelihoods(texts), expected, atol=1e-4)


@pytest.mark.parametrize("batching", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", BASES)
def test_the_loss_is_that_of_separate_rows(toy, tmp_path, name, batching, capsys):
    _, data, prompt, _ = toy
    model = random_base(name, prompt.tokenizer)
    dataset = prompt.training_rows(data.splits["train"])
    trainer_class, collator = choose_trainer(SharedPrefixCollator.of(batching, dataset), model, dataset)
    own = trainer_class is OwnForwardTrainer
    assert [" does not fit" in line for line in capsys.readouterr().out.splitlines()] == [True] * own
    assert own == (name in NOT_BY_TRL) if batching == "padded" else own or "window 32" not in name
    rows = list(dataset.select(range(20, 28)))
    with torch.no_grad():
        each = [model(**{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}) for row in rows]
    tokens = [sum(label != IGNORE for label in row["labels"]) for row in rows]
    expected = sum(out.loss.item() * count for out, count in zip(each, tokens, strict=True)) / sum(tokens)
    trainer = trainer_class(
        model=model,
        args=SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", router_aux_loss_coef=0.0),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=prompt.tokenizer,
    )
    with torch.no_grad():
        loss = trainer.compute_loss(model.eval(), trainer.data_collator(rows), num_items_in_batch=sum(tokens))
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_a_window_that_only_a_later_text_passes_is_seen_then(toy, capsys):
    _, data, prompt, _ = toy
    model, texts = random_base("mistral, window 60", prompt.tokenizer), data.splits["test"]["text"][:4]
    scorer = LabelScorer(model, prompt)
    np.testing.assert_allclose(scorer.log_likelihoods(texts), one_label_at_a_time(model, prompt, texts), atol=1e-4)
    assert FITS[model] == max(map(len, prompt.encode(texts)))
    assert not capsys.readouterr().err
    expected = one_label_at_a_time(model, prompt, SINGLE)
    np.testing.assert_allclose(scorer.log_likelihoods(SINGLE), expected, atol=1e-4)
    assert "does not fit" in capsys.readouterr().err
    np.testing.assert_allclose(scorer.log_likelihoods(texts), one_label_at_a_time(model, prompt, texts), atol=1e-4)


def test_one_text_is_enough_to_see_a_misfit(toy):
    for name in OWN:
        model = random_base(name, toy[2].tokenizer)
        LabelScorer(model, toy[2]).check(["profit of Alder rose by a third 1"])
        assert FITS[model] is None, name


def test_a_model_is_compared_once(toy, monkeypatch):
    _, data, prompt, model = toy
    texts = data.splits["test"]["text"]
    LabelScorer(model, prompt).check(texts)
    monkeypatch.setattr(plain, "log_likelihoods", None)
    LabelScorer(model, prompt).probabilities(texts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_misfit_is_told_from_rounding(toy, dtype):
    _, data, prompt, _ = toy
    texts, rows = data.splits["test"]["text"], prompt.training_rows(data.splits["train"])
    for name, fits in (
        ("llama", True),
        ("qwen3", True),
        ("mistral, window above every row", True),
        ("mistral, window 32", False),
        ("granite, scaled logits", False),
        ("diffllama", False),
    ):
        model = random_base(name, prompt.tokenizer, dtype=dtype)
        LabelScorer(model, prompt).check(texts)
        assert (FITS[model] is not None) == fits, name
        if "window 32" in name or fits:
            collator = SharedPrefixCollator.of("shared_prefix", rows)
            assert (choose_trainer(collator, model, rows)[1] is not None) == fits, name


def test_what_looks_ahead_or_cannot_read_a_prompt_is_refused_in_one_line(toy):
    _, data, prompt, _ = toy
    size = {"vocab_size": len(prompt.tokenizer), "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    for config, said in (
        (BertConfig(**size, intermediate_size=32), r"BertLMHeadModel looks ahead.*train_cls\.py"),
        (GPT2Config(**size, n_positions=16, eos_token_id=0, bos_token_id=0), r"its own forward fails .*Index"),
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        shake(model)
        with pytest.raises(UserError, match=said) as caught:
            LabelScorer(model, prompt).check(data.splits["test"]["text"])
        assert "\n" not in str(caught.value)


def test_class_weights_are_not_dropped_with_a_base_that_does_not_fit(toy):
    _, data, prompt, _ = toy
    rows = prompt.training_rows(data.splits["train"], [1.0, 1.0, 1.0])
    collator = SharedPrefixCollator.of("shared_prefix", rows)
    with pytest.raises(UserError, match=r"mistral, window 8 does not fit .*class_weights"):
        choose_trainer(collator, random_base("mistral, window 8", prompt.tokenizer), rows)


def mixture(kind: str, prompt):
    """A base with routers, whose recipe's coefficient for them is 0.02."""
    config = AutoConfig.for_model(
        kind, **MIXTURE, vocab_size=len(prompt.tokenizer), eos_token_id=prompt.tokenizer.eos_token_id, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model)
    model.config.name_or_path = kind
    return model


MIXTURE = {**EXPERTS, **HEAD, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
MIXTURE |= {"num_attention_heads": 4, "max_position_embeddings": 512, "router_aux_loss_coef": 0.02}


@pytest.mark.parametrize(
    "kind, trainer, said",
    [
        ("mixtral", SFTTrainer, "its rows are padded: slower (`router_aux_loss_coef: 0` leaves that loss out)"),
        ("granitemoe", OwnForwardTrainer, "read by its own forward"),  # TRL's head does not find its experts
    ],
)
def test_the_routers_loss_is_not_lost_with_a_shared_line(toy, tmp_path, kind, trainer, said, capsys):
    _, data, prompt, _ = toy
    model, dataset = mixture(kind, prompt), prompt.training_rows(data.splits["train"])
    collator = SharedPrefixCollator.of("shared_prefix", dataset)
    assert choose_trainer(collator, model, dataset) == (trainer, None)
    assert f"{kind} does not fit `batching: shared_prefix` (its routers' loss" in (out := capsys.readouterr().out)
    assert said in out
    assert choose_trainer(collator, model, dataset, router_aux_loss_coef=0.0) == (SharedPrefixTrainer, collator)
    # SFTTrainer writes a coefficient into the config, where None takes it from
    losses = [loss_of(trainer, model, dataset, prompt, tmp_path, coefficient) for coefficient in (None, 0.0, 0.5)]
    ids = torch.tensor([row["input_ids"] for row in rows_of_one_length(dataset)])
    with torch.no_grad():
        routers = model(ids, use_cache=False, output_router_logits=True).aux_loss.item()
    assert losses[0] - losses[1] == pytest.approx(0.02 * routers, rel=1e-3)
    assert losses[2] - losses[1] == pytest.approx(0.5 * routers, rel=1e-3)


def rows_of_one_length(dataset) -> list[dict]:
    return [row for row in dataset if len(row["input_ids"]) == len(dataset[0]["input_ids"])][:4]


def loss_of(trainer_class, model, dataset, prompt, folder, coefficient: float | None) -> float:
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "router_aux_loss_coef": coefficient}
    settings["dataset_kwargs"] = {"skip_prepare_dataset": True}
    trainer = trainer_class(
        model=model,
        args=SFTConfig(str(folder / "out"), **settings),
        train_dataset=dataset,
        processing_class=prompt.tokenizer,
    )
    with torch.no_grad():
        return trainer.compute_loss(model.eval(), trainer.data_collator(rows_of_one_length(dataset))).item()


def test_a_coefficient_of_routers_that_a_base_does_not_have_is_refused(toy, tmp_path):
    _, data, prompt, model = toy
    dataset = prompt.training_rows(data.splits["train"])
    with pytest.raises(UserError, match=r"`router_aux_loss_coef` is 0\.1: Qwen3ForCausalLM has no routers"):
        choose_trainer(None, model, dataset, router_aux_loss_coef=0.1)
    model = random_base("llama 4", prompt.tokenizer)  # whose routers give their logits and no loss
    model.config.router_aux_loss_coef = 0.02
    loss = loss_of(OwnForwardTrainer, model, dataset, prompt, tmp_path, None)
    assert loss == pytest.approx(loss_of(OwnForwardTrainer, model, dataset, prompt, tmp_path, 0.0))
    with pytest.raises(UserError, match=r"`router_aux_loss_coef` is 0\.1, and .* no loss of its routers"):
        loss_of(OwnForwardTrainer, model, dataset, prompt, tmp_path, 0.1)


@pytest.mark.parametrize("whole, adapted", [("self_attn", "up_proj"), ("layers.1", "q_proj"), ("mlp", "q_proj")])
def test_a_layer_trained_whole_is_seen_by_what_is_compared(toy, whole, adapted):
    """PEFT's copy of an attention has a configuration of its own, so that it keeps its own attention."""
    _, data, prompt, model = toy
    args = ModelConfig(use_peft=True, lora_target_modules=[adapted], lora_modules_to_save=[whole])
    model = new_adapter(model, args, SFTConfig("out", use_cpu=True, bf16=False))
    LabelScorer(model, prompt).check(data.splits["test"]["text"])
    dataset = prompt.training_rows(data.splits["train"])
    chosen, _ = choose_trainer(SharedPrefixCollator.of("shared_prefix", dataset), model, dataset)
    fits = whole == "mlp"
    assert (FITS[model.get_base_model()] is not None, chosen is SharedPrefixTrainer) == (fits, fits)


def test_an_adapter_that_a_layer_cannot_have_is_refused_in_one_line(toy):
    _, data, prompt, _ = toy
    everything = ModelConfig(use_peft=True, lora_target_modules=["all-linear"], lora_dropout=0.0)
    args = SFTConfig("out", use_cpu=True, bf16=False)
    with pytest.raises(UserError, match=r"MambaForCausalLM cannot have this adapter: .*out_proj.*; change `lora_tar"):
        new_adapter(random_base("mamba", prompt.tokenizer), everything, args)
    model = new_adapter(random_base("llama 4", prompt.tokenizer), everything, args)  # whose router gives a pair
    with pytest.raises(UserError, match=r"its own forward fails .*, or other `lora_target_modules`, or take"):
        LabelScorer(model, prompt).check(data.splits["test"]["text"])


def saved(name: str, prompt, folder) -> list[str]:
    """Flags that train on such a base, in a folder as a user would have it."""
    random_base(name, prompt.tokenizer).save_pretrained(folder)
    prompt.tokenizer.save_pretrained(folder)
    return ["data/toy.yaml", "small.yaml", *SMALL, "--model_name_or_path", str(folder), "--output_dir", "run"]


def test_a_run_on_a_base_with_windows_answers_alike_everywhere(toy, tmp_path, capsys):
    flags = saved("mistral, window 16", toy[2], tmp_path / "windows")
    script("train_sft").main([*flags, "--learning_rate", "1e-3"])
    out = capsys.readouterr()
    assert f"{tmp_path}/windows does not fit the fast path" in out.err
    assert f"batching: {tmp_path}/windows does not fit `batching: shared_prefix`" in out.out
    assert json.loads((tmp_path / "run/metrics.json").read_text())["training"]["trainer"] == "OwnForwardTrainer"
    check_answers(tmp_path, capsys)


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["q_proj"]])
def test_one_end_of_a_tied_base_is_merged_without_the_other(toy, modules):
    _, data, prompt, model = toy
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules=modules, init_lora_weights=False)).eval()
    ids = torch.tensor(prompt.encode(data.splits["test"]["text"][:1]))
    with torch.no_grad():
        before = adapted(ids).logits
        plain_model = merged(adapted)
        torch.testing.assert_close(plain_model(ids).logits, before, atol=1e-4, rtol=1e-4)
    assert plain_model.config.tie_word_embeddings == (modules == ["q_proj"])


def test_a_run_with_an_attention_trained_whole_answers_alike_everywhere(toy, tmp_path, capsys):
    with (tmp_path / "small.yaml").open("a") as recipe:
        recipe.write("lora_modules_to_save: [self_attn]\nlora_target_modules: [up_proj]\n")
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, "--output_dir", "run", "--learning_rate", "1e-2"])
    assert "does not fit `batching: shared_prefix`" in capsys.readouterr().out
    check_answers(tmp_path, capsys)


def test_a_run_with_adapted_embeddings_on_a_tied_base_answers_alike_everywhere(toy, tmp_path, capsys):
    with (tmp_path / "small.yaml").open("a") as recipe:
        recipe.write("lora_modules_to_save:\nlora_target_modules: [q_proj, embed_tokens]\n")
    flags = [*SMALL, "--output_dir", "run", "--learning_rate", "1e-2", "--num_train_epochs", "4"]
    script("train_sft").main(["data/toy.yaml", "small.yaml", *flags])
    assert json.loads((tmp_path / "run/metrics.json").read_text())["training"]["trainer"] == "SharedPrefixTrainer"
    assert json.loads((tmp_path / "run/base/config.json").read_text())["tie_word_embeddings"]
    check_answers(tmp_path, capsys)


def check_answers(folder, capsys) -> None:
    """What a run says merged, and exported without this project, is what it said when it was trained."""
    rows = [json.loads(line) for line in (folder / "run/predictions.jsonl").read_text().splitlines()]
    classifier = Classifier.from_pretrained(folder / "run")
    recorded = np.array([list(row["probabilities"].values()) for row in rows])
    np.testing.assert_allclose(classifier.predict_proba([row["text"] for row in rows]), recorded, atol=1e-4)
    capsys.readouterr()
    command(["export", str(folder / "run"), str(folder / "exported")])
    found = re.search(r"256 of 256 labels equal, probabilities to (\S+)", capsys.readouterr().out)
    assert float(found[1]) < 1e-4
    model = AutoModelForCausalLM.from_pretrained(folder / "exported")
    prompt = classifier.scorer.encoder
    assert AutoTokenizer.from_pretrained(folder / "exported").get_vocab() == prompt.tokenizer.get_vocab()
    scores = one_label_at_a_time(model, prompt, [row["text"] for row in rows]) / classifier.calibration["temperature"]
    np.testing.assert_allclose(torch.tensor(scores).softmax(-1).numpy(), recorded, atol=1e-4)


def test_a_length_that_a_base_has_no_positions_for_is_refused_before_training(toy, tmp_path):
    """RoBERTa counts from its padding token on, so that it reads fewer than its config has; GPT-2 learns positions."""
    _, data, prompt, _ = toy
    row = prompt.training_rows(data.splits["train"])[0]["input_ids"]
    roberta, encoder = random_encoder("roberta", ["profit rose"])
    ids = encoder.encode(["profit rose"])[0]
    state = torch.get_rng_state()
    plain.check_longest(roberta, ids, 127)
    assert torch.equal(torch.get_rng_state(), state)  # though there was dropout
    with pytest.raises(UserError, match=r"its forward fails on 128 tokens, which `max_length` allows \(.*; lower it"):
        plain.check_longest(roberta, ids, 128)
    config = GPT2Config(vocab_size=len(prompt.tokenizer), n_embd=32, n_head=2, n_layer=2, n_positions=100)
    config.eos_token_id, config.bos_token_id = prompt.tokenizer.eos_token_id, None
    model = AutoModelForCausalLM.from_config(config).eval()
    plain.check_longest(model, row, 100, use_cache=False)
    assert not model.training
    model.save_pretrained(tmp_path / "gpt2")
    prompt.tokenizer.save_pretrained(tmp_path / "gpt2")
    flags = ["--model_name_or_path", str(tmp_path / "gpt2"), "--lora_modules_to_save", "wte"]
    for length, fails in (("101", True), ("100", False)):
        words = ["data/toy.yaml", "small.yaml", *SMALL, *flags, "--output_dir", "run", "--max_length", length]
        words += ["--lora_target_modules", "c_attn"]
        with pytest.raises(UserError, match="fails on 101 tokens") if fails else nullcontext():
            script("train_sft").main(words)


def test_an_encoder_without_a_bound_of_positions_is_read():
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16, pad_token_id=0)
    tokenizer = random_encoder("bert", ["profit rose"])[1].tokenizer
    assert config.max_position_embeddings == -1
    assert EncoderInput(tokenizer, config, 128).encode(["profit " * 200])[0][-1] == tokenizer.sep_token_id


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_score_does_not_depend_on_its_neighbours(name, capsys):
    texts = [text.format(company) for some in TEXTS.values() for text in some for company in COMPANIES[:2]]
    model, encoder = random_encoder(name, texts)
    alone = np.concatenate([EncoderScorer(model, encoder).probabilities([text]) for text in texts])
    np.testing.assert_allclose(EncoderScorer(model, encoder).probabilities(texts), alone, atol=1e-5)
    assert ("reads padding" in capsys.readouterr().err) == ENCODERS[name][1]
