"""Images as a caller gives them: paths, Pillow's images and numpy arrays. All become pixels at the network's input size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, naming
from cnet_deploy.images.bounds import Unfit
from cnet_deploy.images.decode import Pixels, Source, read_image, refuse_url, resized, walk_images
from cnet_deploy.images.image_file import MAX_DECODED, taken
from cnet_deploy.images.preprocessing import CHANNELS, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# A path, an image of Pillow, or uint8 [height, width] or [height, width, channels].
Given = Union[Path, str, "Image.Image", npt.NDArray[np.uint8]]
_BYTES = (bytes, bytearray, memoryview)
_ENCODED = "of an encoded image give PIL.Image.open(io.BytesIO(data))"
_EXPECTED = "expected a path, an image of Pillow, or a numpy array of uint8 [height, width, channels]"


def pixels_of(image: Given, preprocessing: Preprocessing, *, upright: bool = True) -> Pixels:
    """An image as uint8 [channels, H, W] at the network's input size: turned, resized and cropped, but not normalised.

    ``upright``: an image file or an image of Pillow is turned as its EXIF data say. Raises InputRefused for a file that is no image, and
    for an array of another type or layout; the message says how to change it.
    """
    if isinstance(image, (str, Path)):
        if image == "":
            raise InputRefused(f"the path is empty; {_EXPECTED}")
        refuse_url(image)
        return read_image(Path(image), preprocessing, upright=upright)
    if isinstance(image, np.ndarray):
        from PIL import Image

        fitting = _fitting(image)
        picture = Image.fromarray(np.ascontiguousarray(fitting))
        try:
            return resized(picture, preprocessing)
        except Unfit as error:
            raise InputRefused(f"the array can't be prepared: {error}") from None
    if is_picture(image):
        with taken(image, upright=upright) as picture:
            return resized(picture, preprocessing)
    given: object = image
    raise InputRefused(f"the image is {type_in_words(given)}; {_ENCODED if isinstance(given, _BYTES) else _EXPECTED}")


def is_picture(image: object) -> bool:
    """Whether this is an image of Pillow, which is not imported."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(image).__mro__)


def type_in_words(value: object) -> str:
    """What a caller gave, for messages.

    >>> type_in_words([]), type_in_words(1), type_in_words(None), type_in_words(np.float32(1))
    ('a list', 'an int', 'nothing', 'a numpy.float32')
    """
    if value is None:
        return "nothing"
    module, name = type(value).__module__, type(value).__qualname__
    text = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def walk_given(given: Iterable[Given] | Given, preprocessing: Preprocessing, classes: int) -> Iterator[Source]:
    """The images that a caller gives, one or several, in their order. Paths may be folders and CIFAR's binary files (see ``walk_images``).

    An image in memory is named "image 0", "image 1" … by its place among all that were given. Raises InputRefused as ``pixels_of`` does
    for arrays and what is no image; a file that can't be read raises when it is read.
    """
    if isinstance(given, _BYTES):
        raise InputRefused(f"what to classify is {type_in_words(given)}; {_ENCODED}")
    one = isinstance(given, (str, Path)) or is_picture(given) or (isinstance(given, np.ndarray) and given.ndim < 4)
    if not one and not isinstance(given, Iterable):
        raise InputRefused(f"what to classify is {type_in_words(given)}; {_EXPECTED}, or several of these")
    items: Iterable[Any] = [given] if one else given  # type: ignore[assignment]
    for number, item in enumerate(items):
        if isinstance(item, (str, Path)) and item != "":
            yield from walk_images(item, preprocessing, classes, upright=True)
            continue
        name = f"image {number}"
        if not is_picture(item):
            with naming(name):  # a mistake of the caller's, which no other image can be right after
                pixels = pixels_of(item, preprocessing)
            yield Source(name, partial(_kept, pixels))
        else:
            yield Source(name, partial(_named, name, item, preprocessing))


def _kept(pixels: Pixels) -> Pixels:
    return pixels


def _named(name: str, image: Given, preprocessing: Preprocessing) -> Pixels:
    with naming(name):
        return pixels_of(image, preprocessing)


def _fitting(array: npt.NDArray[Any]) -> Pixels:
    """The array as [height, width] or [height, width, 3 or 4]. Raises InputRefused for any other type or layout."""
    shape = "x".join(map(str, array.shape)) or "no dimensions"
    layouts = "[height, width] or [height, width, channels], with 1, 3 or 4 channels"
    by_planes = array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS
    if array.dtype != np.uint8:
        raise InputRefused(f"the array is {array.dtype}, {shape}: {_as_bytes(array, '.transpose(1, 2, 0)' if by_planes else '')}")
    if by_planes:
        raise InputRefused(f"the array is uint8 {shape}, channels first; expected channels last: give image.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        several = "; give one image after the other" if array.ndim == 4 else ""
        raise InputRefused(f"the array is uint8 {shape}; expected {layouts}{several}")
    if not array.size:
        raise InputRefused(f"the array is uint8 {shape}, which has no pixels; expected {layouts}")
    if array.size > MAX_DECODED:  # it may be a small one that was broadcast
        raise InputRefused(f"the array is uint8 {shape}; expected at most {MAX_DECODED:,} bytes")
    if isinstance(array, np.ma.MaskedArray):
        raise InputRefused("the array is masked, and an image has no masks; expected a plain array: give image.filled(0)")
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _as_bytes(array: npt.NDArray[Any], turn: str) -> str:
    """How to make the uint8 pixels of another type's."""
    if not array.size or array.dtype.kind not in "fiu":
        return "expected uint8 pixels, 0 to 255"
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"pixels from 0 to 1; expected uint8, 0 to 255: give (255 * image).round().astype('uint8'){turn}"
    if low >= 0 and high <= 255 and (high > 32 or np.array_equal(array, array.round())):
        rounded = ".round()" if array.dtype.kind == "f" else ""
        return f"pixels from 0 to 255; expected uint8: give image{rounded}.astype('uint8'){turn}"
    if array.dtype.kind == "f":
        return (
            f"values from {low:.3g} to {high:.3g}, as of an image that is prepared already; expected uint8 pixels, 0 to 255. What is "
            "prepared goes to session.run, as float32 [N, channels, H, W]"
        )
    return f"pixels from {low:.0f} to {high:.0f}; expected uint8, 0 to 255"
