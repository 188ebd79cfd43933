"""Small tars of images, and what a reader makes of them."""

import io
import tarfile

from PIL import Image

from headstart.data.options import DataOptions
from headstart.data.sources.raw import source_bytes
from photo_data import CLASSES, make_photo

WHOLE = DataOptions(val_fraction=0.0)


def png(label, seed=0):
    buffer = io.BytesIO()
    Image.fromarray(make_photo(CLASSES[label], seed)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def truth(data, split="train"):
    """Class name and bytes of every example."""
    part = data.splits[split]
    return [
        (data.classes[label], source_bytes(image))
        for image, label in zip(part.images, part.labels, strict=True)
    ]


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name
