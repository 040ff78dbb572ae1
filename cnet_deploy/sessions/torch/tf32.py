"""Set TF32, which applies to the whole process. A lock lets one thread at a time change it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_SETTINGS = threading.RLock()


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Turn TF32 for float32 products on or off within the block. By default torch's convolutions use it."""
    with _SETTINGS:
        before = tf32_settings()
        set_tf32(*["tf32" if on else "ieee"] * 3)
        try:
            yield
        finally:
            set_tf32(*before)


def tf32_settings() -> tuple[str, ...]:
    """The settings of matrix products, convolutions and recurrent layers, by torch's new names; the old ones raise if the two disagree."""
    known: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    return tuple(one.fp32_precision for one in known)


def set_tf32(matmul: str, conv: str, rnn: str) -> None:
    """Settings as ``tf32_settings`` gives them: "tf32", "ieee" or "none"."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # By both names, since torch.compile reads the old ones. The new ones last, since they distinguish convolutions and recurrent layers.
    cuda.allow_tf32, cudnn.allow_tf32 = matmul == "tf32", conv == "tf32"
    cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = matmul, conv, rnn  # type: ignore[attr-defined]
