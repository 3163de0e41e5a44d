"""What is learned from and scored, from the folders and files that a user names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllm.contrastive.zeroshot import class_folders
from mllm.errors import UserError
from mllm.studies.adapt.layouts import Images, LaidOut, read_domains, read_layout
from mllm.studies.adapt.problem import LabelledFeatures, labelled_files

Encode = Callable[[Images, Sequence[str]], LabelledFeatures]


@dataclass(frozen=True)
class Problem:
    """What to learn from, what to score by name, and the prompt of the data set's authors, if they have one."""

    train: LabelledFeatures
    tests: Mapping[str, LabelledFeatures]
    template: str | None = None


def read_problems(
    train: str, tests: Sequence[str], image_root: str, class_names: Sequence[str] | None, encode: Encode
) -> list[Problem]:
    """Read one problem; of a folder of domains that no tests are named for, one a domain, learned and scored there.

    Raises UserError when a source can't be read, or there is nothing to score.
    """
    laid_out = read_layout(train)
    domains = {} if laid_out else read_domains(train)
    if domains and not tests:
        return [_of_domain(name, domain, encode) for name, domain in domains.items()]
    if domains:
        raise UserError(f"--train {train} is a folder of domains: name one of them, or leave --test out")
    template = None
    if laid_out is not None:
        names, template = laid_out.names, laid_out.template
        if "train" not in laid_out.parts:
            raise UserError(f"--train {train} is a data set for testing only; name it as --test")
        learned = encode(laid_out.parts["train"], names)
        if "val" in laid_out.parts:
            learned = replace(learned, held_back=encode(laid_out.parts["val"], names))
    else:
        names = tuple(class_names or class_folders(train)[2])
        learned = encode(labelled_files(train, image_root, names), names)
    scored: dict[str, LabelledFeatures] = {}
    for test in tests or [train]:
        scored |= _tested(test, names, image_root, encode)
    return [Problem(learned, scored, template)]


def _of_domain(name: str, domain: LaidOut, encode: Encode) -> Problem:
    images = encode(domain.parts["test"], domain.names)
    return Problem(images, {name: images})


def _tested(source: str, names: Sequence[str], image_root: str, encode: Encode) -> dict[str, LabelledFeatures]:
    laid_out = read_layout(source)
    if laid_out is not None:
        return {Path(source).resolve().name: encode(laid_out.parts["test"], laid_out.names)}
    domains = read_domains(source)
    if domains:
        return {name: encode(domain.parts["test"], domain.names) for name, domain in domains.items()}
    return {source: encode(labelled_files(source, image_root, names), names)}
