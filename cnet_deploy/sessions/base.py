"""The base classes of backends: the declaration of a backend, and sessions, which are artifacts opened on a device."""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.errors import InputRefused, Unavailable, naming, printable
from cnet_deploy.hardware.cuda import Device
from cnet_deploy.images.answers import Answer, answers
from cnet_deploy.images.class_names import read_labels
from cnet_deploy.images.decode import Pixels
from cnet_deploy.images.inputs import Given, type_in_words, walk_given
from cnet_deploy.images.preprocessing import CHANNELS, NO_OVERRIDES, Overrides, Preprocessing
from cnet_deploy.images.probabilities import are_probabilities, softmax
from cnet_deploy.models.architecture import Architecture, Form

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
# Options that only backends for models take: see checkpoints/load.py.
LOADING_OPTIONS = ("groups", "condense_factor", "input_size", "stem_stride", "final_pool", "hs_from", "weights")
PIXELS_FROM = 32  # values above it are no normalised pixels of common statistics
_KEPT = 4  # number of batch sizes whose device buffers are kept


@dataclass(frozen=True)
class Part:
    """The meaning of a part after a dot in a backend's name: options of its session, and of the export for it.

    ``rounds_to_tf32``: whether float32 products are then rounded to TF32 on a GPU.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    rounds_to_tf32: bool = False


class Probe(NamedTuple):
    """A check of `doctor`: its name, the device, the options of the session and of the export.

    ``packages`` are the distributions that it needs, if they differ from the backend's.
    """

    name: str
    device: str = "cpu"
    options: Mapping[str, Any] = {}
    export: Mapping[str, Any] = {}
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """The declaration of a backend: ``BACKEND = Backend(…)`` in a module of this package. The module's name is the backend's.

    ``opens`` are the kinds of files that it opens, by their first bytes (see Kind.opened_by); ``suffixes`` decide where these are like
    nothing known, and for a backend without ``opens``. ``runs_code``: its files are code, so both must agree before one is opened.
    ``takes`` are those of LOADING_OPTIONS that it takes, unless it ``opens_models`` and takes all. ``devices`` are those on which it runs,
    the default first. ``packages`` are the distributions that provide it, any one of which is enough (those in ``exclusive`` overwrite each
    other's files); ``remedy`` says how to get it. ``parts`` may follow its name after dots and select a variant. ``table`` has for each
    device the variants that `bench` measures by default: ("", "compile") is the backend itself and one variant. ``tried_apart``: what a
    stranger's file makes it do has no bounds (see trial.py). ``opens_models``: it opens
    checkpoints and models, which have no manifest. ``per_batch``: for `bench` its artifacts are exported for the measured batch size.
    ``probes`` are the checks of `doctor`; if empty, the backend itself on each device.
    """

    suffixes: tuple[str, ...]
    opens: tuple[str, ...] = ()
    runs_code: bool = False
    takes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    packages: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    remedy: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict)
    table: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tried_apart: bool = False
    opens_models: bool = False
    per_batch: bool = False
    probes: tuple[Probe, ...] = ()


class BatchFailed(InputRefused):
    """A graph that failed on several images at once, although its batch is free. It may run one. ``what`` is the message's first part."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; run one image at a time, or export it with a batch that is free in every node")
        self.what = what


class Binding(ABC):
    """One batch bound to a session's buffers, so that host, device and transfer times can be measured separately.

    Call ``upload``, then ``enqueue`` and ``wait`` as often as wanted, then ``download`` and ``result``.
    """

    def upload(self) -> None:
        """Copy the batch to the device. Nothing to do on a CPU."""

    @abstractmethod
    def enqueue(self) -> None:
        """Start one inference. On a CPU it is complete when this returns."""

    def wait(self) -> None:
        """Wait until all enqueued inferences are done. Nothing to do on a CPU."""

    def download(self) -> None:
        """Copy the logits to the host. Nothing to do on a CPU."""

    @abstractmethod
    def result(self) -> Floats:
        """The logits [N, classes] of the last inference."""

    def device_seconds(self, n: int) -> float | None:  # noqa: ARG002
        """Seconds that ``n`` inferences take by the device's clock; None on a CPU."""
        return None


class DeviceBinding(Binding):
    """A batch in a device's memory, with page-locked buffers on the host. Backends implement ``start``."""

    def __init__(self, device: Device, batch: Floats, classes: int) -> None:
        self.device, self._ran, self._taken = device, False, ExitStack()
        self._images, self._logits = (self._pinned(shape) for shape in (batch.shape, (len(batch), classes)))
        self.pointers = tuple(self._allocated(array.nbytes) for array in (self._images, self._logits))
        self.put(batch)

    @abstractmethod
    def start(self) -> None:
        """Enqueue one inference on the device's stream."""

    def put(self, batch: Floats) -> None:
        """Replace the batch by another of the same size, for the next upload."""
        np.copyto(self._images, batch)

    def upload(self) -> None:
        self.device.upload(self.pointers[0], self._images)

    def enqueue(self) -> None:
        self.start()
        self._ran = True

    def wait(self) -> None:
        self.device.synchronize()

    def download(self) -> None:
        self.device.download(self._logits, self.pointers[1])

    def result(self) -> Floats:
        if not self._ran:
            raise RuntimeError("result() before enqueue()")
        self.device.synchronize()  # downloads are asynchronous
        return self._logits.copy()

    def device_seconds(self, n: int) -> float:
        return self.device.seconds(self.enqueue, n)

    def release(self) -> None:
        """Free the memory now instead of when the device is closed. May be called again."""
        self._taken.close()

    def _pinned(self, shape: tuple[int, ...]) -> Floats:
        array: Floats = self.device.pinned(shape, np.float32)
        self._taken.callback(self.device.unpin, array)
        return array

    def _allocated(self, size: int) -> int:
        pointer = self.device.allocate(size)
        self._taken.callback(self.device.release, pointer)
        return pointer


class Session(ABC):
    """An open artifact or model; a context manager. ``classify`` answers with the classes of images, ``run`` with the logits of a batch.

    ``input_shape`` is (N, channels, H, W), with 1 (grey), 3 (RGB) or 4 (RGBA) channels. N is None for a free batch size, from
    ``least_batch`` to ``largest_batch`` (None: any).
    ``classes`` is their number, ``preprocessing`` how an image is made ready for ``run``. ``path`` is the file. ``precision`` is what it
    computes in, ``weights_precision`` that of the weights in the file where that may be another; both are read from the file itself.
    ``threads`` None means the backend's default. ``architecture``, ``preprocessing`` and ``manifest`` are None if they are not known, as
    for networks that are not of the family.
    """

    backend: str
    device: str = "cpu"
    precision: str = "fp32"
    weights_precision: str | None = None
    threads: int | None = None
    input_shape: tuple[int | None, int, int, int]
    least_batch: int = 1
    largest_batch: int | None = None
    classes: int
    form: Form = "group-conv"
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    manifest: Manifest | None = None
    path: Path | None = None
    closed: bool = False
    _process: int
    _answers_shares: bool | None = None  # whether it answers with probabilities; None: nothing was answered
    _checked_values = False
    _told_doubts = False

    def __new__(cls, *_: Any, **__: Any) -> Session:
        made = super().__new__(cls)
        made._process = os.getpid()
        return made

    def __repr__(self) -> str:
        of = f" of {printable(self.path)}" if self.path is not None else ""
        size, channels, height, width = self.input_shape
        batch = "any batch" if size is None else f"batch {size}"
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        state = ", closed" if self.closed else ""
        return (
            f"<session{of}: {self.backend} on {self.device}, {self.precision}{threads}; input {channels}x{height}x{width} "
            f"({CHANNELS[channels]}, {batch}), {self.classes} classes{state}>"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; empty if they are not known."""
        return self.manifest.class_names if self.manifest is not None else ()

    def classify(
        self,
        images: Iterable[Given] | Given,
        *,
        top: int = 5,
        batch: int = 16,
        labels: Path | str | None = None,
        preprocessing: Overrides = NO_OVERRIDES,
    ) -> list[Answer]:
        """Classify one or several images: an Answer for each, in their order, with the ``top`` most likely classes.

        An image is a path (of a file, a folder, or a CIFAR binary file), an image of Pillow, or a numpy array of uint8 [height, width,
        channels]. It is prepared by ``preprocessing.read`` of this session; the argument ``preprocessing`` overrides what the file states.
        ``labels`` is a file with the classes' names, ``batch`` the images of one run. Raises InputRefused for an array of another type or
        layout, and where neither the file nor ``preprocessing`` says how images are prepared; an image that can't be read gives an Answer
        with a ``problem``.
        """
        return list(self.answers(images, top=top, batch=batch, labels=labels, preprocessing=preprocessing))

    def answers(
        self, images: Iterable[Given] | Given, *, top: int = 5, batch: int = 16, labels: Path | str | None = None,
        preprocessing: Overrides = NO_OVERRIDES,
    ) -> Iterator[Answer]:  # fmt: skip
        """As ``classify``, one Answer after the other as the images are read."""
        if top < 1 or batch < 1:
            raise InputRefused(f"top is {top} and batch {batch}; expected at least 1 of each")
        with naming(self.path):
            steps = preprocessing.apply_to(self.preprocessing, self.input_shape[2:], self.input_shape[1])
        if (doubts := steps.doubts(preprocessing)) and not self._told_doubts:
            self._told_doubts = True
            log.warning("%s: %s here, or to convert or export, whose files keep it", self.path or self.backend, doubts)
        names = self.class_names if labels is None else read_labels(labels, self.classes)
        waiting: list[tuple[str, Pixels]] = []

        def answered() -> list[Answer]:
            taken, waiting[:] = list(waiting), []
            return answers([name for name, _ in taken], self._shares(steps, [pixels for _, pixels in taken]), names, top)

        for source in walk_given(images, steps, self.classes):
            try:
                waiting.append((source.name, source.read()))
            except InputRefused as error:
                yield from answered()  # keeps the order of the images
                yield Answer(source.name, problem=str(error))
            if len(waiting) == batch:
                yield from answered()
        yield from answered()

    def _shares(self, steps: Preprocessing, pixels: list[Pixels]) -> Any:
        """The probabilities [N, classes] of images. The first ones show whether the outputs are logits or probabilities."""
        if not pixels:
            return []
        rows = self.run(steps.apply(np.stack(pixels))).astype(np.float64)
        finite = np.logical_and.reduce(np.isfinite(rows), axis=1)
        if self._answers_shares is None and finite.any():
            self._answers_shares = are_probabilities(rows[finite])
            if self._answers_shares:
                log.warning(
                    "%s: answers with probabilities (it ends in a softmax), which are printed as they are", self.path or self.backend
                )
        shares = rows if self._answers_shares else softmax(rows)
        shares[~finite] = np.nan
        return shares

    def run(self, batch: Floats) -> Floats:
        """Logits of images that are prepared already (see ``Preprocessing.read``): normalised, channels first.

        float32 [N, channels, H, W] -> float32 logits [N, classes]. If the artifact's batch is limited, N is split into several runs.

        If the graph fails on more than one image, although its batch is free, it runs one image at a time from then on, and a warning says
        so. Raises InputRefused for another shape or dtype.
        """
        batch = self.check(batch)
        least, most = self._bounds()
        if least <= len(batch) <= (most or len(batch)):
            try:
                return self._once(batch)
            except BatchFailed as error:
                if len(batch) == 1 or least > 1:
                    raise
                self._once(batch[:1])  # raises, if the batch was not the reason
                self.least_batch, self.largest_batch = 1, 1
                log.warning("%s: one image is run at a time; an export whose batch is free in every node can run more", error.what)
                least, most = 1, 1
        step = most or least
        parts = [batch[start : start + step] for start in range(0, len(batch), step)]
        missing = max(0, least - len(parts[-1]))
        parts[-1] = np.concatenate([parts[-1], np.zeros((missing, *batch.shape[1:]), np.float32)])
        return np.concatenate([self._once(part) for part in parts])[: len(batch)]

    def _bounds(self) -> tuple[int, int | None]:
        size = self.input_shape[0]
        return (self.least_batch, self.largest_batch) if size is None else (size, size)

    def failed(self, path: object, images: int, reason: str) -> InputRefused:
        """The error for a graph that failed on so many images, though it seemed to take them."""
        if images > 1 and self.input_shape[0] is None:
            return BatchFailed(f"{path}: its graph fails on {images} images at once, although its batch is free ({reason})")
        return InputRefused(f"{path}: {self.backend} can't run it: {reason}; export the model again")

    def first_opening(self) -> dict[str, Any]:
        """Details for the manifest that are known only once the artifact is open. Raises CheckFailed if they contradict the manifest."""
        return {}

    @abstractmethod
    def bind(self, batch: Floats) -> Binding:
        """Bind a batch whose size the artifact accepts."""

    def close(self) -> None:
        """Free the session's resources; called at the end of a ``with`` block. May be called again."""
        self.closed = True

    def check(self, batch: Any, *, exact: bool = False) -> Floats:
        """The batch as a contiguous array. Raises InputRefused for another shape or dtype, or if the session is closed.

        ``exact``: N must be one that the artifact accepts.
        """
        if self.closed:
            raise InputRefused("the session was closed; open it again to run another batch")
        if self._process != os.getpid():  # its threads are not here, and it would wait for them for ever
            raise Unavailable(
                "the session was opened before a fork, and its threads are not in this process; open it here again, or start processes by "
                "spawn (multiprocessing.set_start_method)"
            )
        size, *expected = self.input_shape
        least, most = self._bounds()
        if exact and isinstance(batch, np.ndarray) and batch.ndim and not least <= len(batch) <= (most or len(batch)) and len(batch):
            expected_size = f"{size}, the artifact's fixed batch" if size is not None else f"{least} to {most}, the artifact's range"
            raise InputRefused(f"batch has {len(batch)} images; expected {expected_size}")
        if (
            not isinstance(batch, np.ndarray)
            or batch.dtype != np.float32
            or batch.ndim != 4
            or list(batch.shape[1:]) != expected
            or not len(batch)
        ):
            raise InputRefused(_wrong_batch(batch, expected))
        if not self._checked_values:
            self._checked_values = True
            self._warn_of_pixels(batch)
        return np.ascontiguousarray(batch)

    def _warn_of_pixels(self, batch: Floats) -> None:
        """Warn where the first batch looks like pixels that nobody normalised: whole numbers up to 255."""
        if self.preprocessing is None or not (PIXELS_FROM < float(batch.max()) <= 255 and float(batch.min()) >= 0):
            return
        low = min((0 - mean) / std for mean, std in zip(self.preprocessing.mean, self.preprocessing.std, strict=True))
        high = max((1 - mean) / std for mean, std in zip(self.preprocessing.mean, self.preprocessing.std, strict=True))
        if high <= PIXELS_FROM:
            log.warning(
                "the batch has values from %.3g to %.3g, as of pixels that are not normalised; this network's images have %.3g to %.3g: "
                "prepare them with session.preprocessing.read, or call session.classify", batch.min(), batch.max(), low, high,
            )  # fmt: skip

    def _once(self, batch: Floats) -> Floats:
        if self.device == "cpu":
            return _inferred(self.bind(batch))
        with self.__dict__.setdefault("_turn", threading.Lock()):  # threads share the buffers of a batch size
            kept: dict[int, DeviceBinding] = self.__dict__.setdefault("_kept", {})  # allocating device buffers is slow
            if len(batch) in kept:
                kept[len(batch)].put(batch)
                return _inferred(kept[len(batch)])
            binding = self.bind(batch)
            if isinstance(binding, DeviceBinding):
                if len(kept) >= _KEPT:
                    kept.pop(next(iter(kept))).release()
                kept[len(batch)] = binding
            return _inferred(binding)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _inferred(binding: Binding) -> Floats:
    binding.upload()
    binding.enqueue()
    binding.wait()
    binding.download()
    return binding.result()


def _wrong_batch(batch: Any, expected: list[int]) -> str:
    """Why a batch is refused, and how to change it where that is known."""
    wanted = f"float32 [N, {', '.join(map(str, expected))}]"
    if not isinstance(batch, np.ndarray):
        return f"batch is {type_in_words(batch)}; expected {wanted}, a numpy array"
    text, (channels, height, width), shape, how = f"batch is {batch.dtype} {list(batch.shape)}", expected, list(batch.shape), ""
    last = [height, width, channels]
    if batch.dtype == np.uint8 and shape[-3:] in (last, expected):
        text += ", pixels that are not normalised"
        how = ": call session.classify with images, or prepare each with session.preprocessing.read"
    elif shape[1:] == last and last != expected:
        text, how = f"{text}, channels last", ": give batch.transpose(0, 3, 1, 2)"
    elif shape == expected:
        text, how = f"{text}, one image", ": give batch[None]"
    elif shape[1:] == expected and len(batch) and batch.dtype.kind == "f":
        how = ": give batch.astype('float32')"
    elif batch.ndim == 4 and shape[1] == channels and len(batch):
        how = ": session.preprocessing.read resizes and crops an image to this size"
    return f"{text}; expected {wanted}{how}"
