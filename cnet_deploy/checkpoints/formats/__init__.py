"""Containers of weights: each is a module of this package with ``FORMAT = Format(…)``, listed in the tuple below.

A bad file raises ValueError or the exceptions of the container's library; ``checkpoints.read`` adds the file's name.
"""

from __future__ import annotations

from typing import Any

from cnet_deploy.checkpoints.formats import bare_pickle, safetensors, torch_legacy, torch_zip
from cnet_deploy.checkpoints.formats.base import Format

# In the order in which their ``recognises`` is tried. The last one takes every file that no other recognises.
FORMATS: tuple[Format, ...] = (safetensors.FORMAT, torch_zip.FORMAT, torch_legacy.FORMAT, bare_pickle.FORMAT)


def format_of(data: bytes, suffix: str = "") -> Format:
    """The container of a file by its first bytes; where they tell nothing, by its suffix."""
    by_content = next((known for known in FORMATS[:-1] if known.recognises(data)), None)
    return by_content or next((known for known in FORMATS if suffix.lower() in known.suffixes), FORMATS[-1])


def read_pickled(data: bytes) -> Any:
    """The object that torch.save wrote, its tensors as StoredTensor. Scan the file with ``pickle_scan.examine`` first."""
    return next(known for known in FORMATS if known.pickled and known.recognises(data)).read(data)[0]
