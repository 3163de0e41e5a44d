"""From and to transformers' `LlavaForConditionalGeneration` layout.

What the layout can't say is refused: it has a two-layer GELU projector, no pixel shuffle, and merged weights only.
"""

from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor, SiglipImageProcessor

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.checkpoint import tied_weights
from mllm.model.multimodal import MultimodalLM
from mllm.model.policy import merge_lora
from mllm.processor import IMAGE_TOKEN, Processor

PARTS = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_encoder.model.": "model.vision_tower.",
    "projector.": "model.multi_modal_projector.",
}


def llava_config(model: MultimodalLM, processor: Processor) -> LlavaConfig:
    """The LLaVA configuration of `model`. Raises UserError for a projector that the layout doesn't have."""
    if model.projector_settings.kind != "mlp2x_gelu" or model.projector_settings.shuffle != 1:
        raise UserError(
            f"the Hugging Face LLaVA layout has a two-layer projector without pixel shuffle; this model has "
            f"{model.projector_settings.kind} with shuffle {model.projector_settings.shuffle}"
        )
    encoder = model.vision_encoder
    drops_class = encoder.family.has_class_token and encoder.class_token == "drop"
    config = LlavaConfig(
        vision_config=encoder.model.config.to_dict(),
        text_config=model.language_model.config.to_dict(),
        image_token_index=processor.image_token_id,
        image_seq_length=processor.geometry.layout(1, 1).token_count,
        vision_feature_layer=encoder.feature_layer,
        vision_feature_select_strategy="default" if drops_class else "full",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(tied_weights(model)),
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def llava_state(model: MultimodalLM) -> dict[str, torch.Tensor]:
    """Our weights under the layout's names (as `LlavaForConditionalGeneration.state_dict()` has them)."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        prefix = next(p for p in PARTS if name.startswith(p))
        renamed[PARTS[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def export_llava(model: MultimodalLM, processor: Processor, out: Path) -> None:
    """Write a directory that `LlavaForConditionalGeneration` and `AutoProcessor` load; LoRA is merged first."""
    from transformers import LlavaForConditionalGeneration

    if processor.preparer.fit == "pad":
        raise UserError(
            "the Hugging Face image processors don't pad to a square: images that aren't square would be prepared in "
            "another way than in training; train with model.image.fit crop or stretch, or pad images before"
        )
    if model.lora_settings is not None:
        merge_lora(model)
    config = llava_config(model, processor)
    with torch.device("meta"):
        peer = LlavaForConditionalGeneration(config)
    peer.load_state_dict(llava_state(model), strict=True, assign=True)
    with atomic_directory(out) as directory:
        peer.save_pretrained(directory)
        llava_processor(model, processor).save_pretrained(directory)


def llava_processor(model: MultimodalLM, processor: Processor) -> LlavaProcessor:
    """The `LlavaProcessor` that makes our pixels and, through a chat template, our tokens."""
    prepare = processor.preparer
    size, fit = prepare.image_size_px, prepare.fit
    square = {"height": size, "width": size}
    statistics = {"image_mean": list(prepare.mean), "image_std": list(prepare.std), "resample": 3}
    if fit == "crop":
        image = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **statistics)
    else:
        image = SiglipImageProcessor(size=square, **statistics)
    encoder = model.vision_encoder
    drops_class = encoder.family.has_class_token and encoder.class_token == "drop"
    return LlavaProcessor(
        image_processor=image,
        tokenizer=processor.tokenizer,
        patch_size=processor.geometry.patch_size_px,
        vision_feature_select_strategy="default" if drops_class else "full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(encoder.family.has_class_token),
        chat_template=chat_template(processor),
    )


_TEMPLATE = """{{%- for message in messages -%}}
{{%- if loop.first and message.role != 'system' -%}}{{{{ {default} }}}}{{%- endif -%}}
{{%- set body = namespace(text='') -%}}
{{%- if message.content is string -%}}{{%- set body.text = message.content -%}}
{{%- else -%}}{{%- for part in message.content -%}}
{{%- if part.type == 'image' -%}}{{%- set body.text = body.text + {image} -%}}
{{%- else -%}}{{%- set body.text = body.text + part.text -%}}{{%- endif -%}}
{{%- endfor -%}}{{%- endif -%}}
{{%- if message.role == 'system' -%}}{{{{ {system[0]} + body.text + {system[1]} }}}}
{{%- elif message.role == 'user' -%}}{{{{ {user[0]} + body.text + {user[1]} }}}}
{{%- else -%}}{{{{ {answer[0]} + body.text + {answer[1]} }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {generation} }}}}{{%- endif -%}}"""


def chat_template(processor: Processor) -> str:
    """A Jinja template over content parts that renders as our prompt format does, read off the format itself."""
    if processor.format_name in ("native", "plain"):
        raise UserError(
            f"prompt format {processor.format_name} can't be exported as a chat template yet; "
            "finish with vicuna_v1, llama_3 or chatml"
        )
    opening = processor.tokenizer.decode(processor.render([]).input_ids[:1]) if processor.opens_with_bos else ""

    def text(messages: list[Message], generation: bool = False) -> str:
        segments = processor.format.segments(messages, processor.tokenizer.eos_token or "", generation)
        return "".join(IMAGE_TOKEN if s.kind == "image" else s.text for s in segments)

    mark = "\ue0f0"
    silent = Message(role="system", content="")
    system = text([Message(role="system", content=mark)])
    base = text([silent])
    user = text([silent, Message(role="user", content=mark)]).removeprefix(base)
    asked = text([silent, Message(role="user", content=mark)])
    answer = text([silent, Message(role="user", content=mark), Message(role="assistant", content=mark)])
    image = text([silent, Message(role="user", content=(ImagePart(), TextPart(text=mark)))]).removeprefix(base)
    default = text([Message(role="user", content=mark)]).removesuffix(user)
    pieces = {
        "default": opening + default,
        "image": image.split(mark)[0].removeprefix(user.split(mark)[0]),
        "generation": text([silent], generation=True).removeprefix(base),
    }
    pairs = {"system": system.split(mark), "user": user.split(mark), "answer": answer.removeprefix(asked).split(mark)}
    pairs["system"][0] = opening + pairs["system"][0]
    quoted = {name: _quote(value) for name, value in pieces.items()}
    return _TEMPLATE.format(**quoted, **{name: [_quote(v) for v in pair] for name, pair in pairs.items()})


def _quote(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
