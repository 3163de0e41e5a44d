"""`mllm data convert`: samples of any reader in another format, exact or refused."""

from pathlib import Path

from mllm.data.readers import READERS
from mllm.data.recipe import SourceSettings
from mllm.data.samples import with_resolved_images
from mllm.data.writers import open_writer


def convert(source: SourceSettings, out: Path, embed_images: bool) -> int:
    """Write all samples of `source` to `out`, in order; returns how many. Image paths stay as they are.

    Raises UserError, leaving no file, for a record that can't be read and for a sample that the format of `out` can't
    give back exactly.
    """
    reader, root, files = READERS.get(source.reader), Path(source.image_root), source.files()
    holders = [str(Path(file)) for file in files]
    with open_writer(out, embed_images) as writer:
        for file in files:
            for sample in reader(Path(file)):
                if embed_images:
                    places = dict(zip(sample.images, with_resolved_images(sample, root, holders).images, strict=True))
                    writer.write(sample, places.__getitem__)
                else:
                    writer.write(sample, str)
    return writer.count
