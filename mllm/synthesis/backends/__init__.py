"""Backends by the name of their settings, built only when asked for: two of them need optional packages."""

from mllm.synthesis.backends.base import InstructionBackend
from mllm.synthesis.settings import BackendSettings, LocalSettings, OpenAISettings


def build_backend(settings: BackendSettings) -> InstructionBackend:
    """Raises UserError when a package, a key or a model is missing."""
    if isinstance(settings, OpenAISettings):
        from mllm.synthesis.backends.openai import OpenAIBackend

        return OpenAIBackend(settings)
    if isinstance(settings, LocalSettings):
        from mllm.synthesis.backends.local import LocalBackend

        return LocalBackend(settings)
    from mllm.synthesis.backends.template import TemplateBackend

    return TemplateBackend()
