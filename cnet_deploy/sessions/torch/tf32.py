"""TF32, which is a setting of the whole process: one thread at a time has it its way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_SETTINGS = threading.RLock()


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Float32 products in TF32 or not, whatever the process has: torch's convolutions use it unless they are told not to."""
    with _SETTINGS:
        before = tf32_settings()
        set_tf32(*["tf32" if on else "ieee"] * 3)
        try:
            yield
        finally:
            set_tf32(*before)


def tf32_settings() -> tuple[str, ...]:
    """Of matrix products, convolutions and recurrent layers, by the new names: the old ones raise where the two disagree."""
    known: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    return tuple(one.fp32_precision for one in known)


def set_tf32(matmul: str, conv: str, rnn: str) -> None:
    """Settings as ``tf32_settings`` gives them: "tf32", "ieee" or "none"."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # By both names, as torch.compile reads the old ones too; by the new ones last, which tell the two kinds of layers apart.
    cuda.allow_tf32, cudnn.allow_tf32 = matmul == "tf32", conv == "tf32"
    cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = matmul, conv, rnn  # type: ignore[attr-defined]
