"""Write a model repository for NVIDIA Triton Inference Server: ``folder/name/config.pbtxt`` and ``folder/name/version/model.onnx``.

The configuration is Triton's model_config.proto in protobuf's text format. ``labels.txt``, where the names of the classes are known, lies
beside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused, OutputRefused, naming, printable
from cnet_deploy.files import atomic_output, digest, exists, locked, read_bytes
from cnet_deploy.hardware.cpu import usable_processors
from cnet_deploy.models.architecture import CLASSES, INPUT_SIZE
from cnet_deploy.version import __version__

LARGEST_BATCH = 32  # for an artifact that takes any batch
QUEUE_MICROSECONDS = 100  # how long a request for a GPU may wait to be batched with others; on a CPU that costs more than it gains
MOST_THREADS = 32  # as of a session
MOST_INSTANCES = 1024
LABELS = "labels.txt"
_MOST = 1 << 16  # largest batch accepted from a manifest
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # Triton ignores leading zeros, and fails on numbers beyond int64
_RUN = "docker run --rm {}-p 8000:8000 -p 8001:8001 -v {}:/models nvcr.io/nvidia/tritonserver:{}-py3 "
_RUN += "tritonserver --model-repository=/models"
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]|[^\s{}<>\[\]:,;"'#]+""")


@dataclass(frozen=True)
class Repository:
    """What was written: the model's name and version in the repository, its file, its configuration, and how it is run."""

    name: str
    version: int
    model: Path
    config: Path
    serving: Serving

    def lines(self) -> list[str]:
        """Lines of text."""
        place = shlex.quote(str(self.config.parent.parent.resolve()))
        return [f"wrote {self.model} and {self.config}; to serve it:", _run(place, self.serving)]


class Serving(Protocol):
    """How the server runs an artifact: see exporters/base.py."""

    @property
    def platform(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def runs_on(self) -> Literal["any", "cpu", "gpu"]: ...
    @property
    def threads(self) -> str: ...
    @property
    def states_threads(self) -> bool: ...
    @property
    def any_batch(self) -> bool: ...
    @property
    def release(self) -> str: ...


def write_repository(
    folder: Path | str, artifact: Path | str, serving: Serving, *, name: str | None = None, max_batch: int | None = None,
    instances: int = 1, threads: int | None = None, beside: Mapping[str, bytes] = {},
) -> Repository:  # fmt: skip
    """Put an artifact and its manifest into a repository as the model's next version; the same bytes again make no new version.

    ``folder`` is created if its parent exists; ``serving`` says how such artifacts are run. ``name`` None takes the artifact's name;
    characters that a name can't hold become ``_``. ``max_batch`` is the largest batch that requests are combined to (None: 32, or the
    engine's largest). ``instances`` run at the same time, each on ``threads`` (None: as the backend chooses; for a native library the
    processors that this process may use, divided among the instances). ``beside`` are files that all versions need, in the model's folder.
    A version is written completely or not at all; the server takes the highest. config.pbtxt, the names of the classes and ``beside`` are
    rewritten each time. Raises InputRefused for an artifact without a manifest or that takes no single images, for numbers that can't be,
    and if the name belongs to another network; OutputRefused if the repository can't be written: then nothing in it was changed.
    """
    pair = read_pair(artifact)
    data, stated = pair.data, pair.manifest
    if stated is None:
        raise InputRefused(f"{artifact}: has no manifest beside it; expected the pair that `export` wrote")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name or Path(artifact).stem).lstrip(".") or "model"
    with naming(artifact):
        text = _config(name, stated, serving, max_batch, instances, threads)
    common = dict(beside)
    if stated.class_names:
        common[LABELS] = "".join(f"{_line(label)}\n" for label in stated.class_names).encode()
    files = {serving.file: data, manifest.manifest_path(serving.file).name: stated.to_json().encode()}
    place = Path(folder) / name
    config, file = place / "config.pbtxt", serving.file
    try:
        if not place.parent.parent.is_dir():
            raise OutputRefused(f"{folder}: {place.parent.parent} is no directory; make it first")
        # Two processes would take the same version. The lock is not waited for as long as large files take to be written.
        with _folders(place.parent, place), _version(place, files) as temporary, locked(place.parent):
            _require_same_network(config, text)
            latest = max((int(entry.name) for entry in place.iterdir() if _VERSION.fullmatch(entry.name)), default=0)
            if _same(place / str(latest) / file, data):
                with _common(place, common), atomic_output(config) as written:
                    written.write_text(text, encoding="utf-8")
            else:
                latest += 1
                if not _VERSION.fullmatch(str(latest)):
                    raise OutputRefused(f"{place}: has version {latest - 1}, the highest that there can be; remove or rename it first")
                with _common(place, common):
                    _publish(temporary, place / str(latest), config, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputRefused(f"{place}: can't be written: {reason}; nothing in it was changed") from None
    return Repository(name, latest, place / str(latest) / file, config, serving)


def _run(folder: str, serving: Serving) -> str:
    return _RUN.format("--gpus all " if serving.runs_on == "gpu" else "", folder, serving.release)


def _line(label: str) -> str:
    """A class name on one line, as the server reads it and gives it to clients, without control characters.

    >>> _line("a\\nb\\0c")
    'a b c'
    """
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", label).encode("utf-8", "replace").decode().split())


def _same(path: Path, content: bytes) -> bool:
    return exists(path) and digest(read_bytes(path)) == digest(content)


@contextlib.contextmanager
def _common(place: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Write files of the model's folder that differ from what is there; put that back if the block fails."""
    before: dict[Path, bytes | None] = {}
    try:
        for name, content in files.items():
            path = place / name
            there = read_bytes(path) if exists(path) else None
            if there != content:
                with atomic_output(path) as written:
                    written.write_bytes(content)
                before[path] = there
        yield
    except BaseException:
        for path, there in before.items():
            with contextlib.suppress(OSError, OutputRefused):
                if there is None:
                    path.unlink()
                else:
                    with atomic_output(path) as written:
                        written.write_bytes(there)
        raise


@contextlib.contextmanager
def _folders(*paths: Path) -> Iterator[None]:
    """Create folders, the outer ones first; remove the new ones if the block fails."""
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
def _version(place: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """A complete version's folder under a temporary name, which the server ignores. It is removed afterwards unless it was renamed."""
    temporary = place / f".new.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        for name, content in files.items():
            with open(temporary / name, "wb") as written:
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, version: Path, config: Path, text: str) -> None:
    """Rename a version and replace the configuration, both or neither. If killed in between, there is no version without configuration."""
    first = not exists(config)
    try:
        if first:
            with atomic_output(config) as beside:
                beside.write_text(text, encoding="utf-8")
        with atomic_output(config) as beside:
            beside.write_text(text, encoding="utf-8")
            temporary.rename(version)
    except BaseException:
        if not temporary.exists():  # the version was renamed, the configuration was not
            shutil.rmtree(version, ignore_errors=True)
        if first:
            config.unlink(missing_ok=True)
        raise


def _require_same_network(config: Path, text: str) -> None:
    """Raise InputRefused if the existing configuration, which serves all versions, is for other inputs, outputs or another backend."""
    if not exists(config):
        return
    old, new = _fields(read_bytes(config, 1 << 20).decode("utf-8", "replace")), _fields(text)
    for key in ("backend", "platform", "input", "output"):
        if old.get(key) != new.get(key) and (key in old or key in ("input", "output")):
            was, now = (" ".join(fields.get(key, ["nothing"])) for fields in (old, new))
            raise InputRefused(
                f"{config}: belongs to another network or kind of artifact ({key}: {printable(was, 200)} there, {now} here); "
                "give another name or folder"
            )


def _fields(text: str) -> dict[str, list[str]]:
    """The words of each top-level field of a protobuf text, without comments and separators.

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
    for words in fields.values():  # the names of classes may change, as the weights may
        while "label_filename" in words:
            at = words.index("label_filename")
            del words[at : at + 2]
    return fields


def _config(name: str, stated: Manifest, serving: Serving, max_batch: int | None, instances: int, threads: int | None) -> str:
    largest, preferred, fixed = _batches(stated, serving, max_batch)
    image, logits = ([*fixed, *shape] for shape in _shapes(stated))
    kind = {"any": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}[serving.runs_on]
    threads = require_threads(serving, instances, threads)
    labels = f" label_filename: {_quoted(LABELS)}" if stated.class_names else ""
    lines = [
        f"# Written by cnet-deploy {__version__}; one configuration for all versions of this model. In the repository's folder:",
        f"# {_run('$PWD', serving)}",
        *_advice(stated),
        f"name: {_quoted(name)}",
        *([f"platform: {_quoted(serving.platform)}"] if serving.platform else []),
        f"backend: {_quoted(serving.backend)}",
        f"default_model_filename: {_quoted(serving.file)}",
        f"max_batch_size: {largest}",
        f"input [ {{ name: {_quoted(INPUT)} data_type: TYPE_FP32 dims: {image} }} ]",
        f"output [ {{ name: {_quoted(OUTPUT)} data_type: TYPE_FP32 dims: {logits}{labels} }} ]",
        f"instance_group [ {{ count: {instances} kind: {kind} }} ]",
        "version_policy: { latest: { num_versions: 1 } }",
    ]
    if largest > 1:
        sizes = f"preferred_batch_size: [ {preferred} ] " if preferred > 1 else ""
        delay = f"max_queue_delay_microseconds: {QUEUE_MICROSECONDS} " if serving.runs_on == "gpu" else ""
        lines.append(f"dynamic_batching {{ {sizes}{delay}}}")
    warm = f"key: {_quoted(INPUT)} value: {{ data_type: TYPE_FP32 dims: {image} random_data: true }}"
    for batch in sorted({1, preferred or 1, largest or 1}):  # 1 also for a fixed batch: Triton skips a sample of 0
        lines.append(f"model_warmup [ {{ name: {_quoted(f'batch {batch}')} batch_size: {batch} count: 3 inputs: {{ {warm} }} }} ]")
    parameters = {
        "sha256": stated.sha256,
        "source_sha256": stated.source_sha256,
        "precision": stated.precision,
        "tool": f"cnet-deploy {__version__}",
        **({} if threads is None else {serving.threads: str(threads)}),
    }
    lines += [f"parameters [ {{ key: {_quoted(key)} value: {{ string_value: {_quoted(v)} }} }} ]" for key, v in parameters.items()]
    return "\n".join(lines) + "\n"


def require_threads(serving: Serving, instances: int, threads: int | None) -> int | None:
    """The threads of an instance that the configuration states; None: it states none. Raises InputRefused for numbers that can't be."""
    if type(instances) is not int or not 1 <= instances <= MOST_INSTANCES:
        raise InputRefused(f"the number of instances is {instances!r}; expected a number from 1 to {MOST_INSTANCES}")
    if threads is None:
        usable = min(usable_processors(), MOST_THREADS)
        return max(1, usable // instances) if serving.states_threads else None
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise InputRefused(f"the number of threads is {threads!r}; expected a number from 1 to {MOST_THREADS}")
    if not serving.threads:
        raise InputRefused(f"Triton's backend {serving.backend} is told no number of threads; leave it out")
    return threads


def _batches(stated: Manifest, serving: Serving, max_batch: int | None) -> tuple[int, int, list[int]]:
    """Largest batch (0: fixed by the artifact), preferred batch (0: none), and the dimension of a fixed batch as a list."""
    if max_batch is not None and (type(max_batch) is not int or not 1 <= max_batch <= _MOST):
        raise InputRefused(f"the largest batch is {max_batch!r}; expected a number from 1 to {_MOST}")
    if "profiles" in stated.details:
        least, best, most = _profile(stated.details["profiles"])
        if least > 1:
            raise InputRefused(f"the engine takes no fewer than {least} images, and requests come one by one; export it with --batch 1:…")
        if max_batch is not None and max_batch > most:
            raise InputRefused(f"the largest batch is {max_batch}; expected at most {most}, which the engine takes")
        largest = max_batch or most
        return largest, best if 1 < best <= largest else 0, []
    batch = stated.details.get("batch")
    if batch == "dynamic" or (batch is None and serving.any_batch):
        return max_batch or LARGEST_BATCH, 0, []
    if type(batch) is not int or not 1 <= batch <= _MOST:
        stated_batch = "no batch" if batch is None else f"batch {printable(batch, 100)}"
        raise InputRefused(f"its manifest has {stated_batch}; expected dynamic, or a number from 1 to {_MOST}: export it again")
    if max_batch is not None:
        raise InputRefused(f"takes exactly {batch} images, so its largest batch can't be {max_batch}; export it without --batch")
    return 0, 0, [batch]


def _profile(profiles: Any) -> tuple[int, int, int]:
    if isinstance(profiles, list) and len(profiles) == 1 and isinstance(profiles[0], dict):
        sizes = [size for key in ("min", "opt", "max") if type(size := profiles[0].get(key)) is int]
        if len(sizes) == 3 and [1, *sizes, _MOST] == sorted([1, *sizes, _MOST]):
            return sizes[0], sizes[1], sizes[2]
    raise InputRefused("its manifest has damaged profiles; expected one with the numbers min, opt and max: export it again")


def _shapes(stated: Manifest) -> tuple[list[int], list[int]]:
    """The shapes of an image and its logits. The paper's other networks record no architecture and all have the same shapes."""
    if stated.architecture is not None:
        return list(stated.architecture.image_shape), [stated.architecture.classes]
    return [3, *INPUT_SIZE], [CLASSES]


def _advice(stated: Manifest) -> list[str]:
    if "compute_capability" not in stated.details:
        return []
    version, gpu, capability = (
        printable(stated.details.get(key, "unknown"), 80) for key in ("version", "gpu", "compute_capability")
    )  # fmt: skip
    return [
        f"# The engine is for TensorRT {version} on compute capability {capability} ({gpu}): YY.MM is the container that has that version."
    ]


def _quoted(text: str) -> str:
    """A string in protobuf's text format; bytes outside printable ASCII become octal escapes.

    >>> _quoted('a"b')
    '"a\\\\"b"'
    """
    data = text.encode("utf-8", "replace")  # JSON can hold half a surrogate pair
    return '"' + "".join(f"\\{chr(b)}" if b in b'"\\' else chr(b) if 32 <= b < 127 else f"\\{b:03o}" for b in data) + '"'
