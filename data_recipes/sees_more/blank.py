"""Write a small language model that knows nothing, and a tokenizer of its own: `python -m data_recipes.sees_more.blank`."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mllm.commands.shared import run_command
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.outputs import check_directory

BY = "python -m data_recipes.sees_more.blank"
FIRST = "python -m data_recipes.sees_more data_recipes/sees_more/grounding_data.yaml"
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>")
VOCABULARY = 400  # 256 bytes and the words that are asked with
# What stands before the digits of a share is one token, a digit is one, a word is one.
PIECES = r"\[0\.|, 0\.|\d| ?[A-Za-z]+|[^A-Za-z\d\s]+|\s"
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}


def write_blank(texts: Path, output: Path, seed: int = 0) -> int:
    """Write a model of random weights to `output`, whole or not at all; returns its number of parameters.

    texts: samples in words, which the tokenizer is trained on. Raises UserError where it isn't there.
    """
    if not texts.is_file():
        raise UserError(f"{texts} does not exist; write the data first: {FIRST}")
    check_directory(output, BY)
    tokenizer = _tokenizer(texts)
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True, **ids)
    )
    with atomic_directory(output, BY) as root:
        model.save_pretrained(root)
        tokenizer.save_pretrained(root)
    return model.num_parameters()


def _tokenizer(texts: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of few words, in which a box in LLaVA's form is 13 tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIALS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_words(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>"],
    )


def _words(texts: Path) -> Iterator[str]:
    for line in texts.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            yield message["role"]
            yield from (part["text"] for part in message["content"])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=BY, description="Write a small language model of random weights, and a tokenizer of the words of the data."
    )
    parser.add_argument(
        "--texts",
        type=Path,
        default=Path("runs/grounding/data/located_in_words.jsonl"),
        metavar="FILE",
        help="Samples in words that the generator wrote (default: %(default)s).",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/grounding/blank"),
        metavar="DIR",
        help="Directory that is written (default: %(default)s).",
    )
    options = parser.parse_args(arguments)
    count = write_blank(options.texts, options.output)
    print(f"{options.output}: {count:,} parameters")


if __name__ == "__main__":
    run_command(main)
