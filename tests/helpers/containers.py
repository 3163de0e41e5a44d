"""Tar files and pictures for them."""

import io
import tarfile

from PIL import Image

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (90, 90, 90), (200, 200, 0)]


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (10 + number, 7), COLOURS[number]).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
