"""Tiny models, tokenizers and images for tests."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mllm.model.settings import ModelSettings
from mllm.settings import validate_settings

CORPUS = ["hello world what is this a cat and a dog", "user assistant system USER: ASSISTANT: yes no red blue"] * 20
SPECIALS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>"]
CHATML_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _wrap(tokenizer: Tokenizer, bos: str | None) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>", "</s>"],
    )
    wrapped.chat_template = CHATML_TEMPLATE
    return wrapped


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    return _wrap(tokenizer, None)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with a word-start prefix and byte fallback, as Llama 2 has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=460, special_tokens=[*SPECIALS, *bytes_]))
    return _wrap(tokenizer, "<s>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-casing WordPiece, as BERT has."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS))
    return _wrap(tokenizer, None)


TOKENIZERS = {
    "byte_level": byte_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "wordpiece": wordpiece_tokenizer,
}


def save_tiny_parts(root: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(root / "clip")
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(root / "siglip")
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "siglip")
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")


def tiny_settings(parts: Path, encoder: str = "clip", prompt_format: str = "chatml", **projector) -> ModelSettings:
    values = {
        "vision_encoder": {"path": str(parts / encoder)},
        "projector": projector,
        "language_model": {"path": str(parts / "lm")},
        "prompt_format": prompt_format,
    }
    return validate_settings(ModelSettings, values, "test")


def save_image(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (20, 12)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)
