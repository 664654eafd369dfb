"""Decoding what nobody has looked at, and the two transforms against Pillow's own resize and crop."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.reproduction.bad import BadSampleError
from benchmarks.reproduction.images import MAX_PIXELS, crop, decode


def encode(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with some smoothness."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A small file that claims any size; its rows are all there, and compress to nearly nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    parts = [(b"IHDR", start), *extra, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


@pytest.mark.parametrize("size", [(300, 300), (500, 260), (256, 700), (20, 31), (1, 1), (1, 300)])
def test_transforms_are_resize_then_crop(size: tuple[int, int]) -> None:
    image = photograph(*size)
    short = min(size)
    resized = image.resize((256 * size[0] // short, 256 * size[1] // short), Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.abs(crop(image, 224).numpy().astype(int) - expected).max() <= 1
    generator = torch.Generator().manual_seed(1)
    draws = torch.rand(2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, top = (int(draw * (side - 223)) for draw, side in zip(draws.tolist(), resized.size, strict=True))
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.abs(crop(image, 224, generator).numpy().astype(int) - expected).max() <= 1


def test_random_crops_reach_every_place_and_repeat() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    draws = [int(crop(image, 56, torch.Generator().manual_seed(seed))[0, 0, 0]) for seed in range(300)]
    assert set(draws) == set(range(9))
    assert draws == [int(crop(image, 56, torch.Generator().manual_seed(seed))[0, 0, 0]) for seed in range(300)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 200, dtype=np.uint16))
    else:
        image = Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode)
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = decode(encode(image, form), 224)
    assert (decoded.mode, decoded.size) == ("RGB", (40, 30))
    if mode != "I;16":
        assert np.asarray(decoded).min() > 250


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_cut_picture_is_refused(form: str) -> None:
    data = encode(photograph(200, 150), form)
    assert decode(data, 224).size == (200, 150)
    for part in (0, 1, 10, len(data) // 2, len(data) - (30 if form != "GIF" else 300)):
        with pytest.raises(BadSampleError, match="corrupt image: "):
            decode(data[:part], 224)


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>404 Not Found</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",  # Pillow would run Ghostscript
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encode(Image.new("RGB", (9, 9)), "TIFF"),
    ],
)
def test_what_is_no_picture_of_the_web_is_refused(data: bytes) -> None:
    with pytest.raises(BadSampleError, match="corrupt image: none of JPEG, PNG"):
        decode(data, 224)


@pytest.mark.parametrize("width", [MAX_PIXELS // 8000 + 1, 20_000])
def test_image_bombs_are_refused_before_they_are_decoded(width: int) -> None:
    data = png(width, 8000)
    assert len(data) < 200_000
    tracemalloc.start()
    with pytest.raises(BadSampleError, match="bomb"):
        decode(data, 224)
    assert tracemalloc.get_traced_memory()[1] < 10 * len(data)
    tracemalloc.stop()


def test_a_bomb_in_the_comments_is_refused() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(20 * 2**20), 9)
    with pytest.raises(BadSampleError, match="corrupt image"):
        decode(png(8, 8, (b"zTXt", text)), 224)


def test_a_strip_costs_no_more_than_a_square() -> None:
    pixels = crop(decode(png(1, 60_000), 224), 224)
    assert pixels.shape == (224, 224, 3)


def test_a_large_jpeg_decoded_smaller_is_the_same_picture() -> None:
    image = photograph(3000, 2100)
    data = encode(image, quality=95)
    small = decode(data, 224)
    assert 512 <= min(small.size) < 2100
    expected = crop(image, 224).numpy().astype(int)
    assert np.abs(crop(small, 224).numpy() - expected).mean() < 0.05 * expected.std()  # 0.3 if decoded to just enough


@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20),
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
)
def test_damage_gives_a_picture_or_one_type_of_error(changes: list[tuple[float, int]], form: str) -> None:
    data = bytearray(encode(photograph(60, 40), form))
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(BadSampleError):
        assert crop(decode(bytes(data), 32), 32).shape == (32, 32, 3)
