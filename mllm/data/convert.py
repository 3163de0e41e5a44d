"""`mllm data convert`: samples of any reader in another format, exact or refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mllm.data.recipe import SourceSettings
from mllm.data.validate import Findings, examined
from mllm.data.writers import open_writer
from mllm.errors import UserError
from mllm.outputs import check_file

BY = "mllm data convert"
DECODING_THREADS = 2


def convert(source: SourceSettings, out: Path, embed_images: bool) -> int:
    """Write all samples of `source` to `out`, in order; returns how many. Image paths stay as they are.

    Raises UserError, leaving no file, for whatever `mllm data validate` calls a problem (of images only where they are
    embedded: elsewhere they need not be there) and for a sample that the format of `out` can't give back exactly.
    """
    check_file(out, BY, source.files())
    findings = Findings()
    with ThreadPoolExecutor(DECODING_THREADS) as pool, open_writer(out, BY, embed_images) as writer:
        for sample, resolved, _ in examined(source, pool, None, findings, looks_at_images=embed_images):
            _refuse(findings)
            writer.write(sample, dict(zip(sample.images, resolved.images, strict=True)).__getitem__)
        _refuse(findings)
    return writer.count


def _refuse(findings: Findings) -> None:
    if findings.problems:
        first = findings.problems[0]
        named = f"sample {first.id!r}: " if first.id else ""
        place = "" if first.reason.startswith(first.place) else f"{first.place}: "
        raise UserError(
            f"{place}{named}{first.reason}; `mllm data validate` lists all problems and writes a clean copy"
        )
