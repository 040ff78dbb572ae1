"""Outputs that are probabilities already: those of a network that ends in a softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SUM_TOLERANCE = 1e-3  # of the sum of a row: fp16 rounds each of its entries

Rows = npt.NDArray[np.float64]


def are_probabilities(rows: Rows) -> bool:
    """Whether every row of outputs [N, classes] is at least 0 everywhere and sums to 1. False for a single class, and where a row is not
    finite."""
    return bool(rows.shape[1] > 1 and (rows >= 0).all() and (np.abs(rows.sum(1) - 1) <= SUM_TOLERANCE).all())


def softmax(rows: Rows) -> Rows:
    """Logits [N, classes] as probabilities."""
    with np.errstate(invalid="ignore"):  # infinities become NaN
        shares = np.exp(rows - rows.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True))
