"""A byte-level BPE tokenizer for the text side, learned from the captions."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a lower-casing byte-level BPE of at most `vocabulary_size` entries; ids are start, bytes, end, padded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (START, END)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, model_max_length=max_length
    )
