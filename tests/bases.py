"""Small random causal language models of many architectures, for what must hold on every base."""

import re

import numpy as np
import torch
import transformers

from fintune.model.encoder import EncoderInput

MIXED = ["sliding_attention", "full_attention"]
GROUPED = {"num_key_value_heads": 2}
HEAD = {**GROUPED, "head_dim": 16}
LINEAR = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
LINEAR |= {f"linear_{kind}_head_dim": 16 for kind in ("key", "value")}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
DEEPSEEK = {**LATENT, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1}
DEEPSEEK |= {"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 512}

# name -> config class, its keys, whether the scorer's tree fits; the toy task's prompts have 43 to 47 tokens
BASES = {
    "llama": ("LlamaConfig", GROUPED, True),
    "qwen3": ("Qwen3Config", HEAD, True),
    "phi3": ("Phi3Config", GROUPED, True),
    "gpt-neox": ("GPTNeoXConfig", {}, True),
    "olmo2": ("Olmo2Config", GROUPED, True),
    "mistral, window above every row": ("MistralConfig", {**GROUPED, "sliding_window": 200}, True),
    "mistral, window 60": ("MistralConfig", {**GROUPED, "sliding_window": 60}, False),
    "mistral, window 16": ("MistralConfig", {**GROUPED, "sliding_window": 16}, False),
    "mistral, window 32": ("MistralConfig", {**GROUPED, "sliding_window": 32}, False),
    "mistral, window 8": ("MistralConfig", {**GROUPED, "sliding_window": 8}, False),
    "qwen3, window 16": (
        "Qwen3Config",
        {**HEAD, "use_sliding_window": True, "sliding_window": 16, "layer_types": MIXED},
        False,
    ),
    "gemma2, soft caps": ("Gemma2Config", {**HEAD, "sliding_window": 512}, False),
    "gemma3, window 16": ("Gemma3TextConfig", {**HEAD, "sliding_window": 16, "layer_types": MIXED}, False),
    "gemma4, shared keys": (
        "Gemma4TextConfig",
        {
            **HEAD,
            "num_kv_shared_layers": 2,
            "num_hidden_layers": 4,
            "layer_types": MIXED * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 512,
        },
        False,
    ),
    "gpt-oss, sinks": ("GptOssConfig", {**HEAD, **EXPERTS, "sliding_window": 512}, False),
    "qwen3.5, linear attention": (
        "Qwen3_5TextConfig",
        {**HEAD, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
        False,
    ),
    "stablelm": ("StableLmConfig", GROUPED, False),
    "nemotron": ("NemotronConfig", GROUPED, False),
    "diffllama": ("DiffLlamaConfig", GROUPED, False),
    "doge": ("DogeConfig", HEAD, False),
    "gpt-j": ("GPTJConfig", GPT, False),
    "codegen": ("CodeGenConfig", GPT, False),
    "bloom, alibi": ("BloomConfig", {"n_layer": 2, "n_head": 4}, False),
    "granite, scaled logits": ("GraniteConfig", {**GROUPED, "logits_scaling": 4.0}, False),
    "cohere, scaled logits": ("CohereConfig", GROUPED, False),
    "llama 4": (
        "Llama4TextConfig",
        {**HEAD, **EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": 16},
        False,
    ),
    "deepseek-v3": ("DeepseekV3Config", DEEPSEEK, False),
    "modernbert-decoder, window 16": (
        "ModernBertDecoderConfig",
        {"local_attention": 16, "bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
        False,
    ),
    "mamba": ("MambaConfig", {"state_size": 8}, False),
    "falcon-h1, mixture": ("FalconH1Config", {**GROUPED, **MAMBA, "mamba_d_ssm": 128}, False),
    "bamba, mixture": ("BambaConfig", {**GROUPED, **MAMBA, "attn_layer_indices": [1]}, False),
    "jamba, mixture": (
        "JambaConfig",
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
        False,
    ),
    "zamba2, mixture": (
        "Zamba2Config",
        {
            "num_key_value_heads": 4,
            "mamba_d_state": 16,
            "n_mamba_heads": 4,
            "mamba_headdim": 32,
            "mamba_ngroups": 1,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
        },
        False,
    ),
}

ENCODERS = {  # name -> config class, whether it mixes padding into a text
    "bert": ("BertConfig", False),
    "roberta": ("RobertaConfig", False),
    "distilbert": ("DistilBertConfig", False),
    "electra": ("ElectraConfig", False),
    "mpnet": ("MPNetConfig", False),
    "modernbert": ("ModernBertConfig", False),
    "fnet": ("FNetConfig", True),
    "convbert": ("ConvBertConfig", True),
    "nystromformer": ("NystromformerConfig", True),
}


def random_base(name: str, tokenizer, attention: str | None = None, dtype: torch.dtype = torch.float32):
    """A model of BASES."""
    kind, keys, _ = BASES[name]
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 512}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, kind)(**{**sizes, **ends, **keys})
    torch.manual_seed(0)
    given = {"attn_implementation": attention} if attention else {}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **given).eval()
    shake(model)
    model.config.name_or_path = name
    return model.to(dtype)


@torch.no_grad()
def shake(model) -> None:
    """Weights far from nothing, as trained ones are."""
    for weights in model.parameters():
        noise = torch.randn_like(weights)
        weights.copy_(noise * 0.15 if weights.dim() > 1 else weights + noise * 0.1)


@torch.no_grad()
def one_label_at_a_time(model, prompt, texts) -> np.ndarray:
    """(texts, labels) log-likelihoods by the model's own forward of single rows."""
    scores = []
    for ids in prompt.encode(texts):
        row = []
        for label in prompt.label_ids:
            log_probs = model(torch.tensor([ids + label]), use_cache=False).logits[0].double().log_softmax(-1)
            row.append(sum(log_probs[len(ids) + i - 1, token].item() for i, token in enumerate(label)))
        scores.append(row)
    return np.array(scores)


def random_encoder(name: str, texts: list[str]):
    """A classifier of ENCODERS with three labels, and what reads the words of the texts for it."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 128, "num_labels": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    config = getattr(transformers, ENCODERS[name][0])(**sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    shake(model)
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=128)
    return model, EncoderInput(tokenizer, config, 120)
