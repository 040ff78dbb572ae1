"""The images of a training epoch: each once. Order and augmentation depend only on the seed, the epoch and the step.

So a resumed run continues as it would have done, and the number of threads makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.batches import default_workers, in_order
from cnet_deploy.images.datasets import ArrayDataset, Dataset, FolderDataset, Labels, Pixels
from cnet_deploy.images.image_file import opened_image
from cnet_deploy.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import PIL.Image

PADDING = 4  # pixels on each side before an image is cropped to its size (reference: main.py, RandomCrop)
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a crop of ImageNet's images (torchvision's RandomResizedCrop)


class Samples:
    """One process's share of the training images: of every batch, the images ``rank``, ``rank`` + ``processes`` …

    Shares have equal size, so that the mean of the processes' gradients is that of the batch. For this at most ``processes`` - 1 images
    at the end of an epoch are left out, and a last share of a single image, which batch norm can't use. Raises InputRefused for a batch
    that can't be divided equally, and for too few images.
    """

    def __init__(
        self, dataset: Dataset, preprocessing: Preprocessing, batch_size: int, seed: int, rank: int = 0, processes: int = 1,
        workers: int | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.preprocessing, self.batch_size, self.seed = dataset, preprocessing, batch_size, seed
        self.rank, self.processes, self.workers = rank, processes, workers or default_workers()
        if batch_size % processes:
            raise InputRefused(
                f"a batch of {batch_size} images can't be shared by {processes} processes; expected a multiple of {processes}"
            )
        rest = len(dataset) % batch_size // processes
        whole = len(dataset) // batch_size
        self.steps = whole + (1 if rest > 1 or (rest and not whole) else 0)
        if not self.steps:
            raise InputRefused(f"{dataset.name}: has {len(dataset)} images; expected at least one for each of {processes} processes")

    def epoch(self, number: int) -> Iterator[tuple[Pixels, Labels]]:
        """Batches of uint8 pixels [N, 3, H, W] and labels [N]. Raises InputRefused for an image that can't be read."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.dataset))
        parts = []
        for step in range(self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            parts.append(batch[self.rank :: self.processes][: len(batch) // self.processes])
        if isinstance(self.dataset, ArrayDataset) and self.dataset.pixels.shape[2:] == self.preprocessing.crop:
            yield from in_order(lambda step: self._shifted(parts[step], number, step), range(self.steps), 1, 2)
            return
        images = in_order(
            lambda index: self._cropped(index, number), [int(i) for part in parts for i in part], self.workers, 2 * self.batch_size
        )
        for part in parts:
            yield np.stack([next(images) for _ in part]), self.dataset.labels[part]

    def _shifted(self, indices: Labels, epoch: int, step: int) -> tuple[Pixels, Labels]:
        """Small images: a crop of the padded image, mirrored in half the cases."""
        assert isinstance(self.dataset, ArrayDataset)
        random = np.random.default_rng([self.seed, epoch, step, self.rank])
        return shifted(self.dataset.pixels[indices], random), self.dataset.labels[indices]

    def _cropped(self, index: int, epoch: int) -> Pixels:
        random = np.random.default_rng([self.seed, epoch, index])
        if isinstance(self.dataset, FolderDataset):
            with opened_image(self.dataset.files[index]) as image:
                return cropped(image, self.preprocessing.crop, random)
        from PIL import Image

        assert isinstance(self.dataset, ArrayDataset)
        return cropped(Image.fromarray(self.dataset.pixels[index].transpose(1, 2, 0)), self.preprocessing.crop, random)


def shifted(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Pad images [N, 3, H, W] with black, crop them to their old size, mirror each with probability 1/2 (reference: main.py)."""
    count, _, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    y, x = random.integers(0, 2 * PADDING + 1, (2, count))
    taken = windows[np.arange(count), :, y, x]
    mirrored = random.integers(0, 2, count) == 1
    taken[mirrored] = taken[mirrored, :, :, ::-1]
    return taken


def cropped(image: PIL.Image.Image, size: tuple[int, int], random: np.random.Generator) -> Pixels:
    """A crop of 8 to 100 % of an image's area with aspect ratio 3:4 to 4:3, resized to ``size`` [3, H, W], mirrored with probability 1/2
    (Szegedy et al., 2015; reference: main.py, RandomSizedCrop). If no such crop fits in ten tries, the centre is taken."""
    from PIL import Image as Pillow

    left, top, width, height = _place(image.width, image.height, random)
    whole = image.convert("RGB").resize(size[::-1], Pillow.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    pixels = np.asarray(whole).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if random.integers(0, 2) else pixels)


def _place(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1)), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h
