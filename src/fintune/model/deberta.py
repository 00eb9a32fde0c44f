"""DeBERTa-v3's tokenizer as its SentencePiece vocabulary says.

transformers 5 builds DeBERTa's tokenizer from spm.model without the vocabulary's own normalizer, so that `…`, `½`, `™`
or a full-width letter would be other tokens than in pre-training; and it reads `[SEP]` in a text as the control token.
"""

from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf


def with_own_normalizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer with the normalizer of its `vocab_file`, of a class that `from_pretrained` reads back as it is."""
    vocabulary = import_protobuf().ModelProto.FromString(Path(tokenizer.vocab_file).read_bytes())
    backend = tokenizer.backend_tokenizer
    charsmap = vocabulary.normalizer_spec.precompiled_charsmap
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    steps += [normalizers.Replace(token, f"{token[0]} {token[1:]}") for token in tokenizer.all_special_tokens]
    backend.normalizer = normalizers.Sequence([*steps, backend.normalizer])
    own = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
    )
    own.name_or_path = tokenizer.name_or_path
    return own
