"""The numpy yardstick's own convolution, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from cnet_deploy.program.program import convolve


@pytest.mark.parametrize(("groups", "stride", "size"), [(1, 1, (5, 6)), (2, 1, (4, 4)), (1, 2, (7, 4)), (2, 2, (1, 3))])
def test_convolve_by_the_definition(groups: int, stride: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 4, *size)), random.standard_normal((6, 4 // groups, 3, 3))
    found = convolve(x, weight, stride, groups)
    height, width = ((side - 1) // stride + 1 for side in size)
    assert found.shape == (2, 6, height, width)
    for n, out, row, column in np.ndindex(found.shape):
        total = 0.0
        first = out // (6 // groups) * (4 // groups)
        for channel, i, j in np.ndindex(4 // groups, 3, 3):
            y, z = row * stride + i - 1, column * stride + j - 1
            if 0 <= y < size[0] and 0 <= z < size[1]:
                total += x[n, first + channel, y, z] * weight[out, channel, i, j]
        assert found[n, out, row, column] == pytest.approx(total)
