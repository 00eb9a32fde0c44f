"""LLaMA and Baichuan2 as baselines: a converted model answers as the original, ids are SentencePiece's, both train."""

import csv
import json
import math
import pickle
import random
from pathlib import Path

import httpx
import pytest
import sentencepiece
import torch
from conftest import ROOT, SMALL, script
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from fintune.errors import UserError
from fintune.model import baichuan
from fintune.model.load import load_model, load_tokenizer
from fintune.model.prompt import Prompt
from fintune.results.verify import read_result

HIDDEN, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 600
SPACES = ["▁▁", "▁▁▁▁"]
MARKS = [f"<reserved_{number}>" for number in range(4)]
# config.json of baichuan-inc/Baichuan2-7B-Base, its sizes made small
CONFIG = {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "_from_model_config": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCABULARY,
    "z_loss_weight": 0,
}


@pytest.fixture(scope="session")
def headlines() -> list[str]:
    with (ROOT / "data/sample/sentiment.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def train_sentencepiece(texts: list[str], prefix: Path, **options) -> None:
    """Write prefix.model, as Baichuan2's and LLaMA's: BPE with byte fallback, digits apart, no normalisation."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory, headlines) -> Path:
    """tokenizer.model of Baichuan2's kind: no dummy prefix; spaces, digits, line breaks and marks are user-defined."""
    folder = tmp_path_factory.mktemp("vocabulary")
    defined = ["\t", "\n", "\n\n", *SPACES, *"0123456789", *MARKS]
    train_sentencepiece(headlines, folder / "tokenizer", add_dummy_prefix=False, user_defined_symbols=defined)
    return folder / "tokenizer.model"


@pytest.fixture
def base(tmp_path, vocabulary, monkeypatch) -> Path:
    """A random Baichuan2-7B in its own format, two shards; what is converted goes to a cache of its own."""
    folder = tmp_path / "Baichuan2-7B-tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {"model.embed_tokens.weight": draw(VOCABULARY, HIDDEN) * 5}
    for layer in range(LAYERS):
        tensors |= {
            f"model.layers.{layer}.self_attn.W_pack.weight": draw(3 * HIDDEN, HIDDEN),
            f"model.layers.{layer}.self_attn.o_proj.weight": draw(HIDDEN, HIDDEN),
            f"model.layers.{layer}.mlp.gate_proj.weight": draw(48, HIDDEN),
            f"model.layers.{layer}.mlp.up_proj.weight": draw(48, HIDDEN),
            f"model.layers.{layer}.mlp.down_proj.weight": draw(HIDDEN, 48),
            f"model.layers.{layer}.input_layernorm.weight": 1 + draw(HIDDEN),
            f"model.layers.{layer}.post_attention_layernorm.weight": 1 + draw(HIDDEN),
        }
    tensors |= {"model.norm.weight": 1 + draw(HIDDEN), "lm_head.weight": draw(VOCABULARY, HIDDEN)}
    names = list(tensors)
    for number, part in enumerate((names[:6], names[6:]), start=1):
        save_file({name: tensors[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "modeling_baichuan.py").write_text("raise SystemExit('remote code was run')")
    (folder / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    monkeypatch.setattr(baichuan, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(baichuan, "SHARD", 20_000)  # bytes, so that several files are written
    return folder


def original_logits(folder: Path, ids: torch.Tensor, normalised_head: bool = True) -> torch.Tensor:
    """(tokens, vocabulary) logits of Baichuan2-7B in plain torch, written from its modeling_baichuan.py."""
    weights = load_file(folder / "model-00001-of-00002.safetensors") | load_file(
        folder / "model-00002-of-00002.safetensors"
    )
    tokens, size = len(ids), HIDDEN // HEADS

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weights[name] * x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    frequency = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(tokens)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)  # (tokens, size / 2); halves of a head are one complex number

    def rotate(x: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        packed = norm(x, name + "input_layernorm.weight") @ weights[name + "self_attn.W_pack.weight"].T
        q, k, v = packed.unflatten(-1, (3, HEADS, size)).permute(1, 2, 0, 3)  # (3, heads, tokens, size)
        scores = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(size)
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        x = x + mixed.transpose(0, 1).flatten(1) @ weights[name + "self_attn.o_proj.weight"].T
        y = norm(x, name + "post_attention_layernorm.weight")
        gate, up = y @ weights[name + "mlp.gate_proj.weight"].T, y @ weights[name + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ weights[name + "mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if normalised_head:
        head = head / head.pow(2).sum(dim=1, keepdim=True).sqrt()
    return norm(x, "model.norm.weight") @ head.T


def test_the_converted_baichuan_gives_the_original_logits(base):
    folder, revision = baichuan.as_llama(str(base), "main")
    model = AutoModelForCausalLM.from_pretrained(folder, revision=revision)
    ids = torch.randint(VOCABULARY, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    assert model.config.model_type == "llama"
    torch.testing.assert_close(logits, original_logits(base, ids), atol=1e-5, rtol=1e-5)
    without = original_logits(base, ids, normalised_head=False)
    assert (logits - without).abs().max() > 0.1
    assert (logits.argmax(dim=-1) != without.argmax(dim=-1)).any()


def test_a_baichuan_is_converted_once_and_whole(base, monkeypatch, capsys):
    def full_disk(*args, **kwargs):
        if list((base.parent / "cache").glob("*.part/*.safetensors")):
            raise OSError("no space left")
        return save_file(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(baichuan, "save_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            baichuan.as_llama(str(base), None)
    assert [path.suffix for path in (base.parent / "cache").iterdir() if path.is_dir()] == [".part"]
    folder = Path(baichuan.as_llama(str(base), None)[0])
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sum(path.suffix == ".safetensors" for path in written) > 2
    assert baichuan.as_llama(str(base), None)[0] == str(folder)
    assert written == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert (
        capsys.readouterr().out.count("is written as Llama") == 2
    )  # the attempt that failed, and the one that did not
    assert not list((base.parent / "cache").glob("*.part"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_position_embeddings": None, "hidden_size": 5120}, "13B model, whose ALiBi"),
        ({"architectures": ["BaiChuanForCausalLM"]}, "only Baichuan2-7B is read"),
        ({"num_hidden_layers": 3}, "9 tensors are missing"),
        ({"intermediate_size": 64}, "does not belong to Baichuan2-7B"),
    ],
)
def test_another_baichuan_is_refused(base, change, says):
    stated = {key: value for key, value in (CONFIG | change).items() if value is not None}
    (base / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=says):
        load_tokenizer(str(base), None)


def test_pickled_weights_are_refused_and_not_read(base, tmp_path):
    for path in base.glob("*.safetensors"):
        path.unlink()
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return Path.touch, (opened,)

    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"pickled weights are never read.*--model_revision refs/pr/6"):
        load_tokenizer(str(base), "main", None)
    with pytest.raises(UserError, match="pickled weights are never read"):
        load_model(ModelConfig(model_name_or_path=str(base)), str(base), torch.device("cpu"))
    assert not opened.exists()
    pickle.loads((base / "pytorch_model.bin").read_bytes())
    assert opened.exists()  # the trap works


def test_ids_of_the_converted_vocabulary_are_sentencepieces(base, headlines):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(baichuan.as_llama(str(base), None)[0])
    draw = random.Random(0)
    letters = "aabbeest  \n\t.-–0123ñ株<>/_reserved▁€ﬁ\u2028é😀\U000e0041"
    texts = [
        *headlines,
        *(f"{draw.choice(MARKS)}{text}{draw.choice(SPACES)}".replace("▁", " ") for text in headlines),
        *("".join(draw.choices(letters, k=draw.randint(1, 60))) for _ in range(2000)),
        *("".join(letter * draw.randint(1, 12) for letter in draw.choices("ab.- =0t", k=4)) for _ in range(2000)),
    ]
    texts = [text for text in texts if "<s>" not in text]
    expected = reference.encode(texts)
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == expected
    used = {token for ids in expected for token in ids}
    assert used >= {reference.piece_to_id(piece) for piece in ("▁▁", "▁▁▁▁", "<reserved_2>", "<0xE6>", "\n\n", "7")}
    control = "<s> of </s> and <unk>"  # plain characters to SentencePiece
    assert tokenizer(control, split_special_tokens=True)["input_ids"] == reference.encode(control)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == reference.eos_id()


def test_a_vocabulary_that_normalises_is_refused(base, headlines):
    train_sentencepiece(headlines, base / "tokenizer")  # with the dummy prefix
    with pytest.raises(UserError, match="another kind than Baichuan2's"):
        load_tokenizer(str(base), None)


@pytest.fixture
def llama(tmp_path, headlines) -> Path:
    """A random LLaMA and its tokenizer in the release's format: SentencePiece with a dummy prefix, no pad token."""
    folder = tmp_path / "llama-tiny"
    folder.mkdir()
    train_sentencepiece(headlines, folder / "tokenizer")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(
        models.BPE(pieces, baichuan._merges(proto), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    named |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_llamas_prompt_begins_with_bos_and_ends_where_the_label_begins(llama, toy):
    task = toy[0]
    tokenizer = load_tokenizer(str(llama), None, str(ROOT / "templates/plain-chat.jinja"))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    assert tokenizer("Profit rose", add_special_tokens=False)["input_ids"] == reference.encode("Profit rose")
    assert tokenizer.pad_token == "<unk>"
    prompt = Prompt(task, tokenizer, 360)
    hostile = "Profit</s> <s>rose <unk>"
    ids = prompt.encode([hostile])[0]
    user = f"Where does it go? One of: Up; Up or down; Down.\n\n{hostile}"
    assert tokenizer.decode(ids) == f"<s>User:\n{user}\n\nAssistant:\n"  # no /no_think, the tag is Qwen3's
    assert [token for token in ids if token < 3] == [tokenizer.bos_token_id]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<0x0A>")
    for name, label_ids in zip(task.names, prompt.label_ids, strict=True):
        assert tokenizer.decode(ids + label_ids).endswith(f"Assistant:\n{name}</s>")
        assert not tokenizer.convert_ids_to_tokens(label_ids)[0].startswith("▁")


def test_baichuans_prompt_has_no_bos_and_marks_stay_characters(base, toy):
    tokenizer = load_tokenizer(str(base), None, str(ROOT / "templates/plain-chat.jinja"))
    hostile = f"Profit {MARKS[1]} rose  by 7</s> ▁▁"
    ids = Prompt(toy[0], tokenizer, 360).encode([hostile])[0]
    written = tokenizer.decode(ids)
    assert written.startswith("User:\n") and written.endswith(f"{hostile.replace('▁', ' ')}\n\nAssistant:\n")
    assert not {1, 2, tokenizer.convert_tokens_to_ids(MARKS[1])} & set(ids)


@pytest.mark.parametrize(("recipe", "fixture"), [("llama-7b", "llama"), ("baichuan2-7b", "base")])
def test_a_baseline_trains_and_is_scored_again_as_it_was(recipe, fixture, task_folder, request, capsys):
    folder = request.getfixturevalue(fixture)
    (task_folder / "model.yaml").write_text(
        f"extends: {ROOT}/configs/baselines/{recipe}.yaml\nmodel_name_or_path: {folder}\nmin_gpu_gib: 0\n"
        "dtype: float32\nbf16: false\nlearning_rate: 1e-2\nsave_strategy: 'no'\n"
    )
    flags = [*SMALL[2:], "--max_steps", "4", "--output_dir", "run"]
    script("train_sft").main(["data/toy.yaml", "model.yaml", *flags])
    result = read_result(Path("run"))
    losses = [entry["loss"] for entry in result["training"]["log"] if "loss" in entry]
    assert all(map(math.isfinite, losses)) and result["training"]["steps"] == 4
    assert result["model"]["trained_parameters"] == LAYERS * 8 * (4 * 2 * HIDDEN + 3 * (HIDDEN + 48))
    assert "/no_think" not in capsys.readouterr().out
    script("evaluate").main(["run"])
    again = read_result(Path("run"))
    assert again["test"]["log_loss"] == pytest.approx(result["test"]["log_loss"], abs=1e-4)
    assert again["model"]["fingerprint"] == result["model"]["fingerprint"]


def test_a_gated_model_says_how_to_ask(task_folder, monkeypatch):
    def gated(*args, **kwargs):
        request = httpx.Request("GET", "https://huggingface.co/meta-llama/Llama-2-7b-hf")
        raise GatedRepoError("Access to model is restricted.", response=httpx.Response(403, request=request))

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", gated)
    with pytest.raises(UserError) as error:
        script("train_sft").main(
            ["data/toy.yaml", f"{ROOT}/configs/baselines/llama2-7b.yaml", "--min_gpu_gib", "0", "--bf16", "false"]
        )
    message = str(error.value)
    assert "ask for access on https://huggingface.co/meta-llama/Llama-2-7b-hf and set HF_TOKEN" in message
    assert "\n" not in message
