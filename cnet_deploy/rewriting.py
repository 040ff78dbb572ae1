"""Programs that compute the same by other means: what a runtime does best is not what the network was made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cnet_deploy.program import DenseLayer, Pointwise, Program


def dense_pointwise(program: Program) -> Program:
    """Every grouped 1x1 as a dense one with zeros: no gather before it, no shuffle after it, G times its multiply-adds at C = G.

    A gather stays where groups apply different norms to one channel, which no converted network does.
    """
    body = tuple(
        replace(layer, pointwise=_dense(layer.pointwise)) if isinstance(layer, DenseLayer)
        else layer if layer.pointwise is None else replace(layer, pointwise=_dense(layer.pointwise))
        for layer in program.body
    )  # fmt: skip
    return replace(program, body=body)


def _dense(layer: Pointwise) -> Pointwise:
    rows, width = len(layer.weight), layer.index.size
    inputs, outputs = width // layer.groups, rows // layer.groups
    wide = np.zeros((rows, width), np.float32)
    for g in range(layer.groups):
        wide[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] = layer.weight[g * outputs : (g + 1) * outputs]
    wide, bias, order = wide[layer.order], layer.bias[layer.order], np.arange(rows)
    scale, shift = np.zeros(layer.in_channels, np.float32), np.zeros(layer.in_channels, np.float32)
    scale[layer.index], shift[layer.index] = layer.scale, layer.shift
    if not (np.array_equal(scale[layer.index], layer.scale) and np.array_equal(shift[layer.index], layer.shift)):
        return replace(layer, weight=wide, bias=bias, groups=1, order=order)
    weight = np.zeros((rows, layer.in_channels), np.float32)
    for position, channel in enumerate(layer.index):
        weight[:, channel] += wide[:, position]
    index = np.arange(layer.in_channels)
    return replace(layer, index=index, scale=scale, shift=shift, weight=weight, bias=bias, groups=1, order=order)
