"""One image file, whatever its kind, as bytes of red, green and blue."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_picture(path: Path, size: int | None = None) -> Tensor:
    """Return an image file as uint8 (3, H, W), upright.

    Grey, palette and CMYK images become red, green and blue; what is transparent lies on white;
    16 bits become 8; a turn that the camera noted is carried out; of a film the first picture is
    taken.

    Args:
        path: the file.
        size: scale the shorter side to so many pixels and cut off what is too long at both ends,
            so that the result is a square. None leaves the image as it is.

    Raises:
        ValueError: the file is no image, damaged, of a single pixel, or of floating-point numbers.
            The message is the reason, in one line, without the path.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if opened.size == (1, 1):
                raise ValueError("it has a single pixel")
            picture = _as_rgb(_in_eight_bits(ImageOps.exif_transpose(opened)))
    except Exception as error:  # Pillow raises all kinds of errors for damaged files
        if isinstance(error, Image.UnidentifiedImageError):
            raise ValueError("it is no image") from None
        why = getattr(error, "strerror", None) or error
        raise ValueError(" ".join(str(why).split()) or type(error).__name__) from error
    if size is not None:
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _in_eight_bits(picture: Any) -> Any:
    import numpy as np
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, not 8 or 16 bits")
    if not picture.mode.startswith("I"):  # "I", "I;16", "I;16B", ...
        return picture
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _as_rgb(picture: Any) -> Any:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")
