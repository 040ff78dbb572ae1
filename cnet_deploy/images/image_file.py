"""Open an image file safely: few formats, bounded size, 8 bits a channel, and upright where that is asked for."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnet_deploy.errors import InputRefused, in_words
from cnet_deploy.files import kinds, read_bytes
from cnet_deploy.images import pnm
from cnet_deploy.images.bounds import MAX_FILE, MAX_RUNS, MAX_STRIPS, Counted, Unfit, check_jpeg_strips, check_structure

if TYPE_CHECKING:
    from PIL import Image, ImageFile

MAX_DECODED = 1 << 28  # bytes of a decoded image plus its RGB copy: some 67 megapixels, or 33 with transparency
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")  # only these: some of Pillow's other decoders start programs
_STRIP_READ = 1 << 16
_ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4: 1 is upright, 2 to 8 are mirrored or turned
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])["<]')
_PLAIN = re.compile(r"[A-Za-z][\w ,.:()%-]*")  # messages of decoders without Python's own words

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors appear on standard error, without the file's name


@contextlib.contextmanager
def opened_image(path: Path, *, upright: bool = False) -> Iterator[Image.Image]:
    """The decoded image of a file, of several pages the first, with at most 8 bits a channel.

    ``upright``: turned as its EXIF or XMP data tag it; what is damaged there leaves it as it is. (Pillow turns a TIFF file always, so does
    torchvision.) Raises InputRefused for a file that is no image or damaged, for one too large to be decoded safely, and for pixels that
    are floats; exceptions raised in the block become InputRefused too.
    """
    from PIL import Image

    data = read_bytes(path, MAX_FILE)
    file = Counted(data)
    try:
        check_structure(data)
        with _quiet_pillow(), Image.open(file, formats=_FORMATS) as image:
            _check_size(image)
            if image.format == "TIFF":
                _silence_libtiff()
                _check_strips(image, data)
                file.left += _STRIP_READ * len(image.tile)
                file.reads += len(image.tile)
            if image.tile and image.tile[0][0] == "bmp_rle":  # Pillow takes a byte at a time
                if len(data) > MAX_RUNS:
                    raise Unfit(f"it is run-length encoded and has {len(data):,} bytes, and at most {MAX_RUNS:,} are read: store it as PNG")
                file.reads += len(data)
            if image.format == "PPM" and (made := pnm.decoded(image, data)) is not None:
                yield _eight_bit(made)
                return
            image.load()
            if image.format == "TIFF":
                image.info.pop("xmp", None)  # Pillow has turned it
            turned = _turned(image) if upright else image
            yield _eight_bit(turned)
    except Exception as error:  # decoders can raise anything on damaged images
        raise InputRefused(f"{path}: is no readable image ({_reason(error, data)}") from None


@contextlib.contextmanager
def taken(image: Image.Image, *, upright: bool = False) -> Iterator[Image.Image]:
    """An image that the caller holds as ``opened_image`` gives that of a file. The caller's own stays as it is.

    Raises InputRefused for one that is too large or can't be decoded, and for pixels that are floats; exceptions raised in the block
    become InputRefused too.
    """
    try:
        with _quiet_pillow():
            _check_size(image)
            image.load()
            picture = _eight_bit(image)
            if picture is image:
                picture = image.copy()
            picture.info = dict(image.info)
            if image.format == "TIFF":
                picture.info.pop("xmp", None)  # Pillow has turned it
            yield _turned(picture) if upright else picture
    except Exception as error:  # decoders can raise anything on damaged images
        reason = str(error) if isinstance(error, Unfit) else in_words(error)
        raise InputRefused(f"the image can't be prepared: {reason}") from None


def orientation(image: Image.Image) -> int:
    """How a decoded image is tagged to be turned: 1 to 8 as EXIF has it; 1 (upright) where nothing legible is said.

    The tag alone is read: Pillow's own reader copies what every other tag points to, which a hostile file multiplies.
    """
    info: dict[Any, Any] = image.info
    exif = info.get("exif")
    if isinstance(profile := info.get("Raw profile type exif"), str) and not exif:  # as ImageMagick writes it into PNG files
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    if isinstance(exif, bytes) and (value := _exif_orientation(exif.removeprefix(b"Exif\0\0"))):
        return value
    for key in ("XML:com.adobe.xmp", "xmp"):
        text = info.get(key)
        text = text.encode(errors="replace") if isinstance(text, str) else text
        if isinstance(text, bytes) and (match := _XMP_ORIENTATION.search(text)):
            return int(match[1])
    return 1


def _exif_orientation(data: bytes) -> int | None:
    """The orientation in the first directory of EXIF data, which is laid out as a TIFF file. None where there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    with contextlib.suppress(struct.error):
        if order is not None:
            (start,) = struct.unpack_from(f"{order}I", data, 4)
            (entries,) = struct.unpack_from(f"{order}H", data, start)
            for number in range(entries):
                tag, kind, count, value = struct.unpack_from(f"{order}HHIH", data, start + 2 + 12 * number)
                if tag == _ORIENTATION:
                    return value if kind == 3 and count == 1 and 1 <= value <= 8 else None
    return None


def _turned(image: Image.Image) -> Image.Image:
    """The image turned as it is tagged. The one as it was stored is freed."""
    from PIL import Image

    methods = Image.Transpose
    method = {
        2: methods.FLIP_LEFT_RIGHT, 3: methods.ROTATE_180, 4: methods.FLIP_TOP_BOTTOM, 5: methods.TRANSPOSE,
        6: methods.ROTATE_270, 7: methods.TRANSVERSE, 8: methods.ROTATE_90,
    }.get(orientation(image))  # fmt: skip
    if method is None:
        return image
    turned = image.transpose(method)
    image.close()
    return turned


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel: grey values of 16 bits are divided by 257 and rounded; those that all fit 8 bits are kept.

    The latter, since files store 8 bits in 16 (and Pillow's versions differ in which mode they give), and else such an image is black.
    """
    from PIL import Image

    if image.mode == "F":
        raise Unfit("its pixels are floating-point numbers; store them as 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int32)  # also of another byte order
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise Unfit(f"its pixels are numbers from {low:,} to {high:,}; store them as 8 or 16 bits, 0 to 65,535")
    if high > 0xFF:
        most = _most(image)
        values *= 255
        values += most // 2
        values //= most
    made = Image.fromarray(values.astype(np.uint8))
    made.info = image.info
    return made


def _most(image: Image.Image) -> int:
    """The value of white. TIFF files state their bits; Pillow scales those of other formats to 16."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))
    return 4095 if bits == (12,) else 65535


def _check_size(image: Image.Image) -> None:
    if not image.width or not image.height:
        raise Unfit(f"it is {image.width}x{image.height} pixels: it has none")
    stored = 1 if image.mode in ("1", "L", "P") else 4
    a_pixel = stored + (0 if image.mode == "RGB" else 4)
    if (size := image.width * image.height * a_pixel) > MAX_DECODED:
        raise Unfit(f"{image.width}x{image.height} pixels would take {size:,} bytes; {_at_most(MAX_DECODED // a_pixel)}")


def _at_most(pixels: int) -> str:
    return f"expected at most {pixels:,} pixels of this kind: make it smaller first"


def _check_strips(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse a TIFF file whose strips or tiles are far more, or far larger, than its pixels, or take far longer to decode."""
    if image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        places = [getattr(image, "tag_v2", {}).get(tag, ()) for tag in (273, 324, 513)]  # of strips, of tiles, of one for all
        starts = [start for place in places for start in (place if isinstance(place, tuple) else (place,))]
        check_jpeg_strips(data, [start for start in starts if isinstance(start, int)])
    area = image.width * image.height
    if len(image.tile) > MAX_STRIPS:
        raise Unfit(f"it has {len(image.tile):,} strips, and at most {MAX_STRIPS:,} are read")
    extents = [tile[1] or (0, 0, *image.size) for tile in image.tile]
    if sum((right - left) * (lower - upper) for left, upper, right, lower in extents) > area * max(4, len(image.getbands())):
        raise Unfit("its strips are more than its rows")
    sides = [getattr(image, "tag_v2", {}).get(tag, 1) for tag in (322, 323)]  # of a tile
    if any(not isinstance(side, int) for side in sides) or sides[0] * sides[1] * 4 > MAX_DECODED:
        raise Unfit("its tiles are too large to be decoded safely")


@functools.cache
def _silence_libtiff() -> None:
    """Make libtiff, which Pillow brings, write nothing to standard error; Pillow raises what is wrong. Pillow itself stops its warnings."""
    with contextlib.suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text(errors="replace")
        for path in sorted(set(re.findall(r"/\S*/libtiff[^/\s]*\.so\S*", maps))):
            ctypes.CDLL(path).TIFFSetErrorHandler(None)


# ---- why an image is not read ------------------------------------------------------------------------------------------------------


def _reason(error: Exception, data: bytes) -> str:
    """The reason in parentheses' place, and what to do: the end of a message that begins ``(``."""
    from PIL import Image, UnidentifiedImageError

    expected = f"expected a complete {', '.join(_FORMATS)} file"
    if isinstance(error, Unfit):
        return f"{error}); {expected}"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        counted = re.search(r"\((\d+) pixels\)", str(error))
        pixels = f"its {int(counted[1]):,} pixels" if counted else "its pixels"
        return f"{pixels} would not fit into the memory; {_at_most(MAX_DECODED // 4)}); {expected}"
    if isinstance(error, UnidentifiedImageError):
        return f"{_what_it_is(data)}); {expected}"
    if isinstance(error, MemoryError):
        return f"the memory is too small for it); {expected}"
    text = "" if str(error).startswith("decoder error") else str(error)
    return f"{text if isinstance(error, (OSError, ValueError)) and _PLAIN.fullmatch(text) else 'the file is damaged'}); {expected}"


# What only images are said of; files/kinds.py knows the others.
_KINDS = (
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "it is a TIFF file that is damaged, or whose pixels are stored in an uncommon way: store it as PNG"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF.{4}WEBP", "the file is damaged"),
    (rb"GIF8", "it is a GIF file: store it as PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "it is PostScript, which would be executed"),
    (rb".{4}ftyp(?:hei|hev|mif1|msf1)", "it is a HEIC file: store it as JPEG"),
    (rb".{4}ftypavi", "it is an AVIF file: store it as PNG"),
    (rb"\s*<(?:\?xml[^>]{0,200}>\s*)?(?:<?!--|<?svg)|\s*<svg", "it is an SVG drawing: render it as PNG"),
    (rb"\0+\Z", "it has zeros alone: the download or the copy was not completed"),
)


def _what_it_is(data: bytes) -> str:
    """What the first bytes say that a file is which is no image, as a sentence's part."""
    for pattern, words in _KINDS:
        if re.match(pattern, data[:1024], re.IGNORECASE | re.DOTALL):
            return words
    kind = kinds.kind_of(data)
    if kind is None:
        return "unknown format"
    return f"it is {kind.name}" + (f": {kind.remedy}" if kind in (kinds.GIT_LFS, kinds.GIT_ANNEX, kinds.WEB_PAGE, kinds.XML) else "")


# ---- Pillow's warnings -------------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_quiet = contextlib.ExitStack()
_inside = 0


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's warnings of too many pixels are errors, its others are not shown.

    Filters of warnings are the process's: the first thread that enters sets them, the last that leaves restores them.
    """
    from PIL import Image

    global _inside  # noqa: PLW0603
    with _lock:
        if not _inside:
            _quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _quiet.close()
