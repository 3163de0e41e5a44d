"""How a model lays out images, as its configuration says it, read without torch where the files name all sizes."""

import json
from pathlib import Path
from typing import Any

from mllm.media.visual import ImageGeometry, VisualPlanner
from mllm.model.planning import build_planner, encoder_geometry, overlaid
from mllm.model.settings import ImageSettings, ModelSettings, ProjectorSettings, VideoSettings
from mllm.model.tile_tokens import projected

OUR_KEYS = ("class_token", "projector", "image", "vision_config")
Layout = tuple[ImageGeometry, VisualPlanner]


def layout_of_settings(settings: ModelSettings) -> Layout:
    """Geometry and planner of the model that a run with these settings trains.

    Raises UserError for a missing encoder or model, and for settings that don't fit it.
    """
    if settings.init_from is not None:
        return layout_of_model(settings.init_from, settings.image, settings.video, settings.image_size_px)
    assert settings.vision_encoder is not None
    encoder, path = settings.vision_encoder, settings.encoder_path
    config = _read_config(Path(path).expanduser())
    sizes = _sizes_px(config.get("vision_config", config))
    if sizes is None or encoder.image_size_px is not None or encoder.second is not None:
        from mllm.checkpoint.parts import require_directory, vision_config
        from mllm.checkpoint.start import second_encoder
        from mllm.model.fused_encoder import tile_geometry

        require_directory(path, "model.vision_encoder.path")
        seen = tile_geometry(
            vision_config(path),
            encoder.feature_layer,
            encoder.class_token,
            encoder.image_size_px,
            second_encoder(encoder),
        )
    else:
        seen = encoder_geometry(*sizes, encoder.class_token)
    geometry = projected(seen, settings.projector)
    return geometry, build_planner(geometry, settings.image, settings.video)


def layout_of_model(
    path: str,
    image: ImageSettings | None = None,
    video: VideoSettings | None = None,
    image_size_px: int | None = None,
) -> Layout:
    """Geometry and planner of a model directory, or of the directory of a finished run.

    A model that isn't ours is loaded for it. What is set in `image` and `video`, and image_size_px, replace what is saved.
    Raises UserError where there is no whole model.
    """
    directory = Path(path).expanduser()
    directory = directory / "final" if (directory / "final").is_dir() else directory
    config = _read_config(directory)
    if not all(key in config for key in OUR_KEYS):
        from mllm.checkpoint.load import load

        _, processor = load(path, image=image, video=video)
        return processor.geometry, processor.planner
    sizes, side = _sizes_px(config["vision_config"]), image_size_px or config.get("image_size_px")
    if sizes is None or side is not None or "second_encoder" in config:
        from mllm.checkpoint.ours import parts_of

        parts = parts_of(config, image, video, image_size_px)
        return parts.geometry, parts.planner
    geometry = projected(encoder_geometry(*sizes, config["class_token"]), ProjectorSettings(**config["projector"]))
    images = overlaid(ImageSettings(**config["image"]), image)
    return geometry, build_planner(geometry, images, overlaid(VideoSettings(**config.get("video", {})), video))


def _read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory; empty where it can't be read, which whoever reads it with transformers says better."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _sizes_px(vision: object) -> tuple[int, int] | None:
    """Side of the input and of a patch of an encoder's configuration; None where it leaves one to the class's default."""
    if not isinstance(vision, dict):
        return None
    image, patch = vision.get("image_size"), vision.get("patch_size")
    return (image, patch) if isinstance(image, int) and isinstance(patch, int) else None
