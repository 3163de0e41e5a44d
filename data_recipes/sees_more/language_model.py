"""A language model of random weights for the few words that the scenes are told in, and its tokenizer.

Its weights are a hundredth of the demo's, so that a run on two cores takes minutes. Words that it doesn't know are spelled,
a token a letter.
"""

from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_recipes.sees_more.generate import BY
from data_recipes.sees_more.vocabulary import COLORS, KNOWN_WORDS, SHAPES
from mllm.files import atomic_directory
from mllm.outputs import check_directory

SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>")
ROLES = ("system", "user", "assistant")
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the questions, a token each; any other word of a-z is its letters."""
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    names = dict.fromkeys([*SPECIAL, *ROLES, *KNOWN_WORDS, *COLORS, *SHAPES, *letters])
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<image>"],
    )


def write_language_model(directory: Path, seed: int) -> None:
    """Write tokenizer and weights. Raises UserError where the directory holds files of another origin."""
    check_directory(directory, BY)
    tokenizer = build_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **SHAPE))
    with atomic_directory(directory, BY) as root:
        model.save_pretrained(root)
        tokenizer.save_pretrained(root)
