"""A model repository for NVIDIA Triton Inference Server: ``folder/name/config.pbtxt`` and ``folder/name/version/model.onnx``.

The configuration is Triton's model_config.proto in protobuf's text format.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused, OutputRefused, naming, printable
from cnet_deploy.files import atomic_output, digest, exists, locked, read_bytes
from cnet_deploy.models.architecture import CLASSES, INPUT_SIZE
from cnet_deploy.version import __version__

LARGEST_BATCH = 32  # for an artifact that takes any
QUEUE_MICROSECONDS = 100  # how long a request may wait for others to be run with it
_MOST = 1 << 16  # images in a batch that a manifest may speak of
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # Triton ignores leading zeros, and fails on what no int64 holds
_RUN = "docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -v {}:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 "
_RUN += "tritonserver --model-repository=/models"
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]|[^\s{}<>\[\]:,;"'#]+""")


@dataclass(frozen=True)
class Repository:
    """What was written: the model's name and version there, its file, its configuration."""

    name: str
    version: int
    model: Path
    config: Path

    def lines(self) -> list[str]:
        """For people."""
        place = shlex.quote(str(self.config.parent.parent.resolve()))
        return [f"wrote {self.model} and {self.config}; to serve it:", _RUN.format(place)]


class Serving(Protocol):
    """How the server runs such artifacts: its platform and backend, the file's name in a version's folder, whether on GPUs alone."""

    @property
    def platform(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def gpu_only(self) -> bool: ...


def write_repository(
    folder: Path | str, artifact: Path | str, serving: Serving, *, name: str | None = None, max_batch: int | None = None
) -> Repository:  # fmt: skip
    """Put an artifact and its manifest into a repository as the model's next version; the same bytes again are no new version.

    ``folder`` is made if its parent is there; ``serving`` says how such artifacts are run. ``name`` None takes the artifact's own; what a
    name can't hold becomes ``_``. ``max_batch`` is the most images that requests are run together with (None: 32, or what the engine
    takes). A version appears whole or not at all; the server takes the highest. config.pbtxt is written anew each time. Raises InputRefused
    for an artifact without its manifest, for one that takes no single images, and where another network stands under that name already;
    OutputRefused where nothing can be written: then what was there is as it was.
    """
    pair = read_pair(artifact)
    data, found = pair.data, pair.manifest
    if found is None:
        raise InputRefused(f"{artifact}: has no manifest beside it; expected the pair that `export` wrote")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name or Path(artifact).stem).lstrip(".") or "model"
    with naming(artifact):
        text = _config(name, found, serving, max_batch)
    place = Path(folder) / name
    config, file = place / "config.pbtxt", serving.file
    try:
        if not place.parent.parent.is_dir():
            raise OutputRefused(f"{folder}: {place.parent.parent} is no directory; make it first")
        with _folders(place.parent, place), locked(place.parent):  # two would take the same version
            _require_same_network(config, text)
            latest = max((int(entry.name) for entry in place.iterdir() if _VERSION.fullmatch(entry.name)), default=0)
            model = place / str(latest) / file
            if exists(model) and digest(read_bytes(model)) == found.sha256:
                with atomic_output(config) as beside:
                    beside.write_text(text, encoding="utf-8")
            else:
                latest += 1
                model = place / str(latest) / file
                with _version(place, file, data, found) as temporary:
                    _publish(temporary, model.parent, config, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputRefused(f"{place}: can't be written: {reason}; what was there is as it was") from None
    return Repository(name, latest, model, config)


@contextlib.contextmanager
def _folders(*paths: Path) -> Iterator[None]:
    """Make folders, the outer ones first; those that were not there are gone again if the block fails."""
    made = []
    try:
        for path in paths:
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                made.append(path)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _version(place: Path, file: str, data: bytes, found: Manifest) -> Iterator[Path]:
    """A version's folder, whole and on the disk, under a name that the server passes over; what is left of it is removed."""
    temporary = place / f".new.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        for path, content in ((temporary / file, data), (manifest.manifest_path(temporary / file), found.to_json().encode())):
            with open(path, "wb") as written:
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, version: Path, config: Path, text: str) -> None:
    """Give a version its name and replace the configuration: both or neither. A kill in between leaves no version without one."""
    first = not exists(config)
    try:
        if first:
            with atomic_output(config) as beside:
                beside.write_text(text, encoding="utf-8")
        with atomic_output(config) as beside:
            beside.write_text(text, encoding="utf-8")
            temporary.rename(version)
    except BaseException:
        if not temporary.exists():  # the version has its name, the configuration has not
            shutil.rmtree(version, ignore_errors=True)
        if first:
            config.unlink(missing_ok=True)
        raise


def _require_same_network(config: Path, text: str) -> None:
    """One configuration serves all versions: refuse one that is for other inputs, outputs or another backend."""
    if not exists(config):
        return
    there, here = (_fields(said) for said in (read_bytes(config, 1 << 20).decode("utf-8", "replace"), text))
    for key in ("platform", "backend", "input", "output"):
        if there.get(key) != here[key] and (key in there or key in ("input", "output")):
            was, now = (" ".join(one.get(key, ["nothing"])) for one in (there, here))
            raise InputRefused(
                f"{config}: belongs to another network or kind of artifact ({key}: {printable(was, 200)} there, {now} here); "
                "give another name or folder"
            )


def _fields(text: str) -> dict[str, list[str]]:
    """The words of each field at the top of a text of protobuf's, comments and separators left out.

    >>> _fields("name: 'a' # b\\ninput [ { name: 'x', dims: [ 3, 4 ] } ]")
    {'name': ["'a'"], 'input': ['{', 'name', "'x'", 'dims', '3', '4', '}']}
    """
    fields: dict[str, list[str]] = {}
    key, depth = None, 0
    for token in _TOKEN.findall(text):
        if token.startswith("#"):
            continue
        if depth == 0 and token not in "{<" and (key is None or fields[key]):
            fields.setdefault(key := token, [])
        elif key is not None:
            fields[key].append(token)
            depth = max(0, depth + (token in "{<") - (token in "}>"))
    return fields


def _config(name: str, found: Manifest, serving: Serving, max_batch: int | None) -> str:
    largest, preferred, fixed = _batches(found, max_batch)
    image, logits = ([*fixed, *shape] for shape in _shapes(found))
    kind = "KIND_GPU" if serving.gpu_only else "KIND_AUTO"
    lines = [
        f"# Written by cnet-deploy {__version__}; one configuration for all versions of this model. In the repository's folder:",
        f"# {_RUN.format('$PWD')}",
        *_advice(found),
        f"name: {_quoted(name)}",
        f"platform: {_quoted(serving.platform)}",
        f"backend: {_quoted(serving.backend)}",
        f"default_model_filename: {_quoted(serving.file)}",
        f"max_batch_size: {largest}",
        f"input [ {{ name: {_quoted(INPUT)} data_type: TYPE_FP32 dims: {image} }} ]",
        f"output [ {{ name: {_quoted(OUTPUT)} data_type: TYPE_FP32 dims: {logits} }} ]",
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        "version_policy: { latest: { num_versions: 1 } }",
    ]
    if largest > 1:
        sizes = f"preferred_batch_size: [ {preferred} ] " if preferred > 1 else ""
        lines.append(f"dynamic_batching {{ {sizes}max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    warm = f"key: {_quoted(INPUT)} value: {{ data_type: TYPE_FP32 dims: {image} random_data: true }}"
    for batch in sorted({1, preferred or 1, largest or 1}):  # 1 also where the batch is among the dims: Triton skips a sample of 0
        lines.append(f"model_warmup [ {{ name: {_quoted(f'batch {batch}')} batch_size: {batch} count: 3 inputs: {{ {warm} }} }} ]")
    told = {
        "sha256": found.sha256,
        "source_sha256": found.source_sha256,
        "precision": found.precision,
        "tool": f"cnet-deploy {__version__}",
    }
    lines += [f"parameters [ {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }} ]" for key, value in told.items()]
    return "\n".join(lines) + "\n"


def _batches(found: Manifest, max_batch: int | None) -> tuple[int, int, list[int]]:
    """Most images of a batch (0: the artifact's own number, always), the size that is best (0: none), and the fixed batch's dimension."""
    if max_batch is not None and (type(max_batch) is not int or not 1 <= max_batch <= _MOST):
        raise InputRefused(f"a largest batch of {max_batch!r}; expected 1 to {_MOST}")
    if "profiles" in found.details:
        least, best, most = _profile(found.details["profiles"])
        if least > 1:
            raise InputRefused(f"the engine takes no fewer than {least} images, and requests come one by one; export it with --batch 1:…")
        if max_batch is not None and max_batch > most:
            raise InputRefused(f"the engine takes at most {most} images, expected a largest batch of no more; found {max_batch}")
        largest = max_batch or most
        return largest, best if 1 < best <= largest else 0, []
    batch = found.details.get("batch")
    if batch == "dynamic":
        return max_batch or LARGEST_BATCH, 0, []
    if type(batch) is not int or not 1 <= batch <= _MOST:
        raise InputRefused(f"its manifest has batch {batch!r}; expected 'dynamic' or a number from 1 to {_MOST}: export it again")
    if max_batch is not None:
        raise InputRefused(
            f"takes {batch} images, no more and no fewer, so a largest batch of {max_batch} can't be; export without --batch"
        )
    return 0, 0, [batch]


def _profile(profiles: Any) -> tuple[int, int, int]:
    if isinstance(profiles, list) and len(profiles) == 1 and isinstance(profiles[0], dict):
        sizes = [size for key in ("min", "opt", "max") if type(size := profiles[0].get(key)) is int]
        if len(sizes) == 3 and [1, *sizes, _MOST] == sorted([1, *sizes, _MOST]):
            return sizes[0], sizes[1], sizes[2]
    raise InputRefused(f"its manifest has profiles {printable(profiles, 100)}; expected one, with min, opt and max: export it again")


def _shapes(found: Manifest) -> tuple[list[int], list[int]]:
    """Of an image and its logits. The paper's other networks have no architecture, and one shape."""
    if found.architecture is not None:
        return [3, *found.architecture.input_size], [found.architecture.classes]
    return [3, *INPUT_SIZE], [CLASSES]


def _advice(found: Manifest) -> list[str]:
    if "compute_capability" not in found.details:
        return []
    version, gpu, capability = (
        printable(found.details.get(key, "unknown"), 80) for key in ("version", "gpu", "compute_capability")
    )  # fmt: skip
    return [
        f"# The engine is for TensorRT {version} on compute capability {capability} ({gpu}): YY.MM is the container that has that version."
    ]


def _quoted(text: str) -> str:
    """A string of protobuf's text format; bytes that are no plain ASCII as octal escapes.

    >>> _quoted('a"b')
    '"a\\\\"b"'
    """
    data = text.encode("utf-8", "replace")  # a manifest's JSON can hold half a surrogate pair
    return '"' + "".join(f"\\{chr(b)}" if b in b'"\\' else chr(b) if 32 <= b < 127 else f"\\{b:03o}" for b in data) + '"'
