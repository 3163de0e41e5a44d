"""From and to transformers' `LlavaForConditionalGeneration` layout.

What the layout can't say is refused: it has a two-layer GELU projector, no pixel shuffle, and merged weights only.
"""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from mllm.config import ImageSettings, ProjectorSettings
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.images.prepare import Fit
from mllm.model.build import fit_embeddings, load_tokenizer
from mllm.model.checkpoint import check_model_directory, save, tied_weights
from mllm.model.encoders import VisionEncoder, encoder_family, load_preparer
from mllm.model.lora import merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.projectors import Projector, build_projector
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
    config = LlavaConfig(
        vision_config=encoder.model.config.to_dict(),
        text_config=model.language_model.config.to_dict(),
        image_token_index=processor.image_token_id,
        image_seq_length=processor.geometry.layout(1, 1).token_count,
        vision_feature_layer=encoder.feature_layer,
        vision_feature_select_strategy="default" if encoder.drops_class_token else "full",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(tied_weights(model)),
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def llava_state(model: MultimodalLM) -> dict[str, torch.Tensor]:
    """Our weights under the layout's names (as `LlavaForConditionalGeneration.state_dict()` has them)."""
    renamed = {}
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    state |= {f"projector.{name}": tensor for name, tensor in model.projector.folded_state().items()}
    for name, tensor in state.items():
        prefix = next(p for p in PARTS if name.startswith(p))
        renamed[PARTS[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def export_llava(model: MultimodalLM, processor: Processor, out: Path) -> None:
    """Write a directory that `LlavaForConditionalGeneration` and `AutoProcessor` load; LoRA is merged first."""
    if processor.preparer.fit == "pad":
        raise UserError(
            "the Hugging Face image processors don't pad to a square: images that aren't square would be prepared in "
            "another way than in training; train with model.image.fit crop or stretch, or pad images before"
        )
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


def import_llava(source: Path, out: Path, prompt_format: str, fit: Fit) -> None:
    """Convert a local LLaVA directory in transformers' layout to one of ours, atomically.

    `prompt_format` and `fit` say how the model was trained, which the layout doesn't. Raises UserError when the directory
    isn't a LLaVA model in safetensors, or its weights don't fit its config.
    """
    check_model_directory(source)
    config = AutoConfig.from_pretrained(source)
    if config.model_type != "llava":
        raise UserError(f"{source} holds a {config.model_type!r} model; mllm import reads LLaVA's (model_type llava)")
    if config.projector_hidden_act != "gelu" or not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{source}: its projector has the activation {config.projector_hidden_act!r} on feature layer "
            f"{config.vision_feature_layer}; ours has gelu on a single layer"
        )
    peer, report = LlavaForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise UserError(f"{source}: {len(wrong)} weight(s) missing or unused, such as {wrong[0]}")
    class_token = "keep" if config.vision_feature_select_strategy == "full" else "drop"
    if not encoder_family(config.vision_config.model_type).has_class_token:
        class_token = "drop"
    vision = VisionEncoder(peer.model.vision_tower, config.vision_feature_layer, class_token)
    language_model = AutoModelForCausalLM.from_config(config.text_config)
    language_model.get_decoder().load_state_dict(peer.model.language_model.state_dict())
    language_model.get_output_embeddings().load_state_dict(peer.lm_head.state_dict())
    projector = ProjectorSettings(kind="mlp2x_gelu")
    geometry = vision.geometry(projector.shuffle)
    processor = Processor(
        load_tokenizer(str(source)), prompt_format, geometry, load_preparer(str(source), geometry.image_size_px, fit)
    )
    if processor.image_token_id != config.image_token_id:
        raise UserError(f"{source}: its image token is not {IMAGE_TOKEN!r} ({config.image_token_id} in the config)")
    fit_embeddings(language_model, processor.tokenizer)
    model = MultimodalLM(
        vision,
        _projector_of(peer, projector),
        language_model,
        projector,
        ImageSettings(fit=fit),
        processor.image_token_id,
    )
    save(out, model, processor)


def _projector_of(peer: LlavaForConditionalGeneration, settings: ProjectorSettings) -> Projector:
    weights = peer.model.multi_modal_projector.state_dict()
    text_width, vision_width = weights["linear_1.weight"].shape
    projector = build_projector(settings, vision_width, text_width)
    projector.load_state_dict(projector.state_dict() | weights)
    return projector
