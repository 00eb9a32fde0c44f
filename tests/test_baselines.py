"""Baselines: every architecture through train_cls.py, linear models, and the ladder over all of them."""

import io
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, script
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    FNetConfig,
    FNetModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    TrainingArguments,
    pipeline,
)

from fintune.data.load import load_data
from fintune.deploy.classifier import Classifier
from fintune.deploy.export import export
from fintune.errors import Stopped, UserError
from fintune.files import sha256
from fintune.model.embedding import Embedder, load_embedder, mean_pooled
from fintune.model.encoder import EncoderArguments, EncoderInput, check_tokenizer, load_encoder
from fintune.model.linear import build_classifier
from fintune.model.load import base_fingerprint, load_tokenizer
from fintune.recipe.layers import read_task
from fintune.recipe.recipe import parse_recipe
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.training import session
from fintune.training.checkpoints import CheckpointManifest

SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
DEBERTA_V3 = SIZES | {"relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"]}
DEBERTA_V3 |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
DEBERTA_V3 |= {"type_vocab_size": 0, "pooler_hidden_size": 32}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
ARCHITECTURES = {
    "bert": (BertModel, BertConfig, SIZES),
    "roberta": (RobertaModel, RobertaConfig, SIZES),
    "distilbert": (DistilBertModel, DistilBertConfig, {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2}),
    "fnet": (FNetModel, FNetConfig, SIZES),  # no attention
    "modernbert": (ModernBertModel, ModernBertConfig, SIZES | {"cls_token_id": 2, "sep_token_id": 1}),
    "t5": (T5Model, T5Config, T5_SIZES),
    "deberta-v3": (DebertaV2Model, DebertaV2Config, DEBERTA_V3),  # no SDPA
}
FLAGS = ["--num_train_epochs", "2", "--report_to", "none", "--disable_tqdm", "true", "--learning_rate", "1e-3"]


def save_tokenizer(folder, texts: list[str], template: str, name: str = "TokenizersBackend") -> None:
    """Lower-case words with special tokens as in `template`, such as `<s> $A </s>`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    pair = f"{template} $B:1 </s>:1"
    special = [("<s>", 2), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        model_max_length=400,
    ).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))


def save_encoder(folder, kind: str, texts: list[str], template: str | None = None) -> str:
    torch.manual_seed(0)
    model_class, config_class, sizes = ARCHITECTURES[kind]
    model_class(config_class(vocab_size=300, **IDS, **sizes)).save_pretrained(folder)
    save_tokenizer(folder, texts, template or ("$A </s>" if kind == "t5" else "<s> $A </s>"))
    return str(folder)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def texts(task_folder) -> list[str]:
    return [line.rpartition(",")[0] for line in (task_folder / "data/toy.csv").read_text().splitlines()[1:]]


def argv(base: str, *more: str) -> list[str]:
    recipe = str(ROOT / "configs/baselines/bert-base.yaml")
    return ["data/toy.yaml", recipe, "--model_name_or_path", base, "--output_dir", "runs/toy/x", *FLAGS, *more]


def parsed(base: str, *more: str):
    """(task, run_args, tokenizer, model) as train_cls.py has them."""
    recipe = parse_recipe(argv(base, *more), EncoderArguments, TrainingArguments)
    model = load_encoder(base, None, recipe.task, torch.device("cpu"), 0)
    return recipe.task, recipe.run_args, AutoTokenizer.from_pretrained(base), model


@pytest.mark.parametrize("kind", ["bert", "t5", "deberta-v3"])
def test_an_encoder_is_exported_with_a_card(kind, task_folder, texts):
    base = save_encoder(task_folder / "base", kind, texts)
    script("train_cls").main(argv(base))
    export(Path("runs/toy/x"), Path("plain"), None)
    classify = pipeline("text-classification", "plain")
    assert [row["label"] for row in classify(texts[:20])] == Classifier.from_pretrained("runs/toy/x")(texts[:20])[0]
    card = (task_folder / "plain/README.md").read_text()
    assert 'pipeline("text-classification", "plain"' in card
    assert str(task_folder) not in card


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_architecture_trains_and_is_scored(kind, task_folder, texts):
    base = save_encoder(task_folder / "base", kind, texts)
    script("train_cls").main(argv(base))

    folder = task_folder / "runs/toy/x"
    result = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == result["test"]["rows"] == result["data"]["rows"]["test"]
    assert result["test"]["texts_truncated"] == 0
    losses = [entry["loss"] for entry in result["training"]["log"] if "loss" in entry]
    assert all(np.isfinite(losses))
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == ["Up", "Up or down", "Down"]
    assert (folder / "recipe.yaml").is_file() and (folder / "model.safetensors").is_file()

    # what was saved answers as what was scored, one text at a time and without padding
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    for row in rows[:4]:
        logits = model.eval()(**tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)).logits
        logits = logits.double() / result["calibration"]["temperature"]
        probabilities = torch.softmax(logits[0], dim=-1).tolist()
        assert list(row["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)
        assert row["prediction"] == model.config.id2label[int(logits.argmax())]
    labels, probabilities = Classifier.from_pretrained(folder)([row["text"] for row in rows])
    assert labels == [row["prediction"] for row in rows]
    expected = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_it_learns(task_folder, texts):
    """By its training loss, in nats from log(3): the toy's test rows may be of sentences that training never saw."""
    base = save_encoder(task_folder / "base", "bert", texts)
    flags = ["--num_train_epochs", "20", "--early_stopping_patience", "20", "--logging_steps", "1"]
    flags += ["--learning_rate", "3e-3", "--per_device_train_batch_size", "8", "--seed", "3"]
    script("train_cls").main(argv(base, *flags))
    log = json.loads((task_folder / "runs/toy/x/metrics.json").read_text())["training"]["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(3), abs=0.2) and np.mean(losses[-10:]) < 0.4


def test_class_order_is_the_tasks_and_a_classifiers_own_head_is_not_kept(task_folder, texts):
    names = {0: "Down", 1: "Up", 2: "Up or down"}  # as FinBERT's, in another order than the task's
    folder = task_folder / "base"
    config = BertConfig(vocab_size=300, **IDS, **SIZES, id2label=names, label2id={v: k for k, v in names.items()})
    stored = BertForSequenceClassification(config)
    stored.save_pretrained(folder)
    save_tokenizer(folder, texts, "<s> $A </s>")
    task, _, _, model = parsed(str(folder))
    assert list(model.config.id2label.values()) == task.names == ["Up", "Up or down", "Down"]
    assert model.config.label2id == {"Up": 0, "Up or down": 1, "Down": 2}
    assert not torch.equal(model.classifier.weight, stored.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, stored.bert.pooler.dense.weight)


def test_a_head_of_other_size_is_replaced_and_a_damaged_encoder_refused(task_folder, texts):
    folder = task_folder / "base"
    BertForSequenceClassification(BertConfig(vocab_size=300, **IDS, **SIZES, num_labels=7)).save_pretrained(folder)
    save_tokenizer(folder, texts, "<s> $A </s>")
    assert parsed(str(folder))[3].classifier.weight.shape == (3, 32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"weights are missing.*bert\.encoder\.layer\.1"):
        parsed(str(folder))


def test_the_same_seed_draws_the_same_head_and_another_another(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    task, *_ = parsed(base)
    heads = [load_encoder(base, None, task, torch.device("cpu"), seed).classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_early_stopping_ends_and_keeps_the_best(task_folder, texts, monkeypatch):
    """Accuracies 0.2, 0.9, 0.3, 0.3: the second evaluation is the best, and two worse ones end the training."""
    base = save_encoder(task_folder / "base", "bert", texts)
    accuracies, weights = iter([0.2, 0.9, 0.3, 0.3, 1.0]), []
    module = script("train_cls")
    monkeypatch.setattr(module, "accuracy", lambda prediction: {"accuracy": next(accuracies)})
    save_run = module.save_run
    monkeypatch.setattr(
        module,
        "save_run",
        lambda *args: (weights.append(args[3].model.classifier.weight.detach().clone()), save_run(*args)),
    )
    flags = ["--num_train_epochs", "9", "--early_stopping_patience", "2", "--save_total_limit", "9"]
    module.main(argv(base, *flags))
    folder = task_folder / "runs/toy/x"
    training = json.loads((folder / "metrics.json").read_text())["training"]
    evaluated = [entry["step"] for entry in training["log"] if "eval_accuracy" in entry]
    assert len(evaluated) == 4
    assert training["best_step"] == evaluated[1] and training["best_eval_accuracy"] == 0.9
    best, last = (
        AutoModelForSequenceClassification.from_pretrained(folder / f"checkpoint-{step}").classifier.weight
        for step in (evaluated[1], evaluated[3])
    )
    assert torch.equal(weights[0], best) and not torch.equal(weights[0], last)


def test_an_encoder_stopped_within_an_epoch_goes_on_bit_for_bit(task_folder, texts, capsys, monkeypatch):
    """Rows of like length share a batch, in an order that a resumed epoch must find again."""
    base = save_encoder(task_folder / "base", "bert", texts)
    flags = ["--num_train_epochs", "4", "--per_device_train_batch_size", "8", "--output_dir"]
    script("train_cls").main(argv(base, *flags, "whole"))

    class StopAt(CheckpointManifest):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 25 and not self.signum:  # in the third epoch of 11 steps each
                os.kill(os.getpid(), signal.SIGTERM)
            super().on_step_end(args, state, control, **kwargs)

    stopped = pytest.raises(Stopped, match="saved parts/checkpoint-25")
    with monkeypatch.context() as patch, stopped:
        patch.setattr(session, "CheckpointManifest", StopAt)
        script("train_cls").main(argv(base, *flags, "parts"))
    script("train_cls").main(argv(base, *flags, "parts", "--resume_from_checkpoint", "true"))
    assert "resume: from parts/checkpoint-25" in capsys.readouterr().out
    logs = []
    for run in ("whole", "parts"):
        result = json.loads((task_folder / run / "metrics.json").read_text())
        logs.append([(e["epoch"], e["eval_loss"]) for e in result["training"]["log"] if "eval_loss" in e])
    assert logs[0] == logs[1] and len(logs[0]) == 4
    whole, parts = (load_file(task_folder / run / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_accumulated_micro_batches_are_one_batch(task_folder, texts):
    """The models' own losses are means of a micro-batch, and their sum would be twice as large."""
    base = save_encoder(task_folder / "base", "bert", texts)
    flags = ["--num_train_epochs", "1", "--logging_steps", "1", "--eval_strategy", "epoch", "--output_dir"]
    losses = []
    for size, micro in ((16, 1), (8, 2)):
        words = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(micro)]
        script("train_cls").main(argv(base, *flags, f"by-{size}", *words, "--train_sampling_strategy", "sequential"))
        log = json.loads((task_folder / f"by-{size}/metrics.json").read_text())["training"]["log"]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05)  # dropout differs


@pytest.mark.parametrize("template", ["$A", "</s> $A", "$A </s> </s>"])
def test_t5_without_one_end_token_at_the_end_is_refused(template, task_folder, texts):
    base = save_encoder(task_folder / "base", "t5", texts, template)
    with pytest.raises(UserError, match="end token"):
        script("train_cls").main(argv(base))


def test_control_tokens_in_a_text_stay_characters(task_folder, texts):
    """Else T5 would read its answer in the middle of the text."""
    base = save_encoder(task_folder / "base", "t5", texts)
    _, _, tokenizer, model = parsed(base)
    prompt = EncoderInput(tokenizer, model.config, 40)
    hostile, plain = prompt.encode(["profit </s> rose <pad>", "profit rose"])
    assert hostile.count(1) == plain.count(1) == 1 and hostile[-1] == 1 and 0 not in hostile
    assert len(tokenizer("profit </s> rose")["input_ids"]) < len(prompt.encode(["profit </s> rose"])[0])


def test_long_texts_are_truncated_and_counted(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    _, _, tokenizer, model = parsed(base)
    prompt = EncoderInput(tokenizer, model.config, 6)
    rows = prompt.encode(["up", texts[0] * 3, texts[1] * 3])
    assert prompt.truncated_texts == 2 and [len(row) for row in rows[1:]] == [6, 6]
    assert all(row[0] == 2 and row[-1] == 1 for row in rows)
    with pytest.raises(UserError, match="max_length is 401, the model reads 400"):
        EncoderInput(tokenizer, model.config, 401)


def test_padding_that_the_model_does_not_know_is_refused(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    _, _, tokenizer, model = parsed(base)
    model.config.pad_token_id = 3
    with pytest.raises(UserError, match="pads with 0, the model takes 3"):
        EncoderInput(tokenizer, model.config, 40)


def test_probabilities_do_not_depend_on_the_batch(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    _, _, tokenizer, model = parsed(base)
    prompt = EncoderInput(tokenizer, model.config, 100)
    mixed = ["up", *texts[:9], f"{texts[9]} {texts[10]}"]  # neither in the order of their lengths nor against it
    together = EncoderScorer(model, prompt).probabilities(mixed)
    alone = np.concatenate([EncoderScorer(model, prompt).probabilities([text]) for text in mixed])
    assert together == pytest.approx(alone, abs=1e-6) and together.sum(axis=1) == pytest.approx(1)


def test_a_tokenizer_that_is_rebuilt_otherwise_is_refused(task_folder, texts):
    """BertTokenizer's own code splits at punctuation; a tokenizer.json that splits at spaces alone is ignored."""
    folder = task_folder / "base"
    save_encoder(folder, "bert", texts)
    texts = ["profit rose, sales fell"]
    check_tokenizer(AutoTokenizer.from_pretrained(folder), str(folder), None, texts)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"reads 1 of 1 texts otherwise than its tokenizer\.json"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # as AutoTokenizer may
        check_tokenizer(tokenizer, str(folder), None, texts)


@pytest.mark.parametrize(
    "kind, attention", [("bert", "sdpa"), ("roberta", "sdpa"), ("t5", "sdpa"), ("deberta-v3", "eager")]
)
def test_an_encoder_has_the_attention_that_transformers_chooses(kind, attention, task_folder, texts, capsys):
    base = save_encoder(task_folder / "base", kind, texts)
    _, _, tokenizer, model = parsed(base)
    assert f"attention {attention}, " in capsys.readouterr().out
    mixed = ["up", *texts[:5], f"{texts[5]} {texts[6]}"]
    together = EncoderScorer(model, EncoderInput(tokenizer, model.config, 100)).probabilities(mixed)
    with torch.no_grad():
        alone = [model.eval()(torch.tensor([tokenizer(text)["input_ids"]])).logits.double()[0] for text in mixed]
    assert together == pytest.approx(torch.softmax(torch.stack(alone), -1).numpy(), abs=1e-6)
    if kind != "t5":
        assert load_embedder(base, None, 100, texts).model.config._attn_implementation == attention


ODD_TEXTS = ["ｐrofit … ½ rose  by  a ﬁrd™", " up ", "of\tAlder", "“Alder” – €5", "İstanbul"]


def test_deberta_v3_reads_texts_as_its_sentencepiece_vocabulary_does(task_folder, texts):
    folder, vocabulary = task_folder / "base", io.BytesIO()
    save_encoder(folder, "deberta-v3", texts)
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}  # as microsoft/deberta-v3-base has them
    SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "[SEP] MASK"]),
        model_writer=vocabulary,
        vocab_size=70,
        minloglevel=2,
        **pieces,
        **ids,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "spm.model").write_bytes(vocabulary.getvalue())
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    raw = SentencePieceProcessor(model_proto=vocabulary.getvalue())

    script("train_cls").main(argv(str(folder)))
    run = load_tokenizer("runs/toy/x", None)
    for tokenizer in (load_tokenizer(str(folder), None), run):
        for text in [*texts[:20], *ODD_TEXTS]:
            assert tokenizer(text)["input_ids"] == [1, *raw.encode(text), 2], text
        for text in ("a [SEP] b", "[PAD]", "［MASK］ x[CLS]"):  # stay characters
            found = tokenizer(text, split_special_tokens=True)["input_ids"][1:-1]
            assert not {0, 1, 2, tokenizer.mask_token_id} & set(found), text


def test_pickled_weights_are_refused(task_folder, texts):
    folder = task_folder / "base"
    base = save_encoder(folder, "bert", texts)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        script("train_cls").main(argv(base))


@pytest.mark.parametrize("name", ["majority", "tfidf"])
def test_linear_models(name, task_folder):
    recipe = str(ROOT / f"configs/baselines/{name}.yaml")
    script("train_linear").main(["data/toy.yaml", recipe, "--report_to", "none"])
    folder = task_folder / f"runs/toy/{name}"
    result = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert (folder / "recipe.yaml").is_file() and len(rows) == result["test"]["rows"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    assert list(rows[0]["probabilities"]) == ["Up", "Up or down", "Down"]
    if name == "majority":
        assert len({row["prediction"] for row in rows}) == 1
    else:
        assert result["test"]["accuracy"] > 0.9
        best = max(entry["eval_accuracy"] for entry in result["training"]["log"])
        assert result["training"]["best_eval_accuracy"] == best


def frozen(base: str, *lines: str) -> list[str]:
    """Words of train_linear.py for the frozen MiniLM's recipe on another encoder."""
    recipe = [f"extends: {ROOT}/configs/baselines/minilm-l6-frozen.yaml", f"model_name_or_path: {base}", *lines]
    Path("frozen.yaml").write_text("\n".join([*recipe, "model_revision: null", "report_to: none"]) + "\n")
    return ["data/toy.yaml", "frozen.yaml"]


def test_an_embedding_is_the_mean_over_a_texts_tokens_at_length_one(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    mixed = ["up", *texts[:9], f"{texts[9]} {texts[10]}"]  # padded together, in no order of their lengths
    found = load_embedder(base, None, 100, texts).transform(mixed)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    for row, text in zip(found, mixed, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])  # alone, and so without padding
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].numpy().mean(axis=0)
        assert row == pytest.approx(mean / np.sqrt((mean**2).sum()), abs=1e-6)


def test_what_stands_at_padding_does_not_reach_an_embedding():
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    before = mean_pooled(states, mask)
    states[0, 3:] = 1e4
    torch.testing.assert_close(mean_pooled(states, mask), before)
    torch.testing.assert_close(before[0], torch.nn.functional.normalize(states[0, :3].mean(dim=0), dim=0))


def test_a_frozen_encoder_embeds_each_split_once_and_keeps_the_best_C(task_folder, texts, monkeypatch):
    base, embedded, embed = save_encoder(task_folder / "base", "bert", texts), [], Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, texts: embedded.append(texts) or embed(self, texts))
    script("train_linear").main(frozen(base, "C: [1e-6, 300, 1e-5]"))
    data = load_data(read_task(Path("data/toy.yaml")))
    splits = [list(data.splits[split]["text"]) for split in ("train", "validation", "test")]
    assert [list(each) for each in embedded[2:]] == splits  # after two texts together, and one of them alone

    folder = task_folder / "runs/toy/frozen"
    result = json.loads((folder / "metrics.json").read_text())
    accuracies = {entry["C"]: entry["eval_accuracy"] for entry in result["training"]["log"]}
    assert accuracies[300] == max(accuracies.values()) == result["training"]["best_eval_accuracy"] > accuracies[1e-6]
    embedder = load_embedder(base, None, 256, texts)
    known, unknown = embedder.transform(splits[0]), embedder.transform(splits[2])
    fitted = LogisticRegression(C=300, max_iter=1000).fit(known, data.splits["train"]["label"])
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    answers = [["Up", "Up or down", "Down"][label] for label in fitted.predict(unknown)]
    assert [row["prediction"] for row in rows] == answers

    summary, head = result["model"], 3 * 32 + 3
    assert (summary["base"], summary["weights"], summary["fingerprint"]) == (base, None, base_fingerprint(base, None))
    assert summary["trained_parameters"] == head
    assert summary["parameters"] == AutoModel.from_pretrained(base).num_parameters() + head
    assert result["test"]["texts_truncated"] == 0


def test_a_frozen_encoder_honours_class_weights_and_truncates(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    script("train_linear").main(frozen(base, "max_length: 6"))
    result = json.loads((task_folder / "runs/toy/frozen/metrics.json").read_text())
    assert result["test"]["texts_truncated"] == result["test"]["rows"]
    args = SimpleNamespace(linear_model="embedding")
    assert build_classifier(args, 1.0, "balanced").class_weight == "balanced"


def test_what_cannot_be_embedded_is_refused_in_one_line(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    main = script("train_linear").main

    def classify(base: str, length: str) -> None:
        script("train_cls").main(argv(base, "--max_length", length))

    for line, reason in (
        ("linear_model: tfidf", "is not read by linear_model: tfidf; take it out"),
        ("model_name_or_path: null", "embedding needs a model_name_or_path, and no other takes one"),
    ):
        with pytest.raises(UserError, match=reason):
            main(frozen(base, line))
    weights = load_file(f"{base}/model.safetensors")
    lacking = {key: value for key, value in weights.items() if "query.weight" not in key and "pooler" not in key}
    save_file(lacking, f"{base}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing or of the wrong shape, first .*query\.weight"):
        main(frozen(base))
    with pytest.raises(UserError, match="it has a decoder"):
        main(frozen(save_encoder(task_folder / "t5", "t5", texts)))
    with pytest.raises(UserError, match="FNetModel reads padding, so that a text's embedding depends on its neigh"):
        main(frozen(save_encoder(task_folder / "fnet", "fnet", texts)))
    roberta = Path(save_encoder(task_folder / "roberta", "roberta", texts))  # 512 positions, the first for padding
    config = json.loads((roberta / "tokenizer_config.json").read_text()) | {"model_max_length": 600}
    (roberta / "tokenizer_config.json").write_text(json.dumps(config))
    for run in (lambda: main(frozen(str(roberta), "max_length: 512")), lambda: classify(str(roberta), "512")):
        with pytest.raises(UserError, match="its forward fails on 512 tokens, which `max_length` allows"):
            run()


def test_an_encoder_with_other_weights_is_refused(task_folder, texts):
    base = save_encoder(task_folder / "base", "bert", texts)
    script("train_cls").main(argv(base))
    run = task_folder / "runs/toy/x"
    weights = {key.replace("query", "quarry"): value for key, value in load_file(run / "model.safetensors").items()}
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors: not what was saved"):
        Classifier.from_pretrained(run)
    result = json.loads((run / "metrics.json").read_text())
    files = result["files"] | {"model.safetensors": sha256(run / "model.safetensors")}
    (run / "metrics.json").write_text(json.dumps(result | {"files": files}))
    with pytest.raises(UserError, match=r"its weights lack bert\.encoder.*query"):
        Classifier.from_pretrained(run)
