"""The reader without torch gives what torch gives, bit for bit; and reads nothing that torch.save does not write."""

from __future__ import annotations

import codecs
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnet_deploy.checkpoints.formats import read_pickled
from cnet_deploy.checkpoints.formats.safetensors import read_safetensors
from cnet_deploy.checkpoints.formats.torch_legacy import LEGACY_MAGIC
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.save import save
from cnet_deploy.checkpoints.tensors import StoredTensor
from cnet_deploy.errors import InputRefused
from cnet_deploy.files.pickle_scan import examine
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import convert
from cnet_deploy.training.checkpoints import Checkpoints
from tests.cases import examples, few
from tests.training.test_checkpoints import TOLD, stepped

ROOT = Path(__file__).parents[2]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def values(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits that are numbers: the largest, the smallest, both zeros."""
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return torch.randint(max(limits.min, -(1 << 62)), min(limits.max, 1 << 62), shape, generator=generator).to(dtype)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) * 10 ** torch.randint(-6, 4, shape, generator=generator)).to(dtype)
    special = torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny, torch.finfo(dtype).tiny / 8], dtype=torch.float64)
    made.view(-1)[: len(special)] = special.to(dtype)[: made.numel()]
    return made


def tensors() -> dict[str, Any]:
    big = values(torch.float32, 6, 8)
    with_attributes = values(torch.float32, 5)
    with_attributes.note = "kept elsewhere"  # type: ignore[attr-defined]
    return {
        **{str(dtype): values(dtype, 3, 4) for dtype in TYPES},
        **{f"row of {dtype}": values(dtype, 7) for dtype in TYPES},
        "number": values(torch.float32), "nothing": torch.zeros(0), "no rows": torch.zeros(0, 3), "truth": torch.tensor(True),
        "shared": big, "shared again": big, "row": big[2], "column": big[:, 3], "steps": big[1::2, ::3], "turned": big.t(),
        "expanded": big[:1].expand(9, 8), "four": values(torch.float16, 2, 3, 2, 2).permute(3, 1, 0, 2),
        "negative": torch._neg_view(big), "negative half": torch._neg_view(big.half()),
        "parameter": torch.nn.Parameter(big.clone()), "with attributes": with_attributes,
    }  # fmt: skip


OBJECTS: dict[str, Callable[[], Any]] = {
    "tensors": tensors,
    "ordered": lambda: OrderedDict(tensors()),
    "a module's": lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict(),
    "containers": lambda: {
        "numbers": [0, 1, -1, 255, 256, 65_536, 1 << 40, -(1 << 40), 1 << 200, 0.5, 1e300, True, False, None],
        "text": ["", "a", "\u00e4\u20ac\U0001f600", "x" * 70_000, b"bytes\xff", bytearray(b"array"), b"y" * 300],
        "others": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, set(), {1, 2}, torch.Size([2, 3])],
        "counted": Counter({30: 1, 60: 2}), "keys": {1: "a", "b": {None: 1, True: 2}}, "device": [torch.device("cpu")],
        "deep": [[[[{"a": [torch.arange(3)]}]]]],
    },
    "a parameter of a class": lambda: {"a": torch.nn.Parameter(torch.ones(2), requires_grad=False), "b": torch.ones(3)},
}  # fmt: skip


def saved(value: Any, legacy: bool, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def same(found: Any, expected: Any, name: str = "top") -> None:
    """Equal to the bit, whatever is nested in what."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, StoredTensor), name
        expected = expected.detach()
        wanted = expected.resolve_neg().to(torch.float32 if expected.is_floating_point() else expected.dtype).contiguous().numpy()
        made = found.array(name)
        assert made.dtype == wanted.dtype and made.shape == wanted.shape and made.tobytes() == wanted.tobytes(), name
        assert made.flags.writeable and made.flags.c_contiguous, name
        if not expected.is_neg():
            whole = expected.clone(memory_format=torch.contiguous_format)
            assert found.bits(name).tobytes() == whole.reshape(-1).view(torch.uint8).numpy().tobytes(), name
    elif isinstance(expected, dict):
        assert list(found) == list(expected), name
        for key in expected:
            same(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected) and isinstance(found, list) == isinstance(expected, list), name
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{name}[{number}]")
    elif isinstance(expected, torch.device):
        assert found == str(expected)
    else:
        assert found == expected and (type(found) is type(expected) or isinstance(expected, bytearray)), name


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", OBJECTS)
def test_what_torch_reads(kind: str, protocol: int, legacy: bool) -> None:
    data = saved(OBJECTS[kind](), legacy, protocol)
    found = examine(data)
    assert (found.wanted, found.problem) == ([], None)
    same(read_pickled(data), torch.load(io.BytesIO(data), weights_only=False))


@settings(examples(150))
@given(
    st.sampled_from(TYPES), st.lists(st.integers(0, 5), max_size=4), st.randoms(use_true_random=False), st.booleans(),
    st.sampled_from([2, 4]),
)  # fmt: skip
def test_any_view_of_any_type(dtype: torch.dtype, shape: list[int], chance: Any, legacy: bool, protocol: int) -> None:
    """Turned, cut, in steps, repeated: the same numbers as torch has."""
    tensor = values(dtype, *shape)
    for _ in range(chance.randrange(4)):
        if not tensor.ndim:
            break
        axis = chance.randrange(tensor.ndim)
        how = chance.randrange(4)
        if how == 0:
            tensor = tensor.transpose(axis, chance.randrange(tensor.ndim))
        elif how == 1:
            tensor = tensor.narrow(axis, 0, chance.randrange(tensor.shape[axis] + 1))
        elif how == 2:
            tensor = tensor[(slice(None),) * axis + (slice(chance.randrange(3), None, 1 + chance.randrange(3)),)]
        elif tensor.shape[axis]:
            tensor = tensor.select(axis, 0).unsqueeze(axis).expand(*tensor.shape[:axis], 3, *tensor.shape[axis + 1 :])
    data = saved({"a": tensor, "b": [tensor.t() if tensor.ndim == 2 else tensor]}, legacy, protocol)
    same(read_pickled(data), torch.load(io.BytesIO(data), weights_only=False))


def test_bfloat16_to_the_bit() -> None:
    """Every one of them, NaN and infinity included."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    tensor = read_pickled(saved({"a": every}, False))["a"]
    assert tensor.array("a").tobytes() == every.float().numpy().tobytes()
    assert tensor.bits("a").tobytes() == every.view(torch.int16).numpy().tobytes()


def test_the_real_example(checkpoint_path: Path) -> None:
    data = checkpoint_path.read_bytes()
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    same(read_pickled(data), loaded)
    read = read_tensors(checkpoint_path)
    assert list(read.tensors) == [key.removeprefix("module.") for key in loaded["state_dict"]]
    for key, value in loaded["state_dict"].items():
        assert read.tensors[key.removeprefix("module.")].tobytes() == value.numpy().tobytes()


def test_a_checkpoint_of_training(tmp_path: Path) -> None:
    model, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.prepare()
    path = checkpoints.save(model, optimizer, 3, 50.0, False, TOLD)
    loaded = torch.load(path, weights_only=True)
    assert len(loaded["optimizer"]["state"]) > 10
    same(read_pickled(path.read_bytes()), loaded)
    state = checkpoints.latest("condensenet", print)
    assert state is not None
    for number, entry in loaded["optimizer"]["state"].items():
        momentum = state.optimizer["state"][number]["momentum_buffer"]
        expected = entry["momentum_buffer"]
        # In another order in memory the optimiser's kernels would round elsewhere.
        assert (momentum.dtype, momentum.stride()) == (expected.dtype, expected.stride()) and torch.equal(momentum, expected)


def test_safetensors(tmp_path: Path, trained: DenselyConnected) -> None:
    odd = ("negative", "negative half", "shared again", "row", "column", "steps", "turned", "expanded", "four", "parameter")
    whole = {name: value.contiguous() for name, value in tensors().items() if name not in odd}
    found, metadata = read_safetensors(safetensors.torch.save(whole, {"by": "us"}))
    assert metadata == {"by": "us"} and set(found) == set(whole)
    for name, value in whole.items():
        same(found[name], value, name)
    save(convert(trained), tmp_path / "m.safetensors")
    expected = safetensors.torch.load_file(tmp_path / "m.safetensors")
    read = read_tensors(tmp_path / "m.safetensors")
    assert all(read.tensors[name].tobytes() == value.numpy().tobytes() for name, value in expected.items())


class Old(pickle.Pickler):
    """As older releases of torch and Python wrote: storages by persistent id, here with parts of one; dictionaries made from pairs."""

    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, OldStorage) else None


class OldStorage:
    def __init__(self, *identity: Any) -> None:
        self.id = ("storage", torch.FloatStorage, *identity)


class OldTensor:
    def __init__(self, function: str, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return getattr(torch._utils, self.function), self.arguments


class Pairs:
    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __reduce__(self) -> Any:
        return OrderedDict, (self.pairs,)


def old_file(loaded: Any, storages: dict[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    for part in (LEGACY_MAGIC, 1001, {"little_endian": True}, loaded, list(storages)):
        Old(buffer, 2).dump(part)
    return buffer.getvalue() + b"".join(struct.pack("<q", array.size) + array.astype("<f4").tobytes() for array in storages.values())


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
def test_files_of_older_releases() -> None:
    numbers = np.arange(12, dtype=np.float32)
    whole, part = OldStorage("1", "cpu", 12, None), OldStorage("1", "cuda:0", 12, ("2", 4, 6))
    loaded = Pairs(
        [
            ["first", OldTensor("_rebuild_tensor", whole, 0, (3, 4), (4, 1))],
            ["part", OldTensor("_rebuild_tensor", part, 1, (2, 2), (3, 1))],
            ["second", OldTensor("_rebuild_tensor_v2", part, 0, (6,), (1,), False, OrderedDict())],
        ]
    )
    data = old_file(loaded, {"1": numbers})
    found = examine(data)
    assert (found.wanted, found.problem) == ([], None)
    same(read_pickled(data), torch.load(io.BytesIO(data), weights_only=False, map_location="cpu"))
    assert read_pickled(data)["part"].array("part").tolist() == [[5, 6], [8, 9]]


def test_text_of_python_2() -> None:
    """Its str is bytes: the opcode SHORT_BINSTRING."""
    data = saved({"abc": torch.ones(2)}, True).replace(b"X\3\0\0\0abc", b"U\3abc")
    assert b"U\3abc" in data
    same(read_pickled(data), torch.load(io.BytesIO(data), weights_only=False))


def rezipped(
    data: bytes, root: str | None = None, compression: int = zipfile.ZIP_STORED, more: tuple[tuple[str, bytes], ...] = ()
) -> bytes:
    """The same archive made by other means."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name if root is None else root + name.partition("/")[2], old.read(name))
        for name, content in more:
            new.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("root", ["archive/", "", "any name at all/", "a/b/c/"])
def test_the_root_of_an_archive_is_called_as_it_likes(root: str) -> None:
    value = {"a": torch.arange(4)}
    same(read_pickled(rezipped(saved(value, False), root)), value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: rezipped(data, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (lambda data: rezipped(data, more=(("other/data.pkl", b"N."),)), "2 entries data.pkl"),
        (lambda data: rezipped(data, more=(("archive/data/0", bytes(8)),)), "several entries with the same name"),
        (lambda data: rezipped(data).replace(b"little", b"biggie"), "CRC|byte order"),
        (lambda data: rezipped(data, "x/").replace(b"x/data/0", b"x/data/1"), "no entry"),
    ],
    ids=["compressed", "two pickles", "duplicate", "byte order", "missing storage"],
)  # fmt: skip
def test_archives_that_torch_does_not_write(tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(change(saved({"weight": torch.ones(2)}, False)))
    with pytest.raises(InputRefused, match=says):
        read_tensors(path)


def test_an_encrypted_entry(tmp_path: Path) -> None:
    data = bytearray(saved({"weight": torch.ones(2)}, False))
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0"))
    data[at + 8] |= 1
    (tmp_path / "c.pt").write_bytes(data)
    with pytest.raises(InputRefused, match="encrypted"):
        read_tensors(tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_is_odd_beside_the_weights_does_not_matter(tmp_path: Path) -> None:
    """Momenta that are sparse, quantized or nowhere; keys that are tuples: nobody asks for them."""
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    beside = {
        "sparse": torch.ones(2, 2).to_sparse(), "quantized": quantized, "complex": torch.ones(2, dtype=torch.complex64),
        "nowhere": torch.ones(2, device="meta"), "terabytes": torch.ones(1).expand(1 << 42), ("a", "tuple"): 1, 1.5: 2, 1 << 100: 3,
    }  # fmt: skip
    for legacy in (True, False):
        (tmp_path / "c.pt").write_bytes(saved({"state_dict": {"weight": torch.ones(2)}, "optimizer": beside}, legacy))
        assert read_tensors(tmp_path / "c.pt").tensors["weight"].tolist() == [1, 1]


def test_what_is_one_number_of_terabytes_and_many_of_megabytes(tmp_path: Path) -> None:
    path, one = tmp_path / "c.pt", torch.ones(1)
    path.write_bytes(saved({"a": one.expand(1 << 42)}, False))
    with pytest.raises(InputRefused, match=r"a has shape \(4398046511104,\) in a file"):
        read_tensors(path)
    path.write_bytes(saved({"a": one.expand(5 << 20), "b": torch.zeros(1 << 20)}, False))
    with pytest.raises(InputRefused, match=r"a has shape \(5242880,\) over 4 bytes"):
        read_tensors(path)
    path.write_bytes(saved({f"a{number}": one.expand(3 << 20) for number in range(20)}, False))
    with pytest.raises(InputRefused, match=r"a\d+ has shape \(3145728,\) in a file of \d+ bytes"):
        read_tensors(path)


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize(("offset", "shape", "strides"), [(1, (12,), (1,)), (0, (2, 12), (1, 1)), (12, (1,), (1,)), (0, (2,), (1 << 62,))])
def test_views_that_reach_beyond_their_storage(tmp_path: Path, legacy: bool, offset: int, shape: Any, strides: Any) -> None:
    storage = OldStorage("1", "cpu", 12, None)
    data = old_file({"weight": OldTensor("_rebuild_tensor", storage, offset, shape, strides)}, {"1": np.zeros(12)})
    (tmp_path / "c.pt").write_bytes(data)
    with pytest.raises(InputRefused, match="weight ends at byte"):
        read_tensors(tmp_path / "c.pt")


@pytest.mark.parametrize("arguments", few([[], ["--json"], ["--plot", "groups.svg"]]), ids=str)
@pytest.mark.parametrize("name", ["reference-cifar10.pth.tar", "model.safetensors", "broken.pth.tar"])
def test_inspect_needs_no_torch(tmp_path: Path, trained: DenselyConnected, name: str, arguments: list[str]) -> None:
    if name == "model.safetensors":
        save(trained, tmp_path / name)
    else:
        data = (ROOT / "examples" / "reference-cifar10.pth.tar").read_bytes()
        (tmp_path / name).write_bytes(data if name.startswith("reference") else data[:-9])
    code = (
        "import sys; from cnet_deploy.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'onnx', 'PIL', 'matplotlib'}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", name, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == (4 if name.startswith("broken") else 0), done.stderr
    assert done.stderr.splitlines()[-1] == ("['PIL', 'matplotlib']" if "--plot" in arguments else "[]"), done.stderr


def test_an_entry_without_a_name(tmp_path: Path) -> None:
    """zipfile itself stumbles over it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("x", b"")
    data = buffer.getvalue()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    nameless = data[at : at + 28] + b"\0\0" + data[at + 30 : end - 1]
    tail = data[end : end + 12] + struct.pack("<I", len(data[data.index(b"PK\x01\x02") : at] + nameless)) + data[end + 16 :]
    (tmp_path / "c.pt").write_bytes(data[:at] + nameless + tail)
    with pytest.raises(InputRefused, match="expected a"):
        read_tensors(tmp_path / "c.pt")


NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    "by rows": NUMBERS, "by columns": np.asfortranarray(NUMBERS), "axes in another order": NUMBERS.transpose(2, 0, 1),
    "a part": NUMBERS[:, ::2], "the highest byte first": NUMBERS.astype(">f4"), "float64": NUMBERS.astype(">f8"),
    "float16": NUMBERS.astype(np.float16), "no axis": np.array(1.5, np.float32), "nothing": np.zeros((0, 3), np.float32),
    "counters": np.arange(3), "counters, the highest byte first": np.arange(3).astype(">i2"), "booleans": NUMBERS > 5,
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(ARRAYS | {"large": np.arange(100_000, dtype=np.float32)}, protocol))
    found = read_tensors(path).tensors
    for name, expected in ARRAYS.items():
        assert found[name].shape == expected.shape and np.array_equal(found[name], expected), name
    assert np.array_equal(found["large"], np.arange(100_000))


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    """pickle.dump, not torch.save: storages are files of torch.save within, as text in protocols before 3."""
    tensors = {"a": torch.arange(50_000.0), "b": torch.arange(12.0).reshape(3, 4).t(), "c": torch.tensor(3)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(tensors, protocol))
    found = read_tensors(tmp_path / "weights.pkl").tensors
    assert all(np.array_equal(found[name], value.numpy()) for name, value in tensors.items())


class Reduced:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def test_numbers_and_texts_of_any_kind_beside_the_weights(tmp_path: Path) -> None:
    beside = [np.str_("x"), np.complex128(1), np.datetime64("2020-01-01"), np.longdouble(1), Reduced(codecs.encode, ("x", "utf-8"))]
    (tmp_path / "c.pt").write_bytes(saved({"state_dict": {"weight": torch.ones(2)}, "beside": beside}, False))
    assert read_tensors(tmp_path / "c.pt").tensors["weight"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ((1, (2,), np.dtype("f4"), False, 5), "something other than bytes"),
        ((1, (2,), np.dtype("f4"), False, bytes(12)), "12 bytes; expected 8"),
        ((1, (2,), np.dtype("f4"), False, bytes(4)), "4 bytes; expected 8"),
        ((1, (1,) * 65, np.dtype("f4"), False, bytes(4)), "shape is damaged"),
    ],
)  # fmt: skip
def test_arrays_that_are_not_what_they_claim(tmp_path: Path, state: tuple[Any, ...], says: str) -> None:
    array = Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state)
    (tmp_path / "c.pt").write_bytes(saved({"weight": array}, False))
    with pytest.raises(InputRefused, match=says):
        read_tensors(tmp_path / "c.pt")
    weights = {"a.b": torch.ones(2), "a.c": torch.ones(2)}
    (tmp_path / "c.pt").write_bytes(saved({"state_dict": weights, "other": dict.fromkeys(weights, array)}, False))
    assert read_tensors(tmp_path / "c.pt").tensors["a.b"].tolist() == [1, 1]
