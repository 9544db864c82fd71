"""Decoding of images, and cropping to one size."""

import contextlib
import math
from collections.abc import Iterator
from typing import IO, Any

from hmt_jax._checks import integer

# Pillow opens other formats too, but some of them start programs: EPS starts Ghostscript.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_MOST_RESIZED_PIXELS = 2**25  # 134 MB in memory; a photograph resized for a network has less than a hundredth of that


def decode(file: str | IO[bytes], mode: str) -> Any:
    """A Pillow image in the given mode, decoded from a file; transparency is dropped if the mode has no channel for it.

    Args:
      file: the path of a file, or an open one. The checksums of PNG are compared only for a path: records of prepared
        data sets have checksums of their own.
      mode: as Pillow names it.

    Raises:
      Exception: of many classes, because Pillow passes on the errors of its decoders: OSError, SyntaxError, ValueError,
        struct.error and more. The message does not name the file: callers add that.
    """
    if isinstance(file, str):
        _verify(file)
    with _opened(file) as image:
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert(mode)  # in one step, Pillow warns
        return image.convert(mode)


def size_and_mode(file: str) -> tuple[tuple[int, int], str]:
    """The (width, height) and the mode of an image, from the head of its file.

    Raises:
      Exception: as `decode`.
    """
    with _opened(file) as image:
        return image.size, image.mode


def _verify(file: str) -> None:
    """Compares the checksums of a PNG file, which Pillow does not do for pixels when it decodes them."""
    with _opened(file) as image:
        if image.format == "PNG":
            image.verify()


@contextlib.contextmanager
def _opened(file: str | IO[bytes]) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its mode {image.mode} has more than 8 bits")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"it has more than {Image.MAX_IMAGE_PIXELS} pixels: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"it is not recognised as {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from None


def check_crop(resize: int, crop: int) -> None:
    """Raises ValueError unless a resized image holds the crop, and the crop fits in memory."""
    for argument, value in (("resize", resize), ("crop", crop)):
        if isinstance(value, bool):
            raise ValueError(f"{argument} must be a number of pixels, such as 224, got {value}")
    if not 1 <= integer("crop", crop) <= integer("resize", resize):
        raise ValueError(f"crop must be at least 1 and at most resize, got crop {crop} and resize {resize}: lower crop")
    most = math.isqrt(_MOST_RESIZED_PIXELS)
    if crop > most:
        raise ValueError(f"crop must be at most {most}, so that an image fits in memory, got {crop}: lower crop")


def resize_and_crop(image: Any, resize: int, crop: int) -> Any:
    """The middle of a resized image: crop x crop pixels, as a Pillow image."""
    from PIL import Image

    # Rounded as in torchvision: the longer side down; margins that end in a half, to the nearest even number.
    width, height = (resize * side // min(image.size) for side in image.size)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    right, bottom = left + crop, top + crop
    if width * height <= _MOST_RESIZED_PIXELS:
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, right, bottom))
    # The whole image would fill the memory, so only the middle is resized. Ordinary images are resized whole, because
    # Pillow rounds the box to float32, which changes some pixels by one level.
    box = (
        left * image.width / width,
        top * image.height / height,
        right * image.width / width,
        bottom * image.height / height,
    )
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
