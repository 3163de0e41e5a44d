"""Every setting of the project, strict and typed, and how it is read from YAML and `--set`."""

from mllm.config.contrastive import (
    CaptionNoiseSettings,
    ClipDataSettings,
    ClipModelSettings,
    ContrastiveLossSettings,
    ContrastiveSettings,
)
from mllm.config.load import Settings, dump_yaml, load_settings, read_yaml, validate_settings
from mllm.config.model import (
    ImageSettings,
    LanguageModelSettings,
    LoraSettings,
    ModelSettings,
    ProjectorSettings,
    TrainableSettings,
    VisionEncoderSettings,
)
from mllm.config.paths import ExpandedPath, PathText, expanded, expanded_benchmark, expanded_path
from mllm.config.run import (
    Attention,
    BenchmarkSettings,
    DataSettings,
    EngineSettings,
    FinetuneSettings,
    FusedLayers,
    HeldOutSettings,
    LoopSettings,
    OptimizerSettings,
    Packing,
    SampleAnswerSettings,
)

__all__ = [
    "Attention",
    "BenchmarkSettings",
    "CaptionNoiseSettings",
    "ClipDataSettings",
    "ClipModelSettings",
    "ContrastiveLossSettings",
    "ContrastiveSettings",
    "DataSettings",
    "EngineSettings",
    "ExpandedPath",
    "FinetuneSettings",
    "FusedLayers",
    "HeldOutSettings",
    "ImageSettings",
    "LanguageModelSettings",
    "LoopSettings",
    "LoraSettings",
    "ModelSettings",
    "OptimizerSettings",
    "Packing",
    "PathText",
    "ProjectorSettings",
    "SampleAnswerSettings",
    "Settings",
    "TrainableSettings",
    "VisionEncoderSettings",
    "dump_yaml",
    "expanded",
    "expanded_benchmark",
    "expanded_path",
    "load_settings",
    "read_yaml",
    "validate_settings",
]
