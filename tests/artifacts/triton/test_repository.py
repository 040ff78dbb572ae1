"""Models and versions beside each other: nothing that was there is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.files import digest
from cnet_deploy.workflows.publish import publish

from .helpers import artifact, engine, parsed, tree


def test_versions(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    assert publish(tmp_path / "r", onnx_path, name="m").version == 1
    before = tree(tmp_path / "r")
    assert publish(tmp_path / "r", onnx_path, name="m").version == 1  # the same bytes
    assert tree(tmp_path / "r") == before
    second = publish(tmp_path / "r", other)
    assert second.version == 2 and digest(other.read_bytes()) == parsed(second.config).parameters["sha256"].string_value
    assert publish(tmp_path / "r", onnx_path, name="m").version == 3  # those of an older version: it shall be served again
    for name in ("10", "099", "12x", str(10**30), "warmup"):  # the server takes none but the first for a version it could use
        (tmp_path / "r/m" / name).mkdir()
    assert publish(tmp_path / "r", other).version == 11
    assert (tmp_path / "r/m/1/model.onnx").read_bytes() == onnx_path.read_bytes()


def test_another_model_beside_it(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    first = publish(tmp_path / "r", onnx_path, name="a")
    before = tree(tmp_path / "r/a")
    assert publish(tmp_path / "r", other, name="b").version == 1
    assert tree(tmp_path / "r/a") == before and first.model.is_file()


def test_refusals(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    with pytest.raises(
        Unavailable, match=r"net\.engine: Triton\'s backend .* this one is of tensorrt-rtx; export with --tensorrt-flavour tensorrt"
    ):
        publish(tmp_path / "r", engine(tmp_path, described, flavour="tensorrt-rtx"))
    with pytest.raises(InputRefused, match="takes no fewer than 4 images"):
        publish(tmp_path / "r", engine(tmp_path, described, profiles=[{"min": 4, "opt": 4, "max": 4}]))
    with pytest.raises(InputRefused, match=r"m\.so: its manifest names no machine that the library is for; export the model again"):
        publish(tmp_path / "r", artifact(tmp_path / "m.so", described, target="native"))
    with pytest.raises(InputRefused, match="Triton's backend cnet runs no ONNX artifacts; expected onnxruntime or openvino"):
        publish(tmp_path / "r", onnx_path, backend="cnet")
    (tmp_path / "bare.onnx").write_bytes(onnx_path.read_bytes())
    with pytest.raises(InputRefused, match="has no manifest"):
        publish(tmp_path / "r", tmp_path / "bare.onnx")
    shutil.copy(manifest_path(onnx_path), tmp_path / "bare.onnx.json")
    (tmp_path / "bare.onnx").write_bytes(onnx_path.read_bytes() + b"x")
    with pytest.raises(InputRefused, match="the pair does not belong together"):
        publish(tmp_path / "r", tmp_path / "bare.onnx")
    assert not (tmp_path / "r").exists()


def test_one_configuration_serves_one_network(onnx_path: Path, tmp_path: Path, described: Manifest) -> None:
    assert described.architecture is not None
    publish(tmp_path / "r", onnx_path, name="net")
    before = tree(tmp_path / "r")
    larger = replace(described.architecture, classes=100)
    wider = replace(described.architecture, input_size=(32, 64))
    for path, what in (
        (engine(tmp_path / "a", described), "backend: \"onnxruntime\" there, \"tensorrt\" here"),
        (artifact(tmp_path / "b/net.onnx", described, architecture=larger), "output: .* dims 10 } there, .* dims 100 } here"),
        (artifact(tmp_path / "c/net.onnx", described, architecture=wider), "input: .* dims 3 32 32 } there, .* dims 3 32 64 } here"),
        (artifact(tmp_path / "d/net.onnx", described, details={"batch": 2}), "input: "),
    ):  # fmt: skip
        with pytest.raises(InputRefused, match=f"belongs to another network or kind of artifact .{what}.*give another name or folder"):
            publish(tmp_path / "r", path)
        assert tree(tmp_path / "r") == before


def test_a_configuration_in_somebody_s_own_hand(onnx_path: Path, other: Path, tmp_path: Path) -> None:
    first = publish(tmp_path / "r", onnx_path, name="m")
    first.config.write_text("""# input [ { dims: 7 } ]
        instance_group { count: 4 }  input: [{name:"input",data_type:TYPE_FP32,dims:[3,32,32]}]
        output { name: "logits"  # the classes: }
          data_type: TYPE_FP32
          dims: [ 10 ]
        }
        backend: "onnxruntime" """)
    parsed(first.config)
    assert publish(tmp_path / "r", other).version == 2
    for text in ("name: 'm'", 'input "', "}}} input { dims: [3, 32, 32] }", "\x00\xff", "#"):
        first.config.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputRefused, match="give another name or folder"):
            publish(tmp_path / "r", onnx_path, name="m")
        assert first.config.read_bytes() == text.encode("latin-1") and not (tmp_path / "r/m/3").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["pathlib.Path.rename", "os.replace", "os.fsync", "pathlib.Path.mkdir", "pathlib.Path.write_text"])
def test_a_full_or_read_only_disk_leaves_what_was_there(
    onnx_path: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    publish(tmp_path / "r", onnx_path, name="m")
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        for folder in ("r", "new"):
            with pytest.raises(OutputRefused, match=os.strerror(number)):
                publish(tmp_path / folder, other)
    assert tree(tmp_path) == before
    assert publish(tmp_path / "r", other).version == 2


def test_an_interruption_leaves_what_was_there(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)  # the version has its name by then, the configuration has not
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "r", onnx_path)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_somebody_else_made_meanwhile(onnx_path: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "r", onnx_path, name="m")
    rename: Callable[..., Path] = Path.rename

    def late(source: Path, target: Path) -> Path:
        (tmp_path / "r/m/2").mkdir()
        (tmp_path / "r/m/2/model.onnx").write_bytes(b"theirs")
        return rename(source, target)

    before = tree(tmp_path / "r")
    monkeypatch.setattr("pathlib.Path.rename", late)
    with pytest.raises(OutputRefused, match="not empty"):
        publish(tmp_path / "r", other)
    assert tree(tmp_path / "r") == {**before, "m/2": b"", "m/2/model.onnx": b"theirs"}


def test_no_lock_while_large_files_are_written(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a lock waits for a second, which large files may take."""
    written: list[int] = []

    @contextlib.contextmanager
    def locked(folder: Path) -> Iterator[None]:
        written.extend(path.stat().st_size for path in folder.glob("m/.new.*/model.onnx"))
        yield

    monkeypatch.setattr("cnet_deploy.artifacts.triton.locked", locked)
    publish(tmp_path / "r", onnx_path, name="m")
    assert written == [onnx_path.stat().st_size]
    assert sorted(path.name for path in (tmp_path / "r/m").iterdir()) == ["1", "config.pbtxt"]


def test_no_version_after_the_last(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "r/m" / ("9" * 18)).mkdir(parents=True)
    with pytest.raises(OutputRefused, match="the highest that there can be"):
        publish(tmp_path / "r", onnx_path, name="m")
    assert [path.name for path in (tmp_path / "r/m").iterdir()] == ["9" * 18]


def test_places_that_can_not_be_written_to(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/m").write_text("")
    before = tree(tmp_path)
    for folder, message in (
        (tmp_path / "file", "can't be written"), (tmp_path / "r", "can't be written"), (tmp_path / "none/r", "make it first"),
        (tmp_path / "a\0b", "can't be written"), (Path("/proc/r"), "can't be written"),
    ):  # fmt: skip
        with pytest.raises(OutputRefused, match=message):
            publish(folder, onnx_path, name="m")
    with pytest.raises(OutputRefused, match="too long"):
        publish(tmp_path / "new", onnx_path, name="n" * 300)
    assert tree(tmp_path) == before
