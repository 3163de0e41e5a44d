"""Read settings from YAML and `--set`: strict, typed, with errors that name file, key and choices."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mllm.errors import UserError
from mllm.foreign_keys import OURS

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """`text` with a home directory for a leading `~` or `~NAME` and values for `$VARIABLE` and `${VARIABLE}`.

    A URL stays as it is. Raises UserError for a variable that isn't set and a home that isn't there: left as they are, they
    would become the name of a folder.
    """
    if "://" in text:
        return text
    unset = next((found for found in _VARIABLE.finditer(text) if (found[1] or found[2]) not in os.environ), None)
    if unset is not None:
        raise UserError(f"path {text}: the environment variable {unset[1] or unset[2]} is not set")
    path = os.path.expanduser(_VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], text))
    if path.startswith("~"):
        raise UserError(f"path {text}: there is no such home directory; write ./{path} for a file of that name")
    return path


def expanded_path(text: str) -> Path:
    """`expanded`, for arguments that are read as paths."""
    return Path(expanded(text))


def expanded_benchmark(name: str) -> str:
    """Of the name of a benchmark: `FILE.jsonl:METRIC` and the source of `NAME@SOURCE` may be paths."""
    return "@".join(map(expanded, name.split("@")))


def _of_settings(text: str, expand: Callable[[str], str] = expanded) -> str:
    try:
        return expand(text)
    except UserError as error:
        raise ValueError(str(error)) from None


PathText = Annotated[str, AfterValidator(lambda text: _of_settings(text))]


BenchmarkName = Annotated[str, AfterValidator(lambda name: _of_settings(name, expanded_benchmark))]


ExpandedPath = Annotated[Path, AfterValidator(lambda path: Path(_of_settings(str(path))))]


class Settings(BaseModel):
    """Base of every settings class: an unknown key is an error, and values don't change after loading.

    The string below a field describes it, in schemas and in the reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice in one mapping, which plain YAML resolves silently to the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when the file is missing or isn't a mapping."""
    path = Path(expanded(str(path)))
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(value).__name__}")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set each `a.b=c` of `overrides` in the nested mapping `values`; the right side is read as YAML."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override!r}: expected key=value, such as optim.lr=1e-5")
        *parents, last = key.strip().split(".")
        node = values
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UserError(f"--set {override!r}: {parent!r} is a value, not a group of settings")
            node = child
        node[last] = _read_value(text)


def _read_value(text: str) -> Any:
    value = yaml.safe_load(text) if text.strip() else ""
    if isinstance(value, str):
        # YAML 1.1 reads 1e-5 (without a dot) as a string; nobody who types it means one.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_values(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file with `overrides` applied, not validated. Raises UserError like `read_yaml`."""
    values = read_yaml(path)
    apply_overrides(values, overrides)
    return values


def load_settings(cls: type[S], path: Path | str, overrides: Sequence[str] = ()) -> S:
    """Read `path`, apply `overrides`, validate against `cls`. Raises UserError naming file, line, key and choices."""
    return validate_settings(cls, read_values(path, overrides), expanded(str(path)))


def command_of(values: dict[str, Any]) -> str | None:
    """The command that a config with these keys is for; None where they leave it open."""
    if "training" in values and "prompts" in values:
        return "mllm improve"
    if values.keys() & {"pictures", "denoiser"} or values.get("kind") == "prior":
        return "mllm generate train"
    data = values.get("data")
    if isinstance(data, dict) and ("recipe" in data) != ("pairs" in data):
        return "mllm train" if "recipe" in data else "mllm clip train"
    if "backend" in values and "inputs" in values:
        return "mllm synth"
    return "mllm data validate" if "sources" in values and "run_dir" not in values else None


def validate_settings(cls: type[S], values: dict[str, Any], origin: str) -> S:
    """`values` as an instance of `cls`; `origin` (a file name) is named in the UserError raised when they don't fit."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_describe(cls, item, origin) for item in error.errors())) from None


def _describe(cls: type[BaseModel], item: Any, origin: str) -> str:
    path = [str(part) for part in item["loc"]]
    where = _location(origin, path)
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; {_hint(cls, path)}"
    if item["type"] == "missing":
        return f"{where}: missing key {key!r}"
    return f"{where}: {key}: {item['msg']} (got {item['input']!r})" if key else f"{where}: {item['msg']}"


def _location(origin: str, path: list[str]) -> str:
    """`file:line` of the last key of `path` that the file holds (an override has no line)."""
    if not Path(origin).is_file():
        return origin
    node: Any = yaml.compose(Path(origin).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = None
    for part in path:
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return f"{origin}:{line}" if line else origin


def _hint(cls: type[BaseModel], path: list[str]) -> str:
    """What an unknown key is here: our name for another framework's, its place elsewhere, or the keys of its group."""
    name, known = path[-1], _keys_below(cls)
    ours = OURS.get(name, "")
    if re.split("[: ]", ours)[0] in known:
        return f"here it is {ours}"
    places = [key for key in known if key.rpartition(".")[2] == name]
    if len(places) == 1:
        return f"here it is {places[0]}"
    choices = sorted({field for group in _groups_at(cls, path[:-1]) for field in group.model_fields})
    close = difflib.get_close_matches(name, choices, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"keys here: {', '.join(choices)}"


def _keys_below(cls: type[BaseModel]) -> list[str]:
    """Every key of `cls`, those of groups in groups with dots between."""
    keys = []
    for name, field in cls.model_fields.items():
        keys += [name, *(f"{name}.{key}" for group in _groups_of(field.annotation) for key in _keys_below(group))]
    return keys


def _groups_at(cls: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    """The settings classes that `path` may lead to: several where it leads to one of several kinds."""
    groups = [cls]
    for part in path:
        fields = [group.model_fields[part] for group in groups if part in group.model_fields]
        if fields:
            groups = [group for field in fields for group in _groups_of(field.annotation)]
        else:  # the place in a list, or the kind of a group, which one of its fields names
            kinds = [g for g in groups if any(part in get_args(f.annotation) for f in g.model_fields.values())]
            groups = kinds or groups
    return groups


def _groups_of(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in _flatten_annotation(annotation) if hasattr(kind, "model_fields")]


def _flatten_annotation(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [annotation] if not arguments else [x for a in arguments for x in _flatten_annotation(a)]


def dump_yaml(settings: BaseModel) -> str:
    """The resolved settings as YAML, ready to be given back as a config file."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
