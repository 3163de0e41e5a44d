"""An exported model ends its answers where ours does, in transformers and in what servers read."""

import json

import pytest
import torch
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

import mllm
from mllm.checkpoint.export import export
from mllm.conversation.schema import Message
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers
from mllm.model.lora import add_lora
from mllm.model.settings import LoraSettings
from tests.helpers.language_models import built_around
from tests.helpers.tiny import byte_tokenizer

QUESTION = Request((Message(role="user", content="what is this"),))


def a_base_model(parts, root, prompt_format, padding):
    """A model in `prompt_format` whose tokenizer's own end of sequence is `</s>`, as of a base language model."""
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "</s>", padding
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]}, replace_extra_special_tokens=False)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # What the config says of special tokens is another model's.
    ids = {"pad_token_id": 1, "bos_token_id": 7, "eos_token_id": 9}
    language_model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, vocab_size=len(tokenizer) + 8))
    return built_around(language_model, tokenizer, root, parts / "siglip", "pad", prompt_format)


def ids_of(model, processor, limit=24):
    return list(generate_answers(model, processor, [QUESTION], Decoding(max_new_tokens=limit))[0].token_ids)


def end_the_answer(model, processor, end):
    """Let the model write `end` where it wrote its third word."""
    head = model.language_model.get_output_embeddings().weight.data
    head[processor.stop_token_ids] = 0
    word = ids_of(model.eval(), processor)[2]
    head[[word, end]] = head[[end, word]]
    ids = ids_of(model, processor)
    assert ids[-1] == end and len(ids) <= 3


@pytest.mark.parametrize(
    "prompt_format,end,layout,padding,lora",
    [
        ("chatml", "<|im_end|>", "hf", "<|pad|>", False),
        ("chatml", "<|im_end|>", "gguf", "</s>", True),
        ("chatml", "</s>", "hf", "<|im_end|>", True),
        ("llama_3", "<|eot_id|>", "hf", None, False),
        ("vicuna_v1", "</s>", "gguf", "<|pad|>", False),
        ("native", "<|im_end|>", "hf", "<|pad|>", False),
    ],
)
def test_an_exported_model_stops_where_ours_stops(tiny_parts, tmp_path, prompt_format, end, layout, padding, lora):
    model, processor = a_base_model(tiny_parts, tmp_path, prompt_format, padding)
    if lora:
        add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.1)
    end_the_answer(model, processor, processor.tokenizer.convert_tokens_to_ids(end))
    expected = ids_of(model, processor)
    mllm.save(tmp_path / "ours", model, processor)
    export(str(tmp_path / "ours"), tmp_path / "out", layout)
    peer = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    peer_processor = AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = torch.tensor([processor.render(QUESTION.messages, generation=True).input_ids])
    written = peer.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24)
    assert written[0, prompt.shape[1] :].tolist() == expected
    assert peer_processor.tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("layout", ["hf", "gguf", "mllm"])
@pytest.mark.parametrize("padding", ["<|pad|>", "</s>"])
def test_every_layout_names_what_ends_an_answer(tiny_parts, tmp_path, layout, padding):
    model, processor = a_base_model(tiny_parts, tmp_path, "chatml", padding)
    mllm.save(tmp_path / "ours", model, processor)
    export(str(tmp_path / "ours"), tmp_path / "out", layout)
    stops = processor.stop_token_ids
    assert len(stops) == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    own_padding = None if padding == "</s>" else processor.tokenizer.pad_token_id
    assert config["text_config"]["eos_token_id"] == stops and config["text_config"]["bos_token_id"] is None
    assert config["text_config"].get("pad_token_id") == own_padding
    if layout == "mllm":
        assert ids_of(*mllm.load(tmp_path / "out")) == ids_of(model.eval(), processor)
        return
    assert config["eos_token_id"] == stops
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == stops and generation.get("bos_token_id") is None
    assert generation["pad_token_id"] == (stops[0] if own_padding is None else own_padding)
