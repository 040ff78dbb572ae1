"""Commands that write, and what may be found where they wrote: the old files, the new ones, or none; never a mixture or half of one."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cnet_deploy as cd
from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.benchmarks.sweep.results import part_of, read_report
from cnet_deploy.files import digest
from cnet_deploy.training import checkpoints
from tests.forks import session_members

from .fixtures import Models

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..+)?")  # what a kill may leave; other programs pass over such names
QUICK = ("--rounds", "3", "--seconds", "0", "--warmup", "0", "--threads", "1")
SHAPE = ("--stages", "1-1", "--growth", "8-8", "--epochs", "2", "-b", "48", "-j", "1")


@dataclass(frozen=True)
class Command:
    """A command line by the model that it is given, and ``found``: which of the two models' outputs a folder holds, None for neither.

    ``found`` opens what is there, and fails for what is not whole. ``commits_in`` is the folder below where files get their names.
    """

    name: str
    line: Callable[[Models, bool, Path], tuple[object, ...]]
    found: Callable[[Models, Path], str | None]
    names: tuple[str, ...]
    commits_in: str = ""

    def __str__(self) -> str:
        return self.name

    def check(self, models: Models, folder: Path) -> str | None:
        """What the folder holds; nothing else may be in it, temporary files apart."""
        strangers = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".filling")} - {*self.names}  # see disks.py
        assert all(TEMPORARY.fullmatch(name) for name in strangers), strangers
        return self.found(models, folder)


def which(models: Models, source: str) -> str:
    """Whose weights these are, by the digest of the checkpoint."""
    known = {digest(path.read_bytes()): name for path, name in ((models.old, "old"), (models.new, "new"))}
    return known[source]


def _model(models: Models, folder: Path) -> str | None:
    path = folder / "m.safetensors"
    if not path.exists():
        return None
    found = cd.load(path)
    assert found.source is not None
    name = which(models, found.source.digest)
    there = models.old_converted if name == "old" else models.new_converted
    assert path.read_bytes() == there.read_bytes()
    return name


def pair(models: Models, path: Path) -> str | None:
    """An artifact that opens with its manifest; None where the artifact is not there."""
    if not path.exists():
        return None
    assert manifest.manifest_path(path).exists(), "an artifact without its manifest"
    found = read_manifest(path)
    assert found is not None and found.sha256 == digest(path.read_bytes())
    with cd.open_session(path, threads=1) as session:
        assert session.manifest is not None and session.manifest.source_sha256 == found.source_sha256
    return which(models, found.source_sha256)


def _picture(models: Models, folder: Path) -> str | None:
    path = folder / "m.svg"
    if not path.exists():
        return None
    text = "".join(ElementTree.parse(path).getroot().itertext())
    return "old" if "old.pth.tar" in text else "new"


def _repository(models: Models, folder: Path) -> str | None:
    """The highest version, which is what a server takes; each must be whole."""
    place = folder / "repository" / "m"
    if not place.exists():
        return None
    known = ("1", "2", "config.pbtxt", "labels.txt", "libtriton_cnet.so")
    assert all(entry.name in known or TEMPORARY.fullmatch(entry.name) for entry in place.iterdir())
    versions = [version for name in "12" if (version := place / name).exists()]
    files = [next(path for path in version.iterdir() if path.name in ("model.onnx", "model.so")) for version in versions]
    assert all(path.suffix == ".onnx" or (place / "libtriton_cnet.so").stat().st_size for path in files), "a library without its backend"
    found = [pair(models, path) for path in files]
    assert None not in found, "a version without its model"
    assert (place / "config.pbtxt").exists() or not found, "a version that no configuration speaks of"
    return found[-1] if found else None


def _model_given(models: Models, new: bool) -> Path:
    return models.new_converted if new else models.old_converted


def _named(models: Models, new: bool, folder: Path) -> Path:
    """The model under a name that is the same for both: a repository takes it for the model's."""
    place = folder.parent / f"{folder.name}-{new}"
    place.mkdir(exist_ok=True)
    if not (path := place / "m.safetensors").exists():
        shutil.copyfile(_model_given(models, new), path)
    return path


CONVERT = Command(
    "convert", lambda models, new, folder: ("convert", models.new if new else models.old, "-o", folder / "m.safetensors"), _model,
    ("m.safetensors",),
)  # fmt: skip
ONNX, NATIVE = (
    Command(
        f"export --{target}",
        lambda models, new, folder, target=target, name=name: (
            "export", _model_given(models, new), f"--{target}", "-o", folder / name, *(("--target", "host") if target == "native" else ()),
        ),
        lambda models, folder, name=name: pair(models, folder / name), (name, f"{name}.json"),
    )
    for target, name in (("onnx", "m.onnx"), ("native", "m.so"))
)  # fmt: skip
TRITON = Command(
    "export --triton", lambda models, new, folder: ("export", _named(models, new, folder), "--triton", folder / "repository"), _repository,
    ("repository",), "repository/m",
)  # fmt: skip
TRITON_NATIVE = Command(
    "export --triton --native",
    lambda models, new, folder: (
        "export", _named(models, new, folder), "--native", "--target", "host", "--triton", folder / "repository",
    ),
    _repository, ("repository",), "repository/m",
)  # fmt: skip
PLOT = Command(
    "inspect --plot", lambda models, new, folder: ("inspect", models.new if new else models.old, "--plot", folder / "m.svg"), _picture,
    ("m.svg",),
)  # fmt: skip


def whole_results(folder: Path) -> str | None:
    """``bench``'s JSON: "done", "part", or None; whatever is there is readable."""
    path = folder / "r.json"
    found = [None if read_report(place).after is None else "done" for place in (path, part_of(path)) if place.exists()]
    strangers = {entry.name for entry in folder.iterdir()} - {"r.json", "r.part.json"}
    assert all(TEMPORARY.fullmatch(name) for name in strangers), strangers
    return None if not found else found[0] or "part"


def whole_run(folder: Path) -> int:
    """How many epochs a training run has done; whatever has its final name is whole."""
    strangers = {entry.name for entry in folder.iterdir()} - {"save_models", "log.jsonl", "curves.svg"}
    assert all(TEMPORARY.fullmatch(name) for name in strangers), strangers
    done = checkpoints.Checkpoints(folder).numbered()
    for path in (*done, *(folder / "save_models").glob("model_best.pth.tar")):
        checkpoints.read(path)
    names = {entry.name for entry in (folder / "save_models").glob("*")} - {path.name for path in done}
    assert all(TEMPORARY.fullmatch(name) for name in names - {"latest.txt", "model_best.pth.tar"}), names
    if (pointer := folder / "save_models" / "latest.txt").exists():
        assert Path(pointer.read_text()).name in {path.name for path in done}
    if (folder / "curves.svg").exists():
        ElementTree.parse(folder / "curves.svg")
    lines = (folder / "log.jsonl").read_text().split("\n") if (folder / "log.jsonl").exists() else [""]
    assert all(json.loads(line)["event"] for line in lines[:-1])  # a kill cuts off the last at most
    return len(done)


def nobody_left(session: int, seconds: float = 60) -> None:
    """Every process of a session, and every one started by its command, ends by itself."""
    deadline = time.monotonic() + seconds
    while left := session_members(session):
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.02)


def emptied(folder: Path, content: Path | None = None) -> Path:
    """The folder with nothing in it, or with copies of what is in ``content``."""
    shutil.rmtree(folder, ignore_errors=True)
    if content is None:
        folder.mkdir()
    else:
        shutil.copytree(content, folder)
    return folder


def told(name: str, **counts: Any) -> None:
    """A line for the record of ``make attack``."""
    print(f"\n{name}: {', '.join(f'{count} {word}' for word, count in counts.items())}", flush=True)
