"""From and to transformers' `LlavaForConditionalGeneration` layout.

What the layout can't say is refused: it has a two-layer GELU projector, no pixel shuffle, and merged weights only.
"""

from pathlib import Path

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)
from transformers.initialization import no_init_weights

from mllm.checkpoint.assemble import fit_embeddings, load_tokenizer
from mllm.checkpoint.llava_config import greedy_generation, read_llava_config, special_ids
from mllm.checkpoint.ours import is_ours, tied_weights, write
from mllm.conversation.formats import PROMPT_FORMATS
from mllm.conversation.native import NativeFormat
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.media.prepare import Fit
from mllm.model.encoders import VisionEncoder, encoder_family, load_preparer
from mllm.model.fill import cast_parameters
from mllm.model.lora import merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.projectors import Projector, build_projector
from mllm.model.settings import ImageSettings, ProjectorSettings
from mllm.outputs import check_directory
from mllm.processor import IMAGE_TOKEN, Processor

BY = "mllm import"


def llava_config(model: MultimodalLM, processor: Processor) -> LlavaConfig:
    """The LLaVA configuration of `model`. Raises UserError for a projector that the layout doesn't have."""
    if model.projector_settings.kind != "mlp2x_gelu" or model.projector_settings.shuffle != 1:
        raise UserError(
            f"the Hugging Face LLaVA layout has a two-layer projector without pixel shuffle; this model has "
            f"{model.projector_settings.kind} with shuffle {model.projector_settings.shuffle}: train with "
            "model.projector.kind=mlp2x_gelu model.projector.shuffle=1, or keep our layout (--layout mllm)"
        )
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
    """Our weights under the layout's names (as `LlavaForConditionalGeneration.state_dict()` has them), in `dtype`."""
    language_model = model.language_model
    head = language_model.get_output_embeddings()
    head_name = next(name for name, module in language_model.named_modules() if module is head)
    parts = {
        f"language_model.{language_model.base_model_prefix}.": "model.language_model.",
        f"language_model.{head_name}.": "lm_head.",
        "vision_encoder.model.": "model.vision_tower.",
        "projector.": "model.multi_modal_projector.",
    }
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
    """The `LlavaProcessor` that makes our pixels and, through a chat template, our tokens."""
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
    """A Jinja template over content parts that renders as our prompt format does, read off the format itself."""
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
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def import_llava(source: Path, out: Path, prompt_format: str | None, fit: Fit | None) -> None:
    """Convert a local LLaVA directory in transformers' layout to one of ours, atomically; see `read_llava`."""
    if is_ours(source):
        raise UserError(f"{source} is a model of ours already; nothing is left to import")
    check_directory(out, BY, [source])
    model, processor = read_llava(source, prompt_format, fit)
    with atomic_directory(out, BY) as directory:
        write(directory, model, processor, model.state_dict())


def read_llava(
    source: Path, prompt_format: str | None = None, fit: Fit | None = None, dtype: torch.dtype = torch.float32
) -> tuple[MultimodalLM, Processor]:
    """The model and processor of a local LLaVA directory in transformers' layout.

    prompt_format, fit: how the model was trained, where the directory's chat template and image processor don't say it.
    Raises UserError when the directory isn't a LLaVA model in safetensors, or its weights don't fit its config.
    """
    config = read_llava_config(source)
    try:
        peer, report = LlavaForConditionalGeneration.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: its weights can't be loaded: {str(error).strip().splitlines()[0]}") from None
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise UserError(f"{source}: {len(wrong)} weight(s) missing or unused, such as {wrong[0]}")
    class_token = "keep" if config.vision_feature_select_strategy == "full" else "drop"
    if not encoder_family(config.vision_config.model_type).has_class_token:
        class_token = "drop"
    vision = VisionEncoder(peer.model.vision_tower, config.vision_feature_layer, class_token)
    with no_init_weights():
        language_model = AutoModelForCausalLM.from_config(config.text_config)
    language_model.get_decoder().load_state_dict(peer.model.language_model.state_dict(), assign=True)
    language_model.get_output_embeddings().load_state_dict(peer.lm_head.state_dict(), assign=True)
    language_model.config.tie_word_embeddings = config.tie_word_embeddings
    language_model.tie_weights()
    projector = ProjectorSettings(kind="mlp2x_gelu")
    geometry = vision.geometry(projector.shuffle)
    fit = fit or saved_fit(source)
    processor = Processor(
        load_tokenizer(str(source)),
        prompt_format or saved_prompt_format(source),
        geometry,
        load_preparer(str(source), geometry.image_size_px, fit),
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
    cast_parameters(model, dtype)
    return model.eval(), processor


def saved_fit(source: Path) -> Fit:
    """How the directory's own image processor makes an image square."""
    try:
        prepare = AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no image processor could be loaded: {str(error).splitlines()[0]}") from None
    if getattr(prepare, "do_pad", False):
        return "pad"
    return "crop" if getattr(prepare, "do_center_crop", False) else "stretch"


def saved_prompt_format(source: Path) -> str:
    """The format of our table that writes a question as the directory's chat template does, but for a default system.

    Raises UserError when there is no template, or none of the table's formats agrees with it.
    """
    content = [{"type": "image"}, {"type": "text", "text": "\ue0f0"}]
    try:
        asked = AutoProcessor.from_pretrained(source).apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    except (OSError, ValueError, TemplateError) as error:
        raise UserError(
            f"{source}: no chat template to tell the prompt format by ({str(error).splitlines()[0]}); "
            "name the one it was trained with (prompt_format, --prompt-format)"
        ) from None
    tokenizer = load_tokenizer(str(source))
    asked = asked.removeprefix(tokenizer.bos_token or "")
    question = Message(role="user", content=(ImagePart(), TextPart(text="\ue0f0")))
    for name, known in PROMPT_FORMATS.items():
        segments = known.segments([question], tokenizer.eos_token or "", generation=True)
        text = "".join(IMAGE_TOKEN if s.kind == "image" else s.text for s in segments)
        if "\ue0f0" in asked and (text == asked or (known.default_system and text.endswith(asked))):
            return name
    raise UserError(
        f"{source}: its chat template is none of our prompt formats ({', '.join(PROMPT_FORMATS)}); "
        "name the one to use (prompt_format, --prompt-format)"
    )


def _projector_of(peer: LlavaForConditionalGeneration, settings: ProjectorSettings) -> Projector:
    weights = peer.model.multi_modal_projector.state_dict()
    text_width, vision_width = weights["linear_1.weight"].shape
    projector = build_projector(settings, vision_width, text_width)
    projector.load_state_dict(projector.state_dict() | weights)
    return projector
