"""Labelled datasets in their published layouts: CIFAR-10 and 100 (binary, Python), Fashion-MNIST (idx), class folders.

Nothing in a file is executed; CIFAR's Python files are pickles (see cifar_pickle.py).
"""

from __future__ import annotations

import logging
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest, exists, read_bytes
from cnet_deploy.images.cifar_pickle import read_arrays
from cnet_deploy.images.decode import cifar_records, entries_of, images_in, not_taken, refuse_url, resized
from cnet_deploy.images.image_file import IMAGE_SUFFIXES, opened_image, orientation
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.text import whole_text

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Split = Literal["train", "val"]
_SPLITS: tuple[Split, ...] = get_args(Split)

_CIFAR10_FILES = {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "val": ("test_batch",)}
_CIFAR100_FILES = {"train": ("train",), "val": ("test",)}
_IDX_FILES = {"train": "train", "val": "t10k"}
_CIFAR100_COUNTS = {"train": 50_000, "val": 10_000}
_CIFAR10_COUNT = 10_000
_MAX_IDX = 1 << 26  # bytes, unpacked; the largest of Fashion-MNIST has 47 million
_MAX_NAMES = 1 << 16  # bytes of a file of class names
_RECORD = {10: 1 + 3 * 32 * 32, 100: 2 + 3 * 32 * 32}
LAYOUTS = (
    "cifar-10-batches-bin or cifar-10-batches-py, cifar-100-binary or cifar-100-python, Fashion-MNIST's idx files, "
    "or train/ and val/ with a folder of images for each class"
)


class Dataset(ABC):
    """Images with labels [N] from 0 to ``classes`` - 1. ``statistics`` names the usual mean and standard deviation, ``input_size``
    (height, width) is that of the networks for it. ``named``: ``class_names`` are names, and not numbers for want of them.

    ``upright``: images are turned as they are tagged (EXIF). ``tagged`` has the indices of the images read so far that have such a tag.
    ``not_taken`` names the files that lie among the images and are none.
    """

    name: str
    labels: Labels
    classes: int
    class_names: tuple[str, ...] = ()
    named: bool = True
    statistics: str = "imagenet"
    input_size: tuple[int, int] = (224, 224)
    upright: bool = False
    tagged: Collection[int] = ()
    not_taken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def labels_sha256(self) -> str:
        """The digest of the labels in the order of the images; of image files, of their names and sizes too."""
        return digest(self.labels.astype("<i8").tobytes())

    @abstractmethod
    def image(self, index: int, preprocessing: Preprocessing) -> Pixels:
        """An image as [channels, H, W] at the network's input size. Raises InputRefused with its name if it can't be read."""


class ArrayDataset(Dataset):
    """A small dataset held in memory: ``pixels`` [N, 3, H, W]."""

    def __init__(self, name: str, pixels: Pixels, labels: Labels, class_names: Sequence[str], statistics: str) -> None:
        self.name, self.pixels, self.labels = name, pixels, labels
        self.class_names, self.classes, self.statistics = tuple(class_names), len(class_names), statistics
        self.input_size = (pixels.shape[2], pixels.shape[3])

    def fits(self, preprocessing: Preprocessing) -> bool:
        """Whether the images are as this preprocessing needs them: of its size, and RGB."""
        return (
            preprocessing.channels == 3
            and self.input_size == preprocessing.crop
            and preprocessing.resize in (None, min(preprocessing.crop))
        )

    def image(self, index: int, preprocessing: Preprocessing) -> Pixels:
        pixels: Pixels = self.pixels[index]
        if self.fits(preprocessing):
            return pixels
        from PIL import Image

        return resized(Image.fromarray(pixels.transpose(1, 2, 0)), preprocessing)


class FolderDataset(Dataset):
    """A folder of images for each class. Classes are the folders in the order of their names, as in torchvision's ImageFolder.

    Raises InputRefused where there are no folders of classes, or one without images.
    """

    def __init__(self, path: Path, *, upright: bool = False) -> None:
        self.name, self.path, self.upright = str(path), path, upright
        self.tagged: set[int] = set()
        folders = _class_folders(path)
        self.class_names = tuple(map(whole_text, folders))  # as a model's metadata hold them
        self.classes = len(self.class_names)
        self.files: list[Path] = []
        labels, others = [], [name for name in _loose(path) if folders]
        for label, name in enumerate(folders):
            files, rest = images_in(path / name)
            if not files:
                also = f" ({not_taken(rest)})" if rest else ""
                raise InputRefused(f"{path / name}: holds no images{also}; expected {', '.join(IMAGE_SUFFIXES)} in every class's folder")
            self.files += files
            labels += [label] * len(files)
            others += [f"{name}/{other}" for other in rest]
        if not self.files:
            raise InputRefused(f"{path}: {_without_classes(path)}")
        if deeper := _deeper(path, folders):
            raise InputRefused(f"{path}: has one folder, {folders[0]}, which holds folders and no images; {deeper}")
        self.labels, self.not_taken = np.asarray(labels, np.int64), tuple(others)
        if others:
            log.warning("%s: %s", path, not_taken(others))

    def labels_sha256(self) -> str:
        try:
            lines = [b"%s/%d" % (os.fsencode(file.relative_to(self.path)), file.stat().st_size) for file in self.files]
        except OSError as error:
            raise InputRefused(f"{error.filename or self.path}: can't be read: {error.strerror}") from None
        return digest(b"\n".join([super().labels_sha256().encode(), *lines]))

    def image(self, index: int, preprocessing: Preprocessing) -> Pixels:
        with opened_image(self.files[index], upright=self.upright) as image:
            if orientation(image) != 1:
                self.tagged.add(index)
            return resized(image, preprocessing)


def _class_folders(path: Path) -> tuple[str, ...]:
    """The names of the folders of classes, sorted. Raises InputRefused for a link that leads nowhere: it may be a class that is missing."""
    names = []
    for entry, mode in entries_of(path):
        if stat.S_ISDIR(mode):
            names.append(entry.name)
        elif not mode and entry.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputRefused(f"{entry}: is a link that leads nowhere; expected the folder of a class: mend the link, or remove it")
    return tuple(names)


def _loose(path: Path) -> list[str]:
    """Images beside the folders of the classes."""
    return [entry.name for entry, mode in entries_of(path) if entry.suffix.lower() in IMAGE_SUFFIXES and not stat.S_ISDIR(mode)]


def _without_classes(path: Path) -> str:
    if loose := _loose(path):
        return (
            f"holds images ({len(loose):,}, the first is {loose[0]}) but no folders of classes; expected a folder for each class, such as "
            f"{path.name}/cat/{loose[0]}: move each image into the folder of its class"
        )
    return f"holds no images; expected {LAYOUTS}"


def _deeper(path: Path, folders: Sequence[str]) -> str:
    """What to give instead of a path whose only folder holds the folders of the classes; empty where it is not so."""
    if len(folders) != 1:
        return ""
    inner = [mode for _, mode in entries_of(path / folders[0])]
    if any(map(stat.S_ISREG, inner)) or not any(map(stat.S_ISDIR, inner)):
        return ""
    return f"give {path / folders[0]} itself"


def open_dataset(path: Path | str, split: Split = "val", classes: int | None = None, *, upright: bool = False) -> Dataset:
    """Open the training or the test part of a dataset. Its layout is recognised by the files in the folder, or in a subfolder with the
    official name.

    ``path`` may be a single CIFAR binary file; ``classes`` says whether it is of CIFAR-10 or 100. A folder without ``train`` and ``val``
    is a test part. ``upright``: image files are turned as they are tagged (EXIF); torchvision does not. Raises InputRefused for missing,
    truncated or damaged files, labels out of range, and unknown layouts.
    """
    refuse_url(path)
    path = Path(path)
    try:
        if path.is_file():
            _refuse_other_files(path)
            return _binary(path.name, [path], classes or 10, None)
        if not path.is_dir():
            raise InputRefused(f"{path}: no such folder; expected one with {LAYOUTS}")
        for folder in (path, *(path / name for name in _OFFICIAL)):
            if folder.is_dir() and (dataset := _official(folder, split)):
                return dataset
        inner = path / split
        if not inner.is_dir() and (split == "train" or (path / "train").is_dir()):
            raise InputRefused(f"{path}: has no folder {split}{_other_part(path, split)}; expected {LAYOUTS}")
        return FolderDataset(inner if inner.is_dir() else path, upright=upright)
    except OSError as error:
        raise InputRefused(f"{error.filename or path}: can't be read: {error.strerror}") from None
    except RecursionError:
        raise InputRefused(f"{path}: has folders nested too deep to be read; expected {LAYOUTS}") from None


def open_for_calibration(path: Path | str, classes: int) -> Dataset | None:
    """The training part of a dataset, or what there is of it: a test part, a folder of images for each class, a CIFAR binary file.

    None for anything without labels: an image file, or a folder of images that are not in folders of their classes. Raises InputRefused
    as ``open_dataset`` does.
    """
    refuse_url(path)
    path = Path(path)
    try:
        if path.is_file():
            return _binary(path.name, [path], classes, None) if path.suffix == ".bin" else None
        if not path.is_dir():
            what = "is a device or pipe" if exists(path) else "no such file or folder"
            raise InputRefused(f"{path}: {what}; expected images, or a folder with {LAYOUTS}")
        if (published := _published(path)) is not None:
            return _official(*published)
        if (split := _class_part(path)) is not None:
            return FolderDataset(path / split)
        return FolderDataset(path) if len(_class_folders(path)) == classes and not _loose(path) else None
    except OSError as error:
        raise InputRefused(f"{error.filename or path}: can't be read: {error.strerror}") from None
    except RecursionError:
        raise InputRefused(f"{path}: has folders nested too deep to be read; expected {LAYOUTS}") from None


def split_for_calibration(path: Path | str) -> Split | None:
    """Which part of a dataset ``open_for_calibration`` opens; None where there is one only: a file, or a folder for each class.

    Raises InputRefused for a folder that can't be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return None
        published = _published(path)
        return _class_part(path) if published is None else published[1]
    except OSError as error:
        raise InputRefused(f"{error.filename or path}: can't be read: {error.strerror}") from None


def _published(path: Path) -> tuple[Path, Split] | None:
    """The folder of a published dataset's files, and the part of it that is there; None where there are none."""
    for folder in (path, *(path / name for name in _OFFICIAL)):
        if folder.is_dir() and (part := _part_of({entry.name for entry in folder.iterdir()})):
            return folder, part
    return None


def _class_part(path: Path) -> Split | None:
    """The part that has folders of classes."""
    return next((split for split in _SPLITS if (path / split).is_dir()), None)


def _part_of(names: set[str]) -> Split | None:
    """Which part of a published dataset these files are: the training part if it is there; None if they are of none."""
    for split in _SPLITS:
        files = {name for part in (_CIFAR10_FILES, _CIFAR100_FILES) for name in part[split]}
        own = {f"{name}.bin" for name in files} | {*_CIFAR10_FILES[split]} | ({*_CIFAR100_FILES[split]} if "meta" in names else set())
        if names & own or any(name.startswith(f"{_IDX_FILES[split]}-images") for name in names):
            return split
    return None


def _refuse_other_files(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        raise InputRefused(f"{path}: is a single image, which has no label; expected {LAYOUTS}")
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"):
        raise InputRefused(f"{path}: is an archive; unpack it and give the folder")


def _other_part(path: Path, split: Split) -> str:
    """What may be meant by a folder that has another name."""
    names = ("test", "valid", "validation") if split == "val" else ("training",)
    there = next((name for name in names if (path / name).is_dir()), None)
    return f" but {there}: rename that, or for `evaluate` give {path / there}" if there else ""


_OFFICIAL = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python", "FashionMNIST/raw", "FashionMNIST")


def _official(folder: Path, split: Split) -> Dataset | None:
    """The dataset in a folder, recognised by its files' names; None for an unknown layout."""
    names = {entry.name for entry in folder.iterdir()}
    ten, hundred = _CIFAR10_FILES[split], _CIFAR100_FILES[split]
    every = {name for part in _CIFAR10_FILES.values() for name in part}
    if names & {f"{name}.bin" for name in every}:
        return _binary("cifar10", [_there(folder, f"{name}.bin") for name in ten], 10, _CIFAR10_COUNT)
    if names & every:
        return _python("cifar10", [_there(folder, name) for name in ten], folder / "batches.meta", _CIFAR10_COUNT)
    if names & {"train.bin", "test.bin"}:
        return _binary("cifar100", [_there(folder, f"{name}.bin") for name in hundred], 100, _CIFAR100_COUNTS[split])
    if "meta" in names and any((folder / name).is_file() for name in ("train", "test")):
        return _python("cifar100", [_there(folder, name) for name in hundred], folder / "meta", _CIFAR100_COUNTS[split])
    if any(name.startswith(("train-images", "t10k-images")) for name in names):
        return _idx(folder, names, _IDX_FILES[split])
    return None


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        raise InputRefused(f"{folder}: has no {name}; expected all files of the dataset, as they are published")
    return folder / name


def _binary(name: str, files: Sequence[Path], classes: int, count: int | None) -> Dataset:
    for file in files:
        if count is not None and (size := file.stat().st_size) > count * _RECORD[classes]:
            raise InputRefused(f"{file}: has {size} bytes; expected {count * _RECORD[classes]}: the file is not the official one")
    parts = [cifar_records(file, classes) for file in files]
    for file, (pixels, _) in zip(files, parts, strict=True):
        _require_count(file, len(pixels), count)
    meta = files[0].parent / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")
    names = [line.strip() for line in read_bytes(meta, _MAX_NAMES).decode("utf-8", "replace").splitlines()] if meta.is_file() else []
    return _cifar(name, [pixels for pixels, _ in parts], [labels for _, labels in parts], classes, [line for line in names if line])


def _python(name: str, files: Sequence[Path], meta: Path, count: int) -> Dataset:
    """CIFAR's Python version: a pickled dictionary with rows of 3,072 bytes under ``data`` and a list of labels."""
    classes = 10 if name == "cifar10" else 100
    key = "labels" if classes == 10 else "fine_labels"
    all_pixels, all_labels = [], []
    for file in files:
        entries = read_arrays(file)
        data, labels = entries.get("data"), entries.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            actual = f"bytes of shape {list(data.shape)}" if isinstance(data, np.ndarray) else "no array"
            raise InputRefused(f"{file}: has {actual} under data; expected bytes of shape [N, 3072]")
        if not isinstance(labels, list):
            raise InputRefused(f"{file}: has no list under {key}; expected a label for each image")
        _require_count(file, len(data), count)
        if len(labels) != len(data):
            raise InputRefused(f"{file}: has {len(labels)} labels for {len(data)} images; expected one each")
        if wrong := [label for label in labels if type(label) is not int or not 0 <= label < classes]:
            raise InputRefused(f"{file}: has {_described(wrong[0])}; expected 0 to {classes - 1}")
        all_pixels.append(data.reshape(-1, 3, 32, 32))
        all_labels.append(np.asarray(labels, np.int64))
    words = read_arrays(meta).get("label_names" if classes == 10 else "fine_label_names") if meta.is_file() else []
    names = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    return _cifar(name, all_pixels, all_labels, classes, names)


def _described(label: object) -> str:
    if type(label) is not int:
        return "a label that is not a whole number"
    return f"label {label}" if abs(label) < 1 << 63 else "a label of too many digits"


def _cifar(name: str, pixels: Sequence[Pixels], labels: Sequence[Labels], classes: int, names: Sequence[str]) -> Dataset:
    known = len(names) == classes
    statistics = "cifar10" if classes == 10 else "cifar100"
    words = names if known else [str(number) for number in range(classes)]
    dataset = ArrayDataset(name, np.concatenate(pixels), np.concatenate(labels), words, statistics)
    dataset.named = known
    return dataset


def _require_count(file: Path, count: int, expected: int | None) -> None:
    if expected is not None and count != expected:
        raise InputRefused(f"{file}: holds {count} images; expected {expected}: the file is truncated or not the official one")


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _idx(folder: Path, names: set[str], prefix: str) -> Dataset:
    """Fashion-MNIST: 28x28 grey images, padded to 32x32 with black, as usual for networks that halve their maps."""
    arrays = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        forms = [f"{prefix}-{what}{mark}idx{dimensions}-ubyte{packed}" for mark in "-." for packed in ("", ".gz")]
        chosen = next((name for name in forms if name in names), None)
        if chosen is None:
            raise InputRefused(f"{folder}: has no {forms[0]}; expected all files of the dataset, as they are published")
        arrays.append(_idx_array(folder / chosen, dimensions))
    images, labels = arrays
    if len(images) != len(labels):
        raise InputRefused(f"{folder}: has {len(labels)} {prefix} labels for {len(images)} images; expected one each")
    if images.shape[1:] != (28, 28):
        raise InputRefused(f"{folder}: has images of {images.shape[1]}x{images.shape[2]}; expected 28x28")
    if labels.max() >= len(_FASHION):
        raise InputRefused(f"{folder}: has label {labels.max()} in the {prefix} labels; expected 0 to {len(_FASHION) - 1}")
    grey = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return ArrayDataset("fashion-mnist", np.repeat(grey[:, None], 3, axis=1), labels.astype(np.int64), _FASHION, "fashion-mnist")


def _idx_array(file: Path, dimensions: int) -> Pixels:
    """Read an idx file: two zero bytes, type (8: unsigned bytes), number of dimensions, each as four bytes (big-endian), data."""
    data = read_bytes(file, _MAX_IDX)
    if data[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data, _MAX_IDX + 1)
        except zlib.error as error:
            raise InputRefused(f"{file}: is no complete gzip file ({error}); get it again") from None
        if len(data) > _MAX_IDX:
            raise InputRefused(f"{file}: unpacks to more than {_MAX_IDX} bytes; expected Fashion-MNIST's file")
        if not unpacker.eof or unpacker.unused_data:
            raise InputRefused(
                f"{file}: is no complete gzip file ({'it has extra data' if unpacker.eof else 'its end is missing'}); get it again"
            )
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise InputRefused(f"{file}: begins {data[:4].hex(' ')}; expected 00 00 08 {dimensions:02x}: an idx file of bytes")
    shape = [int.from_bytes(data[4 + 4 * n : 8 + 4 * n], "big") for n in range(dimensions)]
    size = 1
    for side in shape:
        size *= side
    if len(data) - start != size or not size:
        raise InputRefused(f"{file}: has {len(data) - start} bytes of data; expected {size or 'some'} ({'x'.join(map(str, shape))})")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
