"""Reading a LLaVA directory in one of transformers' layouts (`mllm.checkpoint.layouts`)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, ProcessorMixin

from mllm.checkpoint.fill import Beginning, Contents, row_std
from mllm.checkpoint.layouts import LAYOUTS, Layout
from mllm.checkpoint.origin import Held, Origin, Selection, StoredWeights, part_files
from mllm.checkpoint.ours import check_model_directory, is_ours, write
from mllm.checkpoint.parts import check_described, first_line, load_preparer, load_tokenizer
from mllm.conversation.boxes import DEFAULT_BOX_FORMAT
from mllm.conversation.formats import PROMPT_FORMATS
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.media.visual import Fit
from mllm.model.assemble import Parts, assemble, fit_embeddings, saved_shapes
from mllm.model.families import encoder_family
from mllm.model.multimodal import MultimodalLM
from mllm.model.planning import overlaid
from mllm.model.projectors import NEWLINE
from mllm.model.settings import ImageSettings, ProjectorSettings, VideoSettings
from mllm.outputs import check_directory
from mllm.processor import IMAGE_TOKEN, Processor

BY = "mllm import"


def import_llava(
    source: Path, out: Path, prompt_format: str | None, fit: Fit | None, box_format: str | None = None
) -> None:
    """Convert a local LLaVA directory in one of transformers' layouts to one of ours, atomically; see `read_llava`."""
    if is_ours(source):
        raise UserError(f"{source} is a model of ours already; nothing is left to import")
    check_directory(out, BY, [source])
    image = None if fit is None else ImageSettings(fit=fit)
    model, processor = read_llava(source, prompt_format, image, box_format=box_format)
    with atomic_directory(out, BY) as directory:
        write(directory, model, processor, model.state_dict())


def is_layout(path: Path) -> bool:
    """Whether a directory of transformers is in one of the layouts that become a model of ours."""
    return _read_json(path).get("model_type") in LAYOUTS


def read_llava(
    source: Path,
    prompt_format: str | None = None,
    image: ImageSettings | None = None,
    dtype: torch.dtype = torch.float32,
    video: VideoSettings | None = None,
    box_format: str | None = None,
) -> tuple[MultimodalLM, Processor]:
    """Load the model and processor of a local LLaVA directory in a layout of transformers, in evaluation mode, on the CPU.

    prompt_format: how the model was trained, where the directory's chat template doesn't say it; box_format likewise, which
    only an export of ours says: others have `llava`. What is set in `image` and `video` replaces what the directory says.
    Raises UserError when the directory isn't a LLaVA model in safetensors, or its weights don't fit its config.
    """
    config = read_llava_config(source)
    layout = LAYOUTS.get(config.model_type)()
    parts = _parts_of(config, layout, source, image, video)
    try:
        planner = parts.planner
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    preparer = load_preparer(str(source), parts.geometry.image_size_px, parts.image.fit)
    format_name = prompt_format or saved_prompt_format(source)
    boxes: str = box_format or getattr(config, "box_format", None) or DEFAULT_BOX_FORMAT
    tokenizer = load_tokenizer(str(source))
    processor = Processor(tokenizer, format_name, parts.geometry, preparer, planner=planner, box_format=boxes)
    if processor.image_token_id != config.image_token_id:
        raise UserError(f"{source}: its image token is not {IMAGE_TOKEN!r} ({config.image_token_id} in the config)")
    model = assemble(parts, processor.image_token_id)
    shapes = saved_shapes(model)
    longer = fit_embeddings(model.language_model, processor.tokenizer)

    def open_contents() -> Contents:
        origin = _origin(source, layout, model, shapes, dtype)
        return Contents(origin, frozenset(f"language_model.{name}" for name in longer), row_std(model.language_model))

    model, processor = Beginning(model, processor, open_contents).filled(dtype)
    return model.eval(), processor


def _parts_of(
    config: Any, layout: Layout, source: Path, image: ImageSettings | None, video: VideoSettings | None
) -> Parts:
    keeps = config.vision_feature_select_strategy == "full"
    has_class_token = encoder_family(config.vision_config.model_type).has_class_token
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    fit = image.fit if image is not None and "fit" in image.model_fields_set else None
    images, videos = layout.settings(config, source, fit)
    return Parts(
        vision_config=config.vision_config,
        feature_layer=config.vision_feature_layer,
        class_token="keep" if keeps and has_class_token else "drop",
        projector=ProjectorSettings(kind="mlp2x_gelu"),
        text_config=config.text_config,
        image=overlaid(images, image),
        video=overlaid(videos, video),
    )


def names_there(model: MultimodalLM, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Map names of our weights → how a layout's `state_dict()` begins and ends the same; what has no place is left out."""
    language_model = model.language_model
    head = language_model.get_output_embeddings()
    head_name = next(name for name, module in language_model.named_modules() if module is head)
    prefixes = {
        f"language_model.{language_model.base_model_prefix}.": "model.language_model.",
        f"language_model.{head_name}.": "lm_head.",
        "vision_encoder.model.": "model.vision_tower.",
        NEWLINE: "model.image_newline",
        "projector.": "model.multi_modal_projector.",
    }
    found = {name: next((p for p in prefixes if name.startswith(p)), None) for name in names}
    return {n: (prefixes[p], n.removeprefix(p)) for n, p in found.items() if p is not None}


# How files begin the same names: as transformers writes them, and as it did when CLIP's encoder had a module more.
_IN_FILES = {
    "model.language_model.": ("language_model.model.",),
    "lm_head.": ("language_model.lm_head.",),
    "model.vision_tower.": ("vision_tower.", "vision_tower.vision_model."),
    "model.multi_modal_projector.": ("multi_modal_projector.",),
    "model.image_newline": ("image_newline",),
}


def _origin(
    source: Path, layout: Layout, model: MultimodalLM, shapes: Mapping[str, torch.Size], dtype: torch.dtype
) -> Origin:
    """Return the directory's weights under our names (those of `shapes`), read one by one where the files' names are known.

    Of other names and shapes than those, transformers makes what it can, whole, in `dtype`, or says what is wrong.
    """
    # What a projector standardizes its features by isn't in the layout: `folded_state` puts it into the first layer.
    constants = {name: value for name, value in model.state_dict().items() if name.startswith("projector.feature_")}
    # A newline that was asked for, of a layout that has none, is drawn.
    apart = constants.keys() if layout.has_newline else {*constants, NEWLINE}
    places = names_there(model, [name for name in shapes if name not in apart])
    stored: Origin = StoredWeights(part_files(source))
    names = _names_in_files(places, shapes, stored)
    if names is None:
        stored = Held(_loaded_by_transformers(source, layout, dtype))
        names = {name: begin + rest for name, (begin, rest) in places.items()}
    entries: dict[str, tuple[Origin, str]] = {name: (stored, there) for name, there in names.items()}
    return Selection(entries | {name: (Held(constants), name) for name in constants})


def _names_in_files(
    places: Mapping[str, tuple[str, str]], shapes: Mapping[str, torch.Size], stored: Origin
) -> dict[str, str] | None:
    """Map our name → the files', if they hold just these weights in these shapes; None otherwise."""
    names: dict[str, str] = {}
    for begin, others in _IN_FILES.items():
        own = {name: rest for name, (prefix, rest) in places.items() if prefix == begin}
        found = next(
            (p for p in (begin, *others) if all(stored.shapes.get(p + r) == shapes[n] for n, r in own.items())), None
        )
        if found is None:
            return None
        names |= {name: found + rest for name, rest in own.items()}
    return names if set(names.values()) == set(stored.shapes) else None


def _loaded_by_transformers(source: Path, layout: Layout, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    try:
        peer, report = layout.model.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: its weights can't be loaded: {first_line(error)}") from None
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise UserError(f"{source}: {len(wrong)} weight(s) missing or unused, such as {wrong[0]}")
    state: dict[str, torch.Tensor] = peer.state_dict()
    return state


def read_llava_config(source: Path) -> Any:
    """Read the config of a local LLaVA directory.

    Raises UserError for another kind of model, the original LLaVA layout, a config without its parts, or one that
    describes more than the files hold, before anything large is built.
    """
    content = _read_json(source)
    if is_original_layout(content):
        raise UserError(
            f"{source} is a LLaVA checkpoint in the original layout (model_type {content.get('model_type')!r}, "
            f"mm_vision_tower); transformers' {converter_of(content)} makes the Hugging Face layout of it, which is read here"
        )
    check_model_directory(source)
    if content.get("model_type") not in LAYOUTS:
        raise UserError(
            f"{source} holds a {content.get('model_type')!r} model; of other layouts than ours, LLaVA's are read "
            f"(model_type {', '.join(LAYOUTS)})"
        )
    for part in ("vision_config", "text_config"):
        if not isinstance(content.get(part), dict) or "model_type" not in content[part]:
            raise UserError(
                f"{source / 'config.json'} lacks {part} with its model_type, so what the model is made of is not said; "
                "get the file again"
            )
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{source}: its config can't be read: {first_line(error)}") from None
    _check_projector(source, config)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{source} is quantized; get the model in 16 or 32 bits, and load it with --quantize")
    check_described(source, config, lambda: LAYOUTS.get(config.model_type).model(config))
    return config


def _check_projector(source: Path, config: Any) -> None:
    """Raise UserError for features and a projector that we don't have."""
    if config.projector_hidden_act != "gelu" or not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{source}: its projector has the activation {config.projector_hidden_act!r} on feature layer "
            f"{config.vision_feature_layer}; ours has gelu on a single layer"
        )
    if not config.multimodal_projector_bias:
        raise UserError(f"{source}: its projector has no biases (multimodal_projector_bias); ours has them")
    family = encoder_family(config.vision_config.model_type)
    if config.vision_feature_select_strategy == "default" and not family.has_class_token:
        raise UserError(
            f"{source}: vision_feature_select_strategy is default, which leaves a patch out where the encoder has no "
            f"class token ({config.vision_config.model_type}); such a model can't be read"
        )
    if family.registers(config.vision_config):
        raise UserError(
            f"{source}: its encoder ({family.title}) has registers, which this layout shows to the language model among "
            "the patches; such a model can't be read"
        )


def is_original_layout(content: dict[str, Any]) -> bool:
    """Whether a `config.json` is of the original LLaVA code, which puts `mm_…` among the language model's own settings."""
    return "vision_config" not in content and any(
        key in content for key in ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
    )


def converter_of(content: dict[str, Any]) -> str:
    """Name the script of transformers that converts a model of the original layout, by how its `config.json` cuts images."""
    ratio = str(content.get("image_aspect_ratio"))
    if ratio.startswith("anyres_max"):
        return "convert_llava_onevision_weights_to_hf.py"
    if content.get("mm_resampler_type") == "spatial_pool":
        return "convert_llava_next_video_weights_to_hf.py"
    return f"convert_llava_{'next_' if ratio == 'anyres' else ''}weights_to_hf.py"


def _read_json(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    if not file.is_file():
        check_model_directory(source)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source}: its config can't be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: its config can't be read: it is no JSON object")
    return content


def saved_prompt_format(source: Path) -> str:
    """Find the format of our table that writes a question as the directory's chat template does, but for a default system.

    Raises UserError when there is no template, or none of the table's formats agrees with it.
    """
    content = [{"type": "image"}, {"type": "text", "text": "\ue0f0"}]
    tokenizer = load_tokenizer(str(source))
    try:
        # Read off the files: a processor that shows videos isn't made without torchvision.
        template = ProcessorMixin.get_processor_dict(str(source))[0].get("chat_template")
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except (OSError, ValueError, TypeError, TemplateError) as error:
        raise UserError(
            f"{source}: no chat template to tell the prompt format by ({str(error).splitlines()[0]}); "
            "name the one it was trained with (prompt_format, --prompt-format)"
        ) from None
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
