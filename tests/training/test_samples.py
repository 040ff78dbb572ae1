"""Every image once an epoch, changed in ways that keep its label, the same whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import ArrayDataset, open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.training.samples import PADDING, Samples, cropped, shifted
from tests.builders import TINY

CIFAR = Preprocessing.of(TINY.input_size, TINY.classes)


def numbered(count: int) -> ArrayDataset:
    """Images whose every pixel is their number."""
    pixels = np.broadcast_to(np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None], (count, 3, 32, 32)).copy()
    return ArrayDataset("numbered", pixels, np.arange(count) % 10, [str(n) for n in range(10)], "cifar10")


def seen(samples: Samples, epoch: int = 0) -> list[int]:
    """The numbers of the images that an epoch has."""
    return [int(image.max()) for pixels, _ in samples.epoch(epoch) for image in pixels]


def test_every_image_once_and_another_order_each_epoch() -> None:
    samples = Samples(numbered(100), CIFAR, 32, seed=3)
    assert samples.steps == 4
    assert sorted(seen(samples)) == list(range(1, 101))
    assert seen(samples) == seen(samples) != seen(samples, 1)
    assert seen(samples) != seen(Samples(numbered(100), CIFAR, 32, seed=4))


def test_labels_stay_with_their_images() -> None:
    for pixels, labels in Samples(numbered(50), CIFAR, 16, seed=0).epoch(0):
        assert ((pixels.reshape(len(pixels), -1).max(1) - 1) % 10 == labels).all()


@pytest.mark.parametrize(("images", "processes"), [(100, 2), (101, 2), (97, 4), (65, 8)])
def test_peers_share_every_batch_equally(images: int, processes: int) -> None:
    shares = [Samples(numbered(images), CIFAR, 32, 1, rank, processes) for rank in range(processes)]
    assert len({share.steps for share in shares}) == 1
    batches = [[len(pixels) for pixels, _ in share.epoch(0)] for share in shares]
    assert all(sizes == batches[0] for sizes in batches) and min(batches[0]) > 1
    together = [number for share in shares for number in seen(share)]
    assert len(together) == len(set(together)) > images - 2 * processes


def test_a_last_image_alone_is_left_out() -> None:
    assert Samples(numbered(33), CIFAR, 32, 0).steps == 1  # batch norm can't use one image
    assert Samples(numbered(34), CIFAR, 32, 0).steps == 2
    assert Samples(numbered(1), CIFAR, 32, 0).steps == 1
    with pytest.raises(InputRefused, match="has 1 images; expected at least one for each of 2"):
        Samples(numbered(1), CIFAR, 32, 0, 0, 2)
    with pytest.raises(InputRefused, match="32 images can't be shared by 3 processes; expected a multiple of 3"):
        Samples(numbered(9), CIFAR, 32, 0, 0, 3)


def test_windows_of_the_padded_image_and_mirror_images() -> None:
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(1, 3, 8, 8)
    padded = np.pad(pixels[0], ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    possible = {padded[:, y : y + 8, x : x + 8][..., ::turn].tobytes() for y in range(9) for x in range(9) for turn in (1, -1)}
    random = np.random.default_rng(0)
    found = {shifted(pixels, random)[0].tobytes() for _ in range(3000)}
    assert found == possible  # 162 of them, all reached, none else


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, so that a crop tells where it was taken."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def test_random_crops_have_the_size_and_their_share_of_the_image() -> None:
    image, random = gradient(200, 150), np.random.default_rng(1)
    shares, mirrored = [], 0
    for _ in range(300):
        found = cropped(image, (24, 32), random).astype(int)
        assert found.shape == (3, 24, 32)
        across, down = found[0, 12, -1] - found[0, 12, 0], found[1, -1, 16] - found[1, 0, 16]
        mirrored += across < 0
        shares.append(abs(across) / 255 * 32 / 31 * down / 255 * 24 / 23)
    assert 0.05 < min(shares) < 0.15 and 0.9 < max(shares) < 1.1
    assert 0.4 < np.mean(shares) < 0.65 and 100 < mirrored < 200


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1), (3, 2)])
def test_images_that_no_crop_fits(size: tuple[int, int]) -> None:
    assert cropped(gradient(*size), (8, 8), np.random.default_rng(0)).shape == (3, 8, 8)


def test_folders_are_cropped_the_same_by_any_number_of_threads(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 4)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for n in range(count):
            gradient(40 + n, 30).save(tmp_path / "train" / name / f"{n}.png")
    dataset, steps = open_dataset(tmp_path, "train"), replace(CIFAR, crop=(16, 16))
    one, three = (list(Samples(dataset, steps, 3, 5, workers=workers).epoch(2)) for workers in (1, 3))
    assert [len(labels) for _, labels in one] == [3, 3]
    for (a, labels_a), (b, labels_b) in zip(one, three, strict=True):
        assert (a == b).all() and (labels_a == labels_b).all()
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"damaged")
    with pytest.raises(InputRefused, match="1.png: is no readable image"):
        list(Samples(open_dataset(tmp_path, "train"), steps, 7, 5).epoch(0))
