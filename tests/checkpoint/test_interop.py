"""Encoders × language models through transformers' LLaVA layout, and what `mllm export` writes beside the weights."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    pipeline,
)

import mllm
from mllm.cli import build_parser
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import Request, generate_batch
from mllm.inference.request import prompt_of
from mllm.model.lora import add_lora
from mllm.model.settings import LoraSettings
from tests.helpers.language_models import built_around
from tests.helpers.tiny import byte_tokenizer, save_image

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
    "phi": (PhiConfig, PhiForCausalLM, {}),
}


def assemble(parts, root, family, encoder, fit):
    """A model of random weights with a language model of `family`, large enough to say different things."""
    torch.manual_seed(2)
    config, kind, more = FAMILIES[family]
    tokenizer = byte_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    language_model = kind(config(**SIZES, **more, **ids, vocab_size=len(tokenizer)))
    model, processor = built_around(language_model, tokenizer, root, parts / encoder, fit, "chatml")
    return model.eval(), processor


def as_dicts(messages):
    return [{"role": m.role, "content": [part.model_dump() for part in m.content]} for m in messages]


def run_export(*arguments):
    options = build_parser().parse_args(["export", *map(str, arguments)])
    options.run(options)


@pytest.mark.parametrize(
    "family,encoder,fit",
    [
        *(
            (family, *kind)
            for family in ("llama", "qwen2", "mistral")
            for kind in (("clip", "crop"), ("siglip", "pad"))
        ),
        ("qwen3", "siglip", "stretch"),
        ("gemma", "clip", "pad"),
    ],
)
def test_padded_batches_have_our_ids_and_logits_on_both_sides(tiny_parts, tmp_path, encoder, fit, family):
    model, processor = assemble(tiny_parts, tmp_path, family, encoder, fit)
    mllm.save(tmp_path / "ours", model, processor)
    run_export(tmp_path / "ours", tmp_path / "hf")
    paths = [save_image(tmp_path / f"{i}.png", (80 * i, 90, 40), (20, 12 + i)) for i in range(2)]
    requests = [
        Request((Message(role="user", content=(ImagePart(), TextPart(text="what is this"))),), (paths[0],)),
        Request((Message(role="user", content=(ImagePart(), TextPart(text="a dog and a cat, red"))),), (paths[1],)),
    ]
    peer = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval()
    peer_processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    peer_processor.tokenizer.padding_side = "left"
    texts = [peer_processor.apply_chat_template(as_dicts(r.messages), add_generation_prompt=True) for r in requests]
    images = [Image.open(path) for path in paths]
    inputs = peer_processor(text=texts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        theirs = peer(**inputs).logits
        for row, request in enumerate(requests):
            prompt = prompt_of(request, processor)
            real = inputs["attention_mask"][row].bool()
            assert inputs["input_ids"][row][real].tolist() == list(prompt.tokens.input_ids)
            features = ImageFeatures(model, processor).of(prompt.shown)
            embeddings = model.embed_features(torch.tensor([prompt.tokens.input_ids]), features)
            ours = model.language_model(inputs_embeds=embeddings, use_cache=False).logits[0]
            assert (ours - theirs[row][real]).abs().max() < 1e-4
    # A sliding window (mistral) and unequal lengths: the answers with shared prefixes are theirs too.
    written = peer.generate(**inputs, max_new_tokens=6, do_sample=False, top_k=None)[:, inputs["input_ids"].shape[1] :]
    expected = [text.strip() for text in peer_processor.batch_decode(written, skip_special_tokens=True)]
    assert generate_batch(model, processor, requests * 3, max_new_tokens=6) == expected * 3


def test_a_language_model_that_the_layout_cannot_hold_is_refused(tiny_parts, tmp_path):
    model, processor = assemble(tiny_parts, tmp_path, "phi", "clip", "crop")
    mllm.save(tmp_path / "ours", model, processor)
    with pytest.raises(UserError, match=r"no place for lm_head\.bias"):
        run_export(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_the_pipeline_of_transformers_answers_as_we_do(tiny_parts, tmp_path):
    model, processor = assemble(tiny_parts, tmp_path, "qwen2", "clip", "crop")
    mllm.save(tmp_path / "ours", model, processor)
    run_export(tmp_path / "ours", tmp_path / "hf")
    path = save_image(tmp_path / "i.png")
    content = [{"type": "image", "url": path}, {"type": "text", "text": "what is this"}]
    ask = pipeline("image-text-to-text", model=str(tmp_path / "hf"), device="cpu")
    out = ask(text=[{"role": "user", "content": content}], max_new_tokens=6, do_sample=False, return_full_text=False)
    request = Request((Message(role="user", content=(ImagePart(), TextPart(text="what is this"))),), (path,))
    assert out[0]["generated_text"].strip() == generate_batch(model, processor, [request], max_new_tokens=6)[0]


def test_export_merges_lora_casts_and_writes_a_card(tiny_parts, tmp_path):
    model, processor = assemble(tiny_parts, tmp_path, "qwen2", "clip", "crop")
    add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    final = tmp_path / "run" / "final"
    mllm.save(final, model, processor)
    (final / "run_config.yaml").write_text("data: {recipe: data_recipes/mine.yaml}\noptim: {lr: 0.001}\n")
    score = {"condition": "model", "type": "overall", "score": 0.5, "low": 0.4, "high": 0.6, "count": 7}
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "results.json").write_text(json.dumps({"scores": {"easyvqa": [score]}}))
    question = Request((Message(role="user", content="hello world"),))
    answer = generate_batch(model, processor, [question], max_new_tokens=6)
    run_export(tmp_path / "run", tmp_path / "merged", "--layout", "mllm", "--merge-lora")
    run_export(tmp_path / "run", tmp_path / "kept", "--layout", "mllm")
    run_export(tmp_path / "run", tmp_path / "half", "--dtype", "bfloat16")
    for name, has_lora in (("merged", False), ("kept", True)):
        loaded, loaded_processor = mllm.load(tmp_path / name)
        assert bool(loaded.adapters) == has_lora
        assert generate_batch(loaded, loaded_processor, [question], max_new_tokens=6) == answer
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    card = (tmp_path / "half" / "README.md").read_text()
    for words in (
        "pipeline_tag: image-text-to-text",
        "data_recipes/mine.yaml",
        "lr: 0.001",
        "| easyvqa | model | 7 | 50.0",
    ):
        assert words in card
