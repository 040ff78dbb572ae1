"""Whose names a file has: each dialect is a module of this package with ``DIALECT = Dialect(…)``, listed in the tuple below."""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects import (
    condensenet_v2,
    condensenet_v2_converted,
    hagerrady13,
    original,
    original_converted,
    ppim,
    pytorchcv,
)
from cnet_deploy.checkpoints.dialects.base import Dialect

# In the order in which they are tried.
DIALECTS: tuple[Dialect, ...] = (
    ppim.DIALECT, condensenet_v2_converted.DIALECT, condensenet_v2.DIALECT, original_converted.DIALECT, original.DIALECT, pytorchcv.DIALECT,
    hagerrady13.DIALECT,
)  # fmt: skip
