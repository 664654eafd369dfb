"""Pictures for the report, inside it: small copies where pillow is installed, else small files as they are."""

import base64
import io
import warnings
from pathlib import Path

from otter_losses.audit.command.files import INSTALL

EDGE = 320
SMALL = 48 * 1024
TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}


class NoPicture(Exception):
    """Says why, to whoever reads the report."""


def embedded(file: Path) -> str:
    """A data URI.

    Raises:
        NoPicture: there is none to show.
    """
    try:
        data = file.read_bytes()
    except (OSError, ValueError):  # a path may hold anything
        raise NoPicture("no such file") from None
    try:
        from PIL import Image, ImageOps
    except ImportError:
        kind = TYPES.get(file.suffix.lower())
        if kind is None or len(data) > SMALL:
            raise NoPicture(f"needs pillow: {INSTALL}") from None
        return _uri(kind, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of pictures of monstrous size, among others
            with Image.open(io.BytesIO(data)) as picture:
                picture.draft("RGB", (2 * EDGE, 2 * EDGE))
                turned = ImageOps.exif_transpose(picture).convert("RGBA")
        turned.thumbnail((EDGE, EDGE))
        canvas = Image.new("RGB", turned.size, "white")
        canvas.paste(turned, mask=turned)
    except Exception as error:  # whatever a decoder makes of a broken file
        raise NoPicture(f"cannot be read ({type(error).__name__})") from None
    small = io.BytesIO()
    canvas.save(small, "JPEG", quality=80, optimize=True)
    return _uri("jpeg", small.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
