"""The optional package that generators stand on."""

from importlib.util import find_spec

from mllm.errors import UserError


def check_diffusers() -> None:
    """Raise UserError where diffusers isn't installed."""
    if find_spec("diffusers") is None:
        raise UserError("generators need diffusers; install the extra: pip install 'mllm[generation]'")
