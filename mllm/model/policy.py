"""What learns: one function freezes, adds LoRA, and reports; another holds the report against the policy."""

from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mllm.config import LoraSettings, TrainableSettings
from mllm.errors import UserError
from mllm.model.multimodal import MultimodalLM

PARTS = ("vision_encoder", "projector", "language_model")


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part: all, and those that learn."""

    part: str
    total: int
    trainable: int


def add_lora(model: MultimodalLM, settings: LoraSettings) -> None:
    """Put LoRA (Hu et al. 2022) on every linear layer of the language model but its head, by full path."""
    language_model = model.language_model
    head = language_model.get_output_embeddings()
    targets = [name for name, m in language_model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if not targets:
        raise UserError("trainable.language_model: lora, but the language model has no linear layer")
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    inject_adapter_in_model(config, language_model)
    model.lora_settings = settings.model_dump(mode="json")


def merge_lora(model: MultimodalLM) -> None:
    """Fold the LoRA update into the weights it adapts and remove it: same function, plain layers."""
    from peft.tuners.lora import LoraLayer

    language_model = model.language_model
    for name, module in list(language_model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = language_model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    model.lora_settings = None


def apply_policy(model: MultimodalLM, policy: TrainableSettings) -> list[PartCount]:
    """Set `requires_grad` as the policy says (adding LoRA if asked and not there yet); returns counts by part."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if policy.language_model == "lora":
        if model.lora_settings is None:
            add_lora(model, policy.lora)
        for name, parameter in model.language_model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif model.lora_settings is not None:
        merge_lora(model)
    for part in PARTS:
        if getattr(policy, part) == "full":
            getattr(model, part).requires_grad_(True)
    if policy.token_embeddings == "frozen":
        for parameter in _token_embeddings(model):
            parameter.requires_grad_(False)
    for parameter in model.vision_encoder.unused_parameters():
        parameter.requires_grad_(False)
    counts = count_parameters(model)
    check_policy(model, policy)
    return counts


def _token_embeddings(model: MultimodalLM) -> list[nn.Parameter]:
    """The weights that turn tokens into features and back; one where the two are tied."""
    language_model = model.language_model
    return [*language_model.get_input_embeddings().parameters(), *language_model.get_output_embeddings().parameters()]


def count_parameters(model: MultimodalLM) -> list[PartCount]:
    out = []
    for part in PARTS:
        parameters = list(getattr(model, part).parameters())
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
        out.append(PartCount(part, sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)))
    return out


def check_policy(model: MultimodalLM, policy: TrainableSettings) -> None:
    """Raise RuntimeError if any parameter learns that the policy freezes, or the reverse."""
    embeddings = {id(p) for p in _token_embeddings(model)} if policy.token_embeddings == "frozen" else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) in embeddings:
            raise RuntimeError(f"{name} would learn, but trainable.token_embeddings is frozen")
        part = name.split(".")[0]
        wanted = getattr(policy, part)
        allowed = wanted == "full" or (wanted == "lora" and "lora_" in name)
        if parameter.requires_grad and not allowed:
            raise RuntimeError(f"{name} would learn, but trainable.{part} is {wanted}")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("trainable: every part is frozen, so there is nothing to train")


def policy_table(counts: list[PartCount]) -> str:
    """The counts as lines of text."""
    rows = [f"{'part':<16}{'parameters':>16}{'trainable':>16}"]
    rows += [f"{c.part:<16}{c.total:>16,}{c.trainable:>16,}" for c in counts]
    total, trainable = sum(c.total for c in counts), sum(c.trainable for c in counts)
    return "\n".join([*rows, f"{'all':<16}{total:>16,}{trainable:>16,}"])
