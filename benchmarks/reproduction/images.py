"""Decoding of pictures that nobody has looked at, and the paper's two transforms.

Both transforms resize the shorter side to 256 (bicubic) and cut out 224 x 224: anywhere while training, in the middle at test
time. There is no flip. Other sizes keep the ratio 256 : 224.
"""

import io
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.reproduction.bad import BadSampleError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The only decoders that see the data: some of Pillow's others start programs."""
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 80_000_000
"""Pillow warns of an image bomb at 89 million; decoded, this many take 240 MB."""


def decode(data: bytes, size: int) -> Image.Image:
    """The picture in `data` as RGB; a large JPEG is decoded smaller, to twice what `crop` at `size` needs or more.

    Raises:
        BadSampleError: `data` is no picture, is damaged or cut short, or would take too much memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, which is not used; Pillow's bomb warning, which the limit precedes
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadSampleError(f"image bomb: {image.width} x {image.height} pixels are over {MAX_PIXELS:,}")
                enough = 2 * _shorter_side(size) / min(image.size)
                image.draft(None, (int(image.width * enough), int(image.height * enough)))
                rgb: Image.Image = image.convert("RGB")
                return rgb
    except BadSampleError:
        raise
    except UnidentifiedImageError:
        raise BadSampleError(f"corrupt image: none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise nearly every type on damaged data
        raise BadSampleError(f"corrupt image: {type(error).__name__}: {error}") from None


def crop(image: Image.Image, size: int, generator: torch.Generator | None = None) -> Tensor:
    """A square of the resized picture, uint8 of shape (size, size, 3): drawn with `generator`, else the middle.

    Only the square is computed, so that a picture of 1 x 50,000 pixels costs no more than others.
    """
    short, resized = min(image.size), _shorter_side(size)
    lengths = [resized * length // short for length in image.size]
    if generator is None:
        starts = [round((length - size) / 2) for length in lengths]
    else:
        draws = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        starts = [int(draw * (length - size + 1)) for draw, length in zip(draws, lengths, strict=True)]
    (left, top), (x, y) = starts, (full / length for full, length in zip(image.size, lengths, strict=True))
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC, box)))


def normalize(pixels: Tensor) -> Tensor:
    """Pixels (B, S, S, 3) of uint8 as the encoder's input: (B, 3, S, S) of float32, CLIP's mean and deviation taken out."""
    count, height, width, _ = pixels.shape
    planes = torch.empty(count, 3, height, width)
    for channel, (mean, deviation) in enumerate(zip(MEAN, STD, strict=True)):  # in NumPy: half the time of PyTorch on one core
        plane = planes.numpy()[:, channel]
        np.subtract(pixels.numpy()[..., channel], np.float32(255 * mean), out=plane)
        plane /= np.float32(255 * deviation)
    return planes


def _shorter_side(size: int) -> int:
    return size * 256 // 224
