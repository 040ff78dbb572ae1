"""Every published layout is read as it is meant, and what is missing, cut or damaged is refused by name."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.array_pickles import read_arrays
from cnet_deploy.datasets import ArrayDataset, FolderDataset, open_dataset
from cnet_deploy.errors import InputRefused
from cnet_deploy.preprocessing import Preprocessing
from tests.builders import TINY

CIFAR = Preprocessing.of(TINY)
COUNT = 10_000
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"fine {number}" for number in range(100)]
Write = Callable[[Any], bytes]


def rows(count: int = COUNT) -> np.ndarray:
    """Images [N, 3072] that are cheap to make and all different: the first two bytes are their number."""
    made = np.zeros((count, 3072), np.uint8)
    made[:, 0], made[:, 1] = np.arange(count) >> 8, np.arange(count) & 255
    made[:, 1024], made[:, 3071] = 7, 9
    return made


def numbers(pixels: np.ndarray) -> list[int]:
    """Which of ``rows`` the images are."""
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in pixels]


def refuses(path: Path, *says: str, split: Any = "val") -> None:
    """Refused, and the message has all of ``says``."""
    with pytest.raises(InputRefused) as caught:
        open_dataset(path, split)
    for words in says:
        assert words in str(caught.value), f"{words!r} is not in: {caught.value}"


class Python2:
    """Writes as Python 2's pickle does in protocol 2: text and bytes alike as BINSTRING, numpy by its old names."""

    def __call__(self, value: Any) -> bytes:
        return b"\x80\x02" + self.item(value) + b"."

    def item(self, value: Any) -> bytes:
        if isinstance(value, str):
            return self.string(value.encode("latin-1"))
        if isinstance(value, int):
            return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(self.item, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.item(part) for pair in value.items() for part in pair) + b"u"
        assert isinstance(value, np.ndarray)
        shape = b"(" + b"".join(b"M" + struct.pack("<H", side) for side in value.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n"
            + self.item("u1")
            + b"K\x00K\x01\x87R(K\x03"
            + self.item("|")
            + b"NNN"
            + b"J\xff\xff\xff\xff" * 2
            + b"K\x00tb"
        )
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + self.item("b") + b"\x87R"
        columns = value.flags.f_contiguous and not value.flags.c_contiguous
        return made + b"(K\x01" + shape + dtype + (b"\x88" if columns else b"\x89") + self.string(value.tobytes("A")) + b"tb"

    @staticmethod
    def string(content: bytes) -> bytes:
        return (b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<i", len(content))) + content


PYTHON2 = Python2()
WRITERS: dict[str, Write] = {"python2": PYTHON2} | {
    f"python3 protocol {protocol}": lambda value, protocol=protocol: pickle.dumps(value, protocol) for protocol in (2, 3, 4, 5)
}  # fmt: skip


def cifar10_python(folder: Path, write: Write = PYTHON2) -> Path:
    """The test part and the names; labels are the numbers modulo 10."""
    folder.mkdir()
    batch = {
        "batch_label": "testing batch 1 of 1",
        "labels": [n % 10 for n in range(COUNT)],
        "data": rows(),
        "filenames": ["a.png", "b.png"],
    }
    (folder / "test_batch").write_bytes(write(batch))
    (folder / "batches.meta").write_bytes(write({"num_cases_per_batch": COUNT, "label_names": TEN, "num_vis": 3072}))
    return folder


def records(count: int, header: list[np.ndarray]) -> bytes:
    return np.concatenate([*(part.astype(np.uint8)[:, None] for part in header), rows(count)], axis=1).tobytes()


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion(folder: Path, prefix: str = "t10k", mark: str = "-", *, packed: bool = False, count: int = 12) -> Path:
    """As it is published, with ``count`` images of one grey each, labels the numbers modulo 10."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.repeat(np.arange(1, count + 1, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
    for name, array in (("images", images), ("labels", np.arange(count).astype(np.uint8) % 10)):
        file = folder / f"{prefix}-{name}{mark}idx{array.ndim}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def image(path: Path, red: int = 0, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 0, 0)).save(path)


@pytest.fixture(autouse=True)
def no_litter(tmp_path: Path) -> Iterator[None]:
    """Files of a whole batch are large, and pytest keeps those of its last runs."""
    yield
    for file in tmp_path.rglob("test*"):
        file.unlink()


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of CIFAR-10's binary version. Not to be changed: link to its files."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-bin"
    folder.mkdir()
    for n in range(1, 6):
        (folder / f"data_batch_{n}.bin").write_bytes(records(COUNT, [np.full(COUNT, n)]))
    (folder / "test_batch.bin").write_bytes(records(COUNT, [np.arange(COUNT) % 10]))
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(binary: Path, tmp_path: Path) -> Path:
    """The same, of which files may be removed or replaced."""
    for file in binary.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def replaced(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def test_cifar_10_binary(binary: Path) -> None:
    for path in (binary, binary.parent):
        found = open_dataset(path)
        assert isinstance(found, ArrayDataset) and found.pixels.shape == (COUNT, 3, 32, 32) and found.pixels.dtype == np.uint8
        assert found.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] and found.labels.dtype == np.int64
        assert numbers(found.pixels) == list(range(COUNT))
        assert (found.pixels[:, 1, 0, 0] == 7).all() and (found.pixels[:, 2, 31, 31] == 9).all()  # the planes are red, green, blue
        assert (found.name, found.classes, found.statistics, found.input_size) == ("cifar10", 10, "cifar10", (32, 32))
        assert found.class_names == tuple(TEN) and len(found) == COUNT


def test_cifar_10_trains_on_five_files_in_their_order(binary: Path) -> None:
    found = open_dataset(binary, "train")
    assert len(found) == 50_000
    assert found.labels[::COUNT].tolist() == [1, 2, 3, 4, 5]
    assert found.class_names == tuple(TEN)


def test_classes_without_names_are_numbered(copy: Path) -> None:
    (copy / "batches.meta.txt").unlink()
    assert open_dataset(copy).class_names == tuple("0123456789")
    (copy / "batches.meta.txt").write_text("airplane\nautomobile\n")  # too few
    assert open_dataset(copy).class_names == tuple("0123456789")


def test_a_binary_file_by_its_own_name(binary: Path, tmp_path: Path) -> None:
    found = open_dataset(binary / "test_batch.bin")
    assert len(found) == COUNT and found.name == "test_batch.bin" and found.class_names == tuple(TEN)
    (tmp_path / "some.bin").write_bytes(records(3, [np.asarray([4, 5, 6]), np.asarray([97, 98, 99])]))
    hundred = open_dataset(str(tmp_path / "some.bin"), classes=100)
    assert hundred.labels.tolist() == [97, 98, 99] and hundred.statistics == "cifar100" and hundred.classes == 100


@pytest.mark.parametrize("above", [False, True])
def test_cifar_100_binary(tmp_path: Path, above: bool) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "test.bin").write_bytes(records(COUNT, [np.full(COUNT, 19), np.arange(COUNT) % 100]))
    (folder / "fine_label_names.txt").write_text("\n".join(HUNDRED))
    found = open_dataset(tmp_path if above else folder)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert found.labels[98:102].tolist() == [98, 99, 0, 1]  # the fine ones
    assert (found.name, found.classes, found.statistics) == ("cifar100", 100, "cifar100") and found.class_names == tuple(HUNDRED)
    refuses(folder, "has no train.bin; expected all files", split="train")


@pytest.mark.parametrize("writer", ["python2", "python3 protocol 4"])
def test_cifar_10_python(tmp_path: Path, writer: str) -> None:
    cifar10_python(tmp_path / "cifar-10-batches-py", WRITERS[writer])
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert (found.pixels[:, 1, 0, 0] == 7).all() and (found.pixels[:, 2, 31, 31] == 9).all()
    assert found.labels[8:12].tolist() == [8, 9, 0, 1] and found.labels.dtype == np.int64
    assert (found.name, found.statistics) == ("cifar10", "cifar10") and found.class_names == tuple(TEN)


def test_cifar_100_python(tmp_path: Path) -> None:
    fine = [n % 100 for n in range(COUNT)]
    (tmp_path / "test").write_bytes(PYTHON2({"fine_labels": fine, "coarse_labels": [0] * COUNT, "data": rows(), "filenames": ["a"]}))
    (tmp_path / "meta").write_bytes(PYTHON2({"fine_label_names": HUNDRED, "coarse_label_names": ["any"]}))
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert found.labels.tolist() == fine and found.class_names == tuple(HUNDRED) and found.name == "cifar100"
    refuses(tmp_path, "has no train; expected all files", split="train")


@pytest.mark.parametrize("writer", WRITERS)
def test_pickled_arrays(tmp_path: Path, writer: str) -> None:
    """In either order, of no rows, and with every byte there is: Python 2 wrote bytes as text."""
    every = np.arange(256, dtype=np.uint8).reshape(64, 4)
    value = {
        "by rows": every,
        "by columns": np.asfortranarray(every),
        "small": np.ones((2, 1), np.uint8),
        "words": ["a", "\xe9"],
        "n": 300,
    }
    (tmp_path / "file").write_bytes(WRITERS[writer](value))
    found = read_arrays(tmp_path / "file")
    assert list(found) == list(value) and found["words"] == ["a", "\xe9"] and found["n"] == 300
    for name in ("by rows", "by columns", "small"):
        assert found[name].dtype == np.uint8 and np.array_equal(found[name], value[name])


@pytest.mark.parametrize("code", ["i4", "f8", "O", "U3", "i1"])
def test_arrays_of_anything_but_bytes(tmp_path: Path, code: str) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"data": np.zeros((2, 3), code)}, 4))
    with pytest.raises(InputRefused, match=rf"array is of {code[:2]}.*expected bytes \(u1\)"):
        read_arrays(tmp_path / "file")


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "FashionMNIST", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path: Path, mark: str, packed: bool, inside: str) -> None:
    fashion(tmp_path / inside, "t10k", mark, packed=packed)
    fashion(tmp_path / inside, "train", mark, packed=packed, count=20)
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and found.pixels.shape == (12, 3, 32, 32) and found.pixels.dtype == np.uint8
    expected = np.zeros((12, 3, 32, 32), np.uint8)  # in the middle of black
    expected[:, :, 2:30, 2:30] = np.arange(1, 13)[:, None, None, None]
    assert np.array_equal(found.pixels, expected)
    assert found.labels.tolist() == [n % 10 for n in range(12)] and found.labels.dtype == np.int64
    assert (found.name, found.classes, found.statistics) == ("fashion-mnist", 10, "fashion-mnist")
    assert found.class_names[0] == "T-shirt/top" and found.class_names[9] == "Ankle boot"
    assert len(open_dataset(tmp_path, "train")) == 20


def test_class_folders(tmp_path: Path) -> None:
    """Classes in the order of their names, images of nested folders too, suffixes in either case; what is no image is passed over."""
    for number, name in enumerate(("cat/1.JPEG", "cat/deep/er/2.png", "Zebra/1.bmp", "ant/x.jpg", "ant/y.webp")):
        image(tmp_path / "val" / name, number * 40)
    image(tmp_path / "train" / "ant" / "only.png")
    (tmp_path / "val" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "val" / "notes.txt").write_text("no class")
    found = open_dataset(tmp_path, "val")
    assert isinstance(found, FolderDataset)
    assert found.class_names == ("Zebra", "ant", "cat") and found.classes == 3
    assert found.labels.tolist() == [0, 1, 1, 2, 2] and found.labels.dtype == np.int64
    assert [file.name for file in found.files] == ["1.bmp", "x.jpg", "y.webp", "1.JPEG", "2.png"]
    assert found.image(4, CIFAR)[:, 0, 0].tolist() == [40, 0, 0] and found.image(0, CIFAR).shape == (3, 32, 32)
    assert (found.statistics, found.name) == ("imagenet", str(tmp_path / "val"))
    assert open_dataset(tmp_path, "train").class_names == ("ant",)


def test_class_folders_without_train_and_val_are_a_test_part(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "b" / "1.png")
    assert open_dataset(tmp_path).labels.tolist() == [0, 1]
    refuses(tmp_path, "has no folder train; expected cifar-10-batches-bin", split="train")


def test_an_image_in_memory_is_resized_only_for_another_size() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    dataset = ArrayDataset("some", pixels, np.zeros(2, np.int64), ("a",), "cifar10")
    assert np.array_equal(dataset.image(1, CIFAR), pixels[1])
    cropped = replace(CIFAR, resize=32, crop=(24, 24))
    assert not dataset.fits(cropped) and np.array_equal(dataset.image(1, cropped), pixels[1, :, 4:28, 4:28])
    assert dataset.image(1, replace(CIFAR, resize=256, crop=(224, 224))).shape == (3, 224, 224)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "a\0b", tmp_path / "loop", "\udcff" * 3):
        if path == tmp_path / "loop":
            path.symlink_to(path)
        refuses(Path(path), "no such folder; expected one with cifar-10-batches-bin")
    refuses(tmp_path / ("a" * 5000), "can't be read: File name too long")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_no_images(tmp_path: Path, split: str) -> None:
    (tmp_path / split).mkdir()
    refuses(tmp_path, f"{tmp_path / split}: holds no images; expected cifar-10", split=split)
    image(tmp_path / split / "loose.png")  # of no class
    refuses(tmp_path, "holds no images; expected cifar-10", split=split)


def test_an_empty_class(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    refuses(tmp_path, f"{tmp_path / 'b'}: holds no images; expected .png, .jpg, .jpeg", "in every class's folder")


@pytest.mark.parametrize(("name", "split"), [("data_batch_3.bin", "train"), ("test_batch.bin", "val")])
def test_a_missing_binary_batch(copy: Path, name: str, split: str) -> None:
    (copy / name).unlink()
    refuses(copy, f"{copy}: has no {name}; expected all files of the dataset", split=split)


def test_truncated_binary_batches(copy: Path) -> None:
    file = copy / "test_batch.bin"
    whole = file.read_bytes()
    for data, says in (
        (whole[:-1], "30729999 bytes; expected records of 3073 bytes"),
        (whole[:-3073], "holds 9999 images; expected 10000: the file is truncated"),
        (whole[:3073], "holds 1 images; expected 10000"),
        (whole + whole[:3073], "has 30733073 bytes; expected 30730000"),
        (b"", "is empty"),
    ):
        replaced(file, data)
        refuses(copy, f"{file}: ", says)


def test_binary_labels_out_of_range(copy: Path, tmp_path: Path) -> None:
    replaced(copy / "test_batch.bin", records(COUNT, [np.where(np.arange(COUNT) == 5, 10, 0)]))
    refuses(copy, f"{copy / 'test_batch.bin'}: has label 10; expected 0 to 9")
    (tmp_path / "hundred.bin").write_bytes(records(1, [np.zeros(1), np.asarray([100])]))
    with pytest.raises(InputRefused, match="has label 100; expected 0 to 99"):
        open_dataset(tmp_path / "hundred.bin", classes=100)


def test_a_missing_python_batch(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "py")
    refuses(tmp_path / "py", "has no data_batch_1; expected all files", split="train")


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return {"data": rows(), "labels": [0] * COUNT}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": rows(COUNT - 1), "labels": [0] * (COUNT - 1)}, "holds 9999 images; expected 10000"),
        ({"labels": [0] * (COUNT - 1)}, "has 9999 labels for 10000 images; expected one each"),
        ({"labels": [0] * (COUNT - 1) + [10]}, "has label 10; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + [-1]}, "has label -1; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + ["1"]}, "has label of str; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + [True]}, "has label of bool; expected 0 to 9"),
        ({"labels": "0" * COUNT}, "labels of str; expected [N, 3072] bytes and a list"),
        ({"data": rows()[:, :3000]}, "has data [10000, 3000]"),
        ({"data": rows().reshape(-1)}, "has data [30720000]"),
        ({"data": [1, 2]}, "has data list"),
        ({"data": None}, "has data NoneType"),
    ],
)  # fmt: skip
def test_python_batches_that_do_not_fit(tmp_path: Path, batch: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch | changes, 4))
    refuses(tmp_path, f"{tmp_path / 'test_batch'}: ", says)


def test_python_batches_without_their_parts(tmp_path: Path, batch: dict[str, Any]) -> None:
    for value, says in (
        ({"data": batch["data"]}, "labels of NoneType"),
        ({"labels": batch["labels"]}, "has data NoneType"),
        ([1, 2], "it holds a list"),
        ({1: 2}, "it has a key of int; expected text"),
    ):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(value, 4))
        refuses(tmp_path, f"{tmp_path / 'test_batch'}: ", says)


@pytest.mark.parametrize("writer", ["python2", "python3 protocol 4"])
def test_truncated_python_batches(tmp_path: Path, writer: str) -> None:
    whole = WRITERS[writer]({"data": rows(100), "labels": [0] * 100})
    for length in (1, 2, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "test_batch").write_bytes(whole[:length])
        refuses(tmp_path, f"{tmp_path / 'test_batch'}: is truncated, damaged or none of CIFAR's Python files")


def test_damaged_class_names(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "py")
    meta = tmp_path / "py" / "batches.meta"
    for value in ({"label_names": TEN[:9]}, {"label_names": "0123456789"}, {"label_names": [1] * 10}, {}):
        meta.write_bytes(pickle.dumps(value, 4))
        assert open_dataset(tmp_path / "py").class_names == tuple("0123456789")
    meta.write_bytes(meta.read_bytes()[:-1])
    refuses(tmp_path / "py", f"{meta}: is truncated, damaged")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t10k-images-idx3-ubyte", b"\x00\x00\x08\x01" + bytes(20), ("begins 00 00 08 01; expected 00 00 08 03",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((2, 28, 28), np.uint8), kind=9), ("begins 00 00 09 03; expected 00 00 08 03",)),
        ("t10k-labels-idx1-ubyte", b"GIF8", ("begins 47 49 46 38; expected 00 00 08 01",)),
        ("t10k-images-idx3-ubyte", b"\x00\x00\x08\x03" + bytes(11), ("begins 00 00 08 03; expected",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 28), np.uint8))[:-1], ("has 9407 bytes of data; expected 9408 (12x28x28)",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 28), np.uint8)) + b"a", ("has 9409 bytes of data; expected 9408 (12x28x28)",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((0, 28, 28), np.uint8)), ("has 0 bytes of data; expected 0 (0x28x28), and some",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 27), np.uint8)), ("has images of 28x27; expected 28x28",)),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(11, np.uint8)), ("has 11 t10k labels for 12 images; expected one each",)),
        ("t10k-labels-idx1-ubyte", idx(np.full(12, 10, np.uint8)), ("has label 10 in the t10k labels; expected 0 to 9",)),
        ("t10k-labels-idx1-ubyte", b"", ("is empty",)),
    ],
)  # fmt: skip
def test_damaged_idx_files(tmp_path: Path, name: str, data: bytes, says: tuple[str, ...]) -> None:
    fashion(tmp_path)
    (tmp_path / name).write_bytes(data)
    refuses(tmp_path, *says)


@pytest.mark.parametrize("missing", ["images-idx3", "labels-idx1"])
def test_a_missing_idx_file(tmp_path: Path, missing: str) -> None:
    fashion(tmp_path)
    (tmp_path / f"t10k-{missing}-ubyte").unlink()
    fashion(tmp_path, "train")
    refuses(tmp_path, f"{tmp_path}: has no t10k-{missing}-ubyte; expected all files")


def test_damaged_gzip(tmp_path: Path) -> None:
    fashion(tmp_path, packed=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for data, says in (
        (whole[:-9], "its end is missing"),
        (whole[:-1], "its end is missing"),
        (whole[:5], "its end is missing"),
        (whole[:-8] + bytes(4) + whole[-4:], "incorrect data check"),
        (whole[:-4] + bytes(4), "incorrect length check"),
        (whole[:2] + b"\x07" + whole[3:], "unknown compression method"),
        (whole + b"more", "something follows it"),
    ):
        file.write_bytes(data)
        refuses(tmp_path, f"{file}: is no whole gzip file (", says)


def test_a_plain_file_under_the_packed_name_and_the_other_way_round(tmp_path: Path) -> None:
    """What a file is says its content."""
    fashion(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        plain = tmp_path / f"t10k-{name}-ubyte"
        if name == "images-idx3":
            plain.rename(plain.with_name(f"{plain.name}.gz"))
        else:
            with gzip.GzipFile(fileobj=(packed := io.BytesIO()), mode="wb", filename="labels") as file:
                file.write(plain.read_bytes())
            plain.write_bytes(packed.getvalue())
    assert len(open_dataset(tmp_path)) == 12
