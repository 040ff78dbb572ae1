"""Batches of a dataset's images, prepared ahead by threads, always in the same order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import ArrayDataset, Dataset, Labels, Pixels
from cnet_deploy.images.preprocessing import Preprocessing

Item = TypeVar("Item")
Made = TypeVar("Made")
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """uint8 ``pixels`` [N, channels, H, W] for each kind of preprocessing, ``labels`` [N], and the reasons why images are missing."""

    pixels: tuple[Pixels, ...]
    labels: Labels
    refused: tuple[str, ...] = ()


def default_workers() -> int:
    """The number of available cores, at most 8 (the reference's number)."""
    return min(8, len(os.sched_getaffinity(0)))


def in_order(make: Callable[[Item], Made], items: Sequence[Item], workers: int, ahead: int) -> Iterator[Made]:
    """``map`` with ``workers`` threads, at most ``ahead`` items ahead of the caller. An exception of ``make`` is raised at its item."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(
    dataset: Dataset, kinds: Sequence[Preprocessing], indices: Sequence[int], size: int, workers: int | None = None
) -> Iterator[Batch]:
    """The images of ``indices``, ``size`` at a time, for each kind of preprocessing. Unreadable images are left out and named."""
    if isinstance(dataset, ArrayDataset) and all(dataset.fits(kind) for kind in kinds):
        for start in range(0, len(indices), size):
            chosen = np.asarray(indices[start : start + size], np.int64)
            yield Batch((dataset.pixels[chosen],) * len(kinds), dataset.labels[chosen])
        return

    def prepare(index: int) -> list[Pixels] | str:
        try:
            return [dataset.image(index, kind) for kind in kinds]
        except InputRefused as error:
            return str(error)

    prepared = in_order(prepare, indices, workers or default_workers(), _BATCHES_AHEAD * size)
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        images = [next(prepared) for _ in part]
        decoded = [image for image in images if not isinstance(image, str)]
        pixels = [
            np.stack([image[n] for image in decoded]) if decoded else np.empty((0, kind.channels, *kind.crop), np.uint8)
            for n, kind in enumerate(kinds)
        ]
        read = [index for index, image in zip(part, images, strict=True) if not isinstance(image, str)]
        refused = tuple(reason for reason in images if isinstance(reason, str))
        yield Batch(tuple(pixels), dataset.labels[np.asarray(read, np.int64)], refused)
