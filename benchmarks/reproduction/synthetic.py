"""Small made-up data in the real formats, for dry runs: drawn shapes in img2dataset's shards."""

import hashlib
import io
import itertools
import json
import random
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "bar")
CLASSES = [f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]


def write_shards(folder: Path, count: int, per_shard: int, seed: int = 0) -> None:
    """`count` pairs in shards as img2dataset writes them."""
    draw = random.Random(seed)
    for shard, first in enumerate(range(0, count, per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(min(per_shard, count - first)):
                _add_pair(archive, f"{shard:05d}{number:04d}", CLASSES[(first + number) % len(CLASSES)], draw)


def draw_class(name: str, size: tuple[int, int], draw: random.Random) -> tuple[Image.Image, str]:
    """A picture of one of `CLASSES`, somewhere on a ground of another colour, and its caption."""
    colour, shape = name.split()
    ground = draw.choice([other for other in COLOURS if other != colour])
    picture = Image.new("RGB", size, ground)
    canvas = ImageDraw.Draw(picture)
    radius = draw.uniform(0.25, 0.4) * min(size)
    x, y = (draw.uniform(radius, side - radius) for side in size)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        canvas.ellipse(box, colour)
    elif shape == "triangle":
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], colour)
    else:
        canvas.rectangle(box if shape == "square" else (x - radius, y - radius / 4, x + radius, y + radius / 4), colour)
    return picture, f"a {colour} {shape} on a {ground} ground"


def _add_pair(archive: tarfile.TarFile, key: str, name: str, draw: random.Random) -> None:
    size = draw.choice([(256, 256), (341, 256), (256, 384)])
    picture, caption = draw_class(name, size, draw)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=95)
    about = {
        "caption": caption, "url": f"https://example.invalid/{key}.jpg", "key": key, "status": "success", "error_message": None,
        "width": size[0], "height": size[1], "original_width": size[0], "original_height": size[1], "exif": "{}",
        "sha256": hashlib.sha256(data.getvalue()).hexdigest(),
    }  # fmt: skip
    for kind, content in (("jpg", data.getvalue()), ("json", json.dumps(about).encode()), ("txt", caption.encode())):
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
