"""Tiny models of transformers that read images, with their processors, made here: one of each kind that matters."""

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin

from tests.helpers.tiny import byte_tokenizer

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "{{ 'IMAGE' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _tokenizer(*specials, **named):
    """A byte-level tokenizer with these special tokens; named: attribute → token, as some families' tokenizers have."""
    plain = byte_tokenizer()
    plain.add_special_tokens({"extra_special_tokens": [*specials, *named.values()]}, replace_extra_special_tokens=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>", *specials],
        model_specific_special_tokens=named,
    )


def _without_videos(kind):
    """The class of a processor that takes none for videos, whose class asks for a package that isn't there."""
    own = {
        "check_argument_for_proper_class": lambda self, name, value: None,
        "get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]),
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), own)


def rows_and_columns():
    """Images become tiles in rows and columns, with words and line feeds between them."""
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer = _tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    pixels = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TURNS.replace("IMAGE", "<image>")
    processor = transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=template)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **WORDS},
        vision_config={**EYES, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=image,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def several_axes():
    """Positions count along time, height and width; images are as many patches as they are large."""
    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    pixels = transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=64 * 40)
    template = TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    kind = _without_videos(transformers.Qwen2_5_VLProcessor)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    eyes = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, **WORDS},
        vision_config={**eyes, "window_size": 16, "fullatt_block_indexes": [1]},
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    processor = kind(pixels, tokenizer, chat_template=template)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def whole_samples():
    """What an image becomes depends on how many its sample has; pixels are padded to the most tiles of a batch."""
    tokenizer = _tokenizer("<image>", "<video>")
    pins = [[16, 32], [32, 16], [32, 32]]
    pixels = transformers.LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=pins)
    kind = _without_videos(transformers.LlavaOnevisionProcessor)
    processor = kind(
        pixels,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TURNS.replace("IMAGE", "<image>"),
    )
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **WORDS},
        vision_config={"model_type": "siglip_vision_model", **EYES, "image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def spans_and_windows():
    """Image tokens see each other, text attends in windows; text stands around the tokens of an image."""
    tokenizer = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    pixels = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, do_pan_and_scan=False)
    template = TURNS.replace("IMAGE", "<start_of_image>")
    processor = transformers.Gemma3Processor(pixels, tokenizer, chat_template=template, image_seq_length=4)
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            **WORDS,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={"model_type": "siglip_vision_model", **EYES, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # It begins with zeros there, which no gradient passes through.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    return model, processor


MAKERS = {maker.__name__: maker for maker in (rows_and_columns, several_axes, whole_samples, spans_and_windows)}


def tiny(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of transformers with weights drawn at random, always the same, and its processor."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model, processor = MAKERS[name]()
    return model.eval(), processor
