"""A byte-level BPE tokenizer for the text side, learned from the captions."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(
    captions: Iterable[str], vocabulary_size: int, max_length: int, pads_to_full_length: bool = False
) -> PreTrainedTokenizerFast:
    """Learn a lower-casing byte-level BPE of at most `vocabulary_size` entries; ids are start, bytes, end, padded.

    pads_to_full_length: as SigLIP's text side needs it, which reads the last position and takes no attention mask.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        # Not END third: for an end token of id 2, transformers reads the text's feature at its highest id instead.
        special_tokens=[PAD, END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (START, END)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=list(ids.items())
    )
    masks = {"model_input_names": ["input_ids"]} if pads_to_full_length else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=max_length, **masks
    )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask, int64 [B, T]; what is longer than the model's length loses its end.

    A tokenizer that knows of no attention mask (SigLIP's) pads to the full length, and its padding is attended to.
    """
    padding = True if "attention_mask" in tokenizer.model_input_names else "max_length"
    output = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
    input_ids = output["input_ids"]
    return input_ids, output.get("attention_mask", torch.ones_like(input_ids))


def too_long(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """How many of the texts lose their end."""
    lengths = map(len, tokenizer(list(texts), truncation=False, verbose=False)["input_ids"])
    return sum(length > tokenizer.model_max_length for length in lengths)
