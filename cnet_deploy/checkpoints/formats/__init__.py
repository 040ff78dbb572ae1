"""Containers of weights, one file each: ``FORMAT = Format(…)`` in a module of this package, named in the tuple below.

Whatever is wrong with a file raises ValueError, or what the container's library raises; ``checkpoints.read`` says which file it was.
"""

from __future__ import annotations

from typing import Any

from cnet_deploy.checkpoints.formats import safetensors, torch_legacy, torch_zip
from cnet_deploy.checkpoints.formats.base import Format

# In the order in which they are tried by a file's first bytes; the last one takes what no other recognises.
FORMATS: tuple[Format, ...] = (safetensors.FORMAT, torch_zip.FORMAT, torch_legacy.FORMAT)


def format_of(data: bytes, suffix: str) -> Format:
    """The container of a file's bytes: by its suffix where that leaves no doubt, else by its first bytes."""
    by_suffix = next((known for known in FORMATS if suffix in known.suffixes), None)
    return by_suffix or next((known for known in FORMATS if known.recognises(data)), FORMATS[-1])


def read_pickled(data: bytes) -> Any:
    """The object that torch.save wrote, its tensors as StoredTensor. ``pickle_scan.examine`` must have found nothing in it before."""
    return next(known for known in FORMATS if known.pickled and known.recognises(data)).read(data)[0]
