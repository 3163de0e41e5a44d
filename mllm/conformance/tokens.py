"""A tiny tokenizer with the special tokens that a family's processor and configuration ask for."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
SPECIALS = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
OPENING = "<|im_start|>"


def tiny_tokenizer(named: Mapping[str, str], others: Sequence[str]) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and special tokens: `named` as attributes of the tokenizer, as families name theirs, and `others`.

    Raises ValueError for more tokens than VOCABULARY.
    """
    known = list(dict.fromkeys([*SPECIALS.values(), OPENING, *named.values(), *others]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*known, *alphabet])}
    if len(vocabulary) > VOCABULARY:
        raise ValueError(f"{len(vocabulary)} tokens are more than the {VOCABULARY} of tiny models")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=dict(named), **SPECIALS)
    made.add_special_tokens({"extra_special_tokens": [OPENING, *others]}, replace_extra_special_tokens=False)
    return made


def tiny_template(image: str) -> str:
    """A chat template that writes an image as the string `image`: turns of ChatML, each with a list of parts."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}{{ '" + image + "' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
