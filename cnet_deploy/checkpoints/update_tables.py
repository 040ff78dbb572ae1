"""The tables of updates of CondenseNet V2 as its authors write them: a matrix of ones and zeros for each layer (``sfr.index``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused

_END = ".sfr.index"


def with_update_tables(tensors: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The tensors with every such matrix [rows, channels] as a table [rows] of the channel whose place in the row has the one.

    A layer's update adds row r of its convolution to channel ``table[r]`` (utils/layers.py there, CondensingSFR). Tables are left as they
    are. Raises InputRefused for a row that is not a single one among zeros.
    """
    return {name: _table(name, values) if name.endswith(_END) and values.ndim == 2 else values for name, values in tensors.items()}


def one_hot(table: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The matrix of a table, [rows, rows]: an update of the authors' converter has as many rows as channels."""
    matrix = np.zeros((table.size, table.size), np.float32)
    matrix[np.arange(table.size), table] = 1
    return matrix


def _table(name: str, matrix: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    rows, channels = matrix.shape
    if rows != channels or not rows:
        raise InputRefused(f"{name} has shape {matrix.shape}; expected a square matrix with one 1 in each row")
    wrong = (matrix == 1).sum(1) != 1
    wrong |= ((matrix != 0) & (matrix != 1)).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputRefused(
            f"{name} has no single 1 among zeros in row {row}; expected one in each row, which names the channel that is updated"
        )
    table: npt.NDArray[np.int64] = matrix.argmax(1).astype(np.int64)
    return table
