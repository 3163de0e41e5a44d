"""Backends by the name of their settings, built only when asked for: two of them need optional packages."""

from mllm.synthesis.instructions.backends.base import InstructionBackend
from mllm.synthesis.instructions.config import BackendSettings, LocalSettings, OpenAISettings


def build_backend(settings: BackendSettings) -> InstructionBackend:
    """Raises UserError when a package, a key or a model is missing."""
    if isinstance(settings, OpenAISettings):
        from mllm.synthesis.instructions.backends.openai import OpenAIBackend

        return OpenAIBackend(settings)
    if isinstance(settings, LocalSettings):
        from mllm.synthesis.instructions.backends.local import LocalBackend

        return LocalBackend(settings)
    from mllm.synthesis.instructions.backends.template import TemplateBackend

    return TemplateBackend()
