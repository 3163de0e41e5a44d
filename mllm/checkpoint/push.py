"""Sending a model directory to the hub: its files and its card, and nothing else that lies there."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mllm.checkpoint import ours, public
from mllm.checkpoint.card import README, model_card
from mllm.errors import UserError
from mllm.model.interface import VisionLanguageModel
from mllm.outputs import LIST
from mllm.processor import Processor

CONFIGS = ("config.json", "adapter_config.json")
# What a model is made of. Pickles, checkpoints with the state of an optimizer, logs and answers are not.
SENT = (
    *("*.safetensors", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt"),
    *("run_config.yaml", "Modelfile", README, public.LOW_RANK),
)
_REASONS = {
    401: "it doesn't know the token; run hf auth login",
    403: "the token may not write there; take one that may, or another owner",
    404: "it has no such owner, or wants another token",
}


@dataclass(frozen=True)
class Upload:
    """What goes to the hub: files of `directory`, by their paths in it, and a card where none lies there (else None)."""

    directory: Path
    files: tuple[str, ...]
    left: tuple[str, ...]
    card: str | None

    def size_bytes(self, name: str) -> int:
        return (self.directory / name).stat().st_size


def plan_upload(source: Path) -> Upload:
    """Choose the files of a model directory, of ours, of transformers or of `mllm export`; of a run, those of `final/`.

    A README.md that lies there is the card; without one, a card is written. Raises UserError for what is no model.
    """
    directory = ours.model_directory(source)
    if not directory.is_dir():
        raise UserError(f"model {str(source)!r} does not exist; give a model directory, or a run with final/ in it")
    if not any((directory / name).is_file() for name in CONFIGS):
        raise UserError(
            f"{directory} is not a model directory: it has no config.json; of a checkpoint, give the model/ in it"
        )
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    sent = tuple(name for name in names if _is_sent(name))
    if not any(name.endswith((".safetensors", ".gguf")) for name in sent):
        raise UserError(f"{directory} holds no weights in safetensors or GGUF; copy it again")
    card = None if README in sent else _card(directory)
    return Upload(directory, sent, tuple(name for name in names if name not in sent and name != LIST), card)


def send(upload: Upload, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Send an upload to the hub in one commit, making repository and branch if need be; returns where it can be seen.

    Raises UserError, one line, where the hub can't be reached, asks for a token, or has a public repository of that name
    when a private one is wanted.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so that nothing is sent to the hub; unset it, or look with --dry-run")
    if get_token() is None:
        raise UserError("the hub wants a token to write: run hf auth login, or set HF_TOKEN")
    api = HfApi()
    operations = [CommitOperationAdd(name, upload.directory / name) for name in upload.files]
    if upload.card is not None:
        operations.append(CommitOperationAdd(README, upload.card.encode()))
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} is there and public, so nothing was sent; name another, or leave --private out")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.create_commit(repo_id, operations, commit_message="Upload by mllm push", revision=revision)
    except UserError:
        raise
    # The hub's errors share no base class: they are its own, those of the client that it is reached by, and the system's.
    except Exception as error:
        raise UserError(f"{repo_id} could not be sent to {api.endpoint}: {_reason(error)}") from None
    return str(done.commit_url)


def _reason(error: Exception) -> str:
    if type(error).__name__ == "HFValidationError":
        return "no id has this form; write OWNER/NAME"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return _REASONS.get(status, f"it answered {status}")
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{words}; is the network there?" if "onnect" in f"{type(error).__name__} {words}" else words


def _is_sent(name: str) -> bool:
    """Whether a file, by its path in the directory, is of the model: those of folders only where they are named whole."""
    hidden = name.startswith(".")
    return not hidden and any(name == own or ("/" not in name and fnmatchcase(name, own)) for own in SENT)


def _card(directory: Path) -> str:
    model: VisionLanguageModel
    processor: Processor
    if ours.is_ours(directory):
        model, processor = _begun(ours.begin(directory))
        return model_card(directory, model, processor, "mllm")
    model, processor = _begun(public.begin(directory))
    return model_card(directory, model, processor, "hf")


def _begun(beginning: Any) -> tuple[VisionLanguageModel, Processor]:
    return beginning.model, beginning.processor
