"""Writing a model in transformers' `LlavaForConditionalGeneration` layout.

What the layout can't say is refused: it has a two-layer GELU projector, no pixel shuffle, and merged weights only.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)

from mllm.checkpoint.llava import layout_prefixes
from mllm.checkpoint.ours import tied_weights
from mllm.conversation.native import NativeFormat
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.lora import merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import refuse_tiles
from mllm.processor import IMAGE_TOKEN, Processor


def special_ids(processor: Processor) -> dict[str, Any]:
    """Return `eos_token_id` (a number, or a list of them), `bos_token_id` and `pad_token_id` for a language model's config.

    What ends an answer here ends it for others, too. Padding that also ends answers isn't named: a language model wouldn't
    learn the word embedding of its padding.
    """
    stops, tokenizer = processor.stop_token_ids, processor.tokenizer
    return {
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": None if tokenizer.pad_token_id in stops else tokenizer.pad_token_id,
    }


def greedy_generation(processor: Processor) -> GenerationConfig:
    """Say how transformers should generate from an exported model unless told otherwise: greedily, ending where we end."""
    ids = special_ids(processor)
    pad = ids["pad_token_id"] if ids["pad_token_id"] is not None else processor.stop_token_ids[0]
    return GenerationConfig(do_sample=False, **ids | {"pad_token_id": pad})


def llava_config(model: MultimodalLM, processor: Processor) -> LlavaConfig:
    """Build the LLaVA configuration of `model`. Raises UserError for a projector that the layout doesn't have."""
    if model.projector_settings.kind != "mlp2x_gelu" or model.projector_settings.shuffle != 1:
        raise UserError(
            f"the Hugging Face LLaVA layout has a two-layer projector without pixel shuffle; this model has "
            f"{model.projector_settings.kind} with shuffle {model.projector_settings.shuffle}: train with "
            "model.projector.kind=mlp2x_gelu model.projector.shuffle=1, or keep our layout (--layout mllm)"
        )
    refuse_tiles(model.image_settings, "the Hugging Face LLaVA layout")
    encoder, ids = model.vision_encoder, special_ids(processor)
    config = LlavaConfig(
        vision_config=encoder.model.config.to_dict(),
        text_config=model.language_model.config.to_dict() | ids,
        image_token_index=processor.image_token_id,
        image_seq_length=processor.geometry.tokens_per_tile,
        vision_feature_layer=encoder.feature_layer,
        vision_feature_select_strategy="default" if encoder.drops_class_token else "full",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(tied_weights(model)),
        # Servers look for it here, too.
        eos_token_id=ids["eos_token_id"],
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def llava_state(model: MultimodalLM, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return our weights under the layout's names (as `LlavaForConditionalGeneration.state_dict()` has them), in `dtype`."""
    parts = layout_prefixes(model)
    renamed = {}
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    state |= {f"projector.{name}": tensor for name, tensor in model.projector.folded_state().items()}
    for name, tensor in state.items():
        prefix = next(p for p in parts if name.startswith(p))
        renamed[parts[prefix] + name.removeprefix(prefix)] = tensor.to(dtype).contiguous()
    return renamed


def export_llava(model: MultimodalLM, processor: Processor, out: Path) -> None:
    """Write a directory that `LlavaForConditionalGeneration` and `AutoProcessor` load, atomically; see `write_llava`."""
    with atomic_directory(out) as directory:
        write_llava(directory, model, processor)


def write_llava(directory: Path, model: MultimodalLM, processor: Processor, dtype: torch.dtype = torch.float32) -> None:
    """Write the files of the layout into `directory`, the weights in `dtype`; LoRA is merged first."""
    merge_lora(model)
    config = llava_config(model, processor)
    with torch.device("meta"):
        peer = LlavaForConditionalGeneration(config)
    state = llava_state(model, dtype)
    homeless = sorted(state.keys() - peer.state_dict().keys())
    if homeless:
        raise UserError(f"the Hugging Face LLaVA layout has no place for {homeless[0]} of this language model")
    peer.load_state_dict(state, strict=True, assign=True)
    peer.tie_weights()
    peer.generation_config = greedy_generation(processor)
    peer.save_pretrained(directory)
    llava_processor(model, processor).save_pretrained(directory)


def llava_processor(model: MultimodalLM, processor: Processor) -> LlavaProcessor:
    """Build the `LlavaProcessor` that makes our pixels and, through a chat template, our tokens."""
    prepare = processor.preparer
    size, fit = prepare.image_size_px, prepare.fit
    square = {"height": size, "width": size}
    statistics = {"image_mean": list(prepare.mean), "image_std": list(prepare.std), "resample": 3}
    if fit == "crop":
        image = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **statistics)
    elif fit == "pad":
        image = LlavaImageProcessor(do_pad=True, size=square, do_center_crop=False, **statistics)
    else:
        image = SiglipImageProcessor(size=square, **statistics)
    encoder = model.vision_encoder
    return LlavaProcessor(
        image_processor=image,
        tokenizer=processor.tokenizer,
        patch_size=processor.geometry.patch_size_px,
        vision_feature_select_strategy="default" if encoder.drops_class_token else "full",
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


# Set before a template that takes strings, it makes one string of each turn's parts, as the native format does.
_JOIN_PARTS = (
    """{%- set joined = namespace(turns=[]) -%}
{%- for message in messages -%}
{%- set body = namespace(text='') -%}
{%- if message.content is string -%}{%- set body.text = message.content -%}
{%- else -%}{%- for part in message.content -%}
{%- set body.text = body.text + ('"""
    + IMAGE_TOKEN
    + """\\n' if part.type == 'image' else part.text) -%}
{%- endfor -%}{%- endif -%}
{%- set joined.turns = joined.turns + [dict(role=message.role, content=body.text)] -%}
{%- endfor -%}
{%- set messages = joined.turns -%}{{ '' }}"""
)


def chat_template(processor: Processor) -> str:
    """Write a Jinja template over content parts that renders as our prompt format does, read off the format itself."""
    if isinstance(processor.format, NativeFormat):
        template: str = processor.tokenizer.chat_template
        return template if processor.format.takes_parts else _JOIN_PARTS + template
    if processor.format_name == "plain":
        raise UserError(
            "prompt format plain has no turns to make a chat template of; finish with vicuna_v1, llama_3, chatml or native"
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
    """Write `text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
