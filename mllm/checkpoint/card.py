"""A model card out of what lies beside a model: the settings of its run, the data that they name, and its scores."""

import json
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from mllm.checkpoint.ours import directory_hash
from mllm.errors import UserError
from mllm.files import hash_files
from mllm.model.interface import PARTS, VisionLanguageModel
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor
from mllm.settings import expanded

README = "README.md"
HASHED_GIB = 8  # above, hashing would take minutes
_ASK = """    parts = [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "What is this?"}]"""
_USE = {
    "hf": f"""    from transformers import pipeline
    ask = pipeline("image-text-to-text", model="THIS DIRECTORY")
{_ASK}
    print(ask(text=[{{"role": "user", "content": parts}}], max_new_tokens=64))""",
    "gguf": """    python convert_hf_to_gguf.py "THIS DIRECTORY" --outfile model.gguf        # a script of llama.cpp
    llama-server -m model.gguf --mmproj "THIS DIRECTORY/mmproj.gguf\"""",
    "mllm": """    mllm chat "THIS DIRECTORY" --image cat.png -p "What is this?\"""",
    "peft": """    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("BASE"), "THIS DIRECTORY")
    processor = AutoProcessor.from_pretrained("THIS DIRECTORY")""",
}
_LIBRARIES = {"hf": "transformers", "gguf": "gguf", "mllm": "mllm", "peft": "peft"}
_CONDITIONS = (
    "`withheld` asks the same questions without the image, and `swapped` with another one: what a score is above them is "
    "what the model sees."
)


def model_card(
    path: Path, model: VisionLanguageModel, processor: Processor, layout: str, base: str | None = None
) -> str:
    """Write README.md for the model at `path`: parts, data, recipe and scores, as far as they are on disk.

    model: with contents or without. base: what an adapter is for.
    """
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    head = {"library_name": _LIBRARIES[layout], "pipeline_tag": "image-text-to-text"}
    kind = ["llava"] if isinstance(model, MultimodalLM) else []
    # The hub takes ids alone there, and refuses a card with a path.
    has_id = base is not None and not Path(base).is_dir()
    matter = head | ({"base_model": base} if has_id else {}) | {"tags": [*kind, "mllm"]}
    adapter = "" if base is None else f", as an adapter for {base}"
    parts = _parts(model, processor) if isinstance(model, MultimodalLM) else _counts(model)
    parts += [f"- prompt format: {processor.format_name}", f"- box format: {processor.box_format}"]
    use = _USE[layout] if base is None else _USE[layout].replace("BASE", base)
    sections = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False, default_flow_style=None).strip()}\n---",
        f"# A multimodal language model of {millions:,.1f} million parameters{adapter}",
        "\n".join(parts),
        f"## Use\n\n{use}",
        f"## Data and recipe\n\n{_recipe(read_run_config(path))}",
        f"## Scores\n\n{_scores(path)}",
    ]
    return "\n\n".join(sections) + "\n"


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the settings of the run that a model directory is of; empty where they don't lie beside it."""
    file = path / "run_config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _parts(model: MultimodalLM, processor: Processor) -> list[str]:
    language_model = model.language_model.config
    return [
        *(
            f"- vision encoder: {encoder.config.model_type}, {encoder.image_size_px} px in patches of "
            f"{encoder.patch_size_px}, layer {encoder.feature_layer}"
            for encoder in model.vision_encoder.encoders
        ),
        f"- projector: {model.projector_settings.kind}; an image is {_image_tokens(model, processor)}",
        f"- language model: {language_model.model_type}, width {language_model.hidden_size}, "
        f"{language_model.num_hidden_layers} layers",
        f"- images are fitted by: {processor.preparer.fit}",
    ]


def _counts(model: VisionLanguageModel) -> list[str]:
    """What a model of transformers is, part by part."""
    counts = {part: sum(own.numel() for own in model.parameters_of(part)) / 1e6 for part in PARTS}
    parts = [f"- {part.replace('_', ' ')}: {millions:,.1f} million parameters" for part, millions in counts.items()]
    return [f"- model of transformers: {type(model.generator).__name__}", *parts]


def _image_tokens(model: MultimodalLM, processor: Processor) -> str:
    """How many tokens an image is, and in how many tiles where that depends on its size."""
    planner, side = processor.planner, processor.geometry.image_size_px
    (image,) = planner.plan([(side, side)])
    if not planner.depends_on_size:
        return f"{image.token_count} tokens"
    longest = planner.longest()
    return (
        f"cut into tiles ({model.image_settings.tiling}): {image.token_count} tokens for one of {side}×{side} px, at most "
        f"{longest.token_count} tokens in {longest.tile_count} tiles"
    )


def _recipe(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "Not recorded beside the model."
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
    recipe = settings["data"]["recipe"]
    return (
        f"Trained on the recipe `{recipe}`, whose files of samples, as they lay there when this card was written, are:\n\n"
        f"{_data(recipe)}\n\nThe settings:\n\n```yaml\n{text}\n```"
    )


def _data(recipe: str) -> str:
    """Make a table of a recipe's sources with the hash of their files: images that lie apart aren't in it."""
    try:
        sources = yaml.safe_load(Path(expanded(recipe)).read_text(encoding="utf-8"))["sources"]
        paths = [str(source["path"]) for source in sources]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, UserError):
        return "- not there any more"
    lines = ["| source | files | sha256 |", "| --- | --- | --- |"]
    for path in paths:
        count, mark = _hash(path)
        lines.append(f"| `{path}` | {count} | {mark} |")
    return "\n".join(lines)


def _hash(path: str) -> tuple[int, str]:
    """The number of files that a source stands for, and their hash, or why there is none."""
    try:
        files = sorted(Path(name) for name in glob(expanded(path), recursive=True) if Path(name).is_file())
    except UserError:
        files = []
    if not files:
        return 0, "not there"
    gib = sum(file.stat().st_size for file in files) / 2**30
    return len(files), f"`{hash_files(files)}`" if gib <= HASHED_GIB else f"not computed of {gib:.0f} GiB"


def _scores(path: Path) -> str:
    """Make a table of `eval/results.json`, which the evaluation writes beside a run's model."""
    file = next((f for f in (path / "eval/results.json", path.parent / "eval/results.json") if f.is_file()), None)
    if file is None:
        return "Not measured."
    results = json.loads(file.read_text(encoding="utf-8"))
    lines = ["| benchmark | condition | questions | score, % | 95% interval |", "| --- | --- | --- | --- | --- |"]
    for benchmark, entries in results["scores"].items():
        for entry in entries:
            if entry["type"] == "overall":
                interval = f"{100 * entry['low']:.1f}–{100 * entry['high']:.1f}"
                cells = (benchmark, entry["condition"], entry["count"], f"{100 * entry['score']:.1f}", interval)
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    hashes = [f"- {name}: `{mark}`" for name, mark in results.get("data_sha256", {}).items()]
    said = [_CONDITIONS] + (
        ["Questions and images of each benchmark, as a hash:\n\n" + "\n".join(hashes)] if hashes else []
    )
    if results.get("model_sha256") not in (None, directory_hash(path)):
        said.append("These scores are of other weights than this directory's.")
    if results.get("is_partial"):
        said.append("Questions were skipped: these scores are of the others alone.")
    return "\n\n".join(["\n".join(lines), *said])
