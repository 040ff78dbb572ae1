"""Model -> Program. Everything after this step works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture, DenseLayerShape, PointwiseShape
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.program import Activation, DenseLayer, Excite, Head, Hidden, Pointwise, Pool, Program, Stem, Transition, Update

Doubles = npt.NDArray[np.float64]


def lower(model: DenselyConnected) -> Program:
    """The Program of a model in group-conv form (or of a plain DenseNet).

    A batch norm after a convolution becomes gain / sqrt(variance + eps) times its weights, and shift - mean * that as its bias (Ioffe and
    Szegedy, 2015, algorithm 2), in double precision, rounded once. Raises InputRefused for a model in training form: convert it first.
    """
    if model.form != "group-conv":
        raise InputRefused("lower() needs a model in group-conv form; got the training form: call convert(model) first")
    arch = model.architecture
    state = model.state_dict()
    body: list[DenseLayer | Transition] = []
    for layer in arch.layers():
        if isinstance(layer, DenseLayerShape):
            norm = _norm(model, f"{layer.name}.conv_2.norm")
            weight = _array(state[f"{layer.name}.conv_2.conv.weight"])
            swish = arch.hard_swish_from is not None and layer.block >= arch.hard_swish_from
            activation: Activation = "hard_swish" if swish else "relu"
            pointwise = _pointwise(model, arch, layer.pointwise, norm, activation)
            excite = _excite(state, f"{layer.name}.se") if layer.excited else None
            update = None if layer.update is None else _update(model, arch, layer.update, activation)
            body.append(DenseLayer(layer.name, pointwise, weight, arch.group_3x3, excite, update))
        else:
            conv = layer.pointwise
            body.append(Transition(layer.name, None if conv is None else _pointwise(model, arch, conv, None)))
    scale, shift = _norm(model, "features.norm_last")
    window = arch.pool_window if arch.final_pool == "original" else None
    classifier = "classifier.linear" if arch.condenses_classifier else "classifier"
    features = arch.hidden_channels or arch.features
    index = _array(state["classifier.index"], np.int64) if arch.condenses_classifier else _frozen(np.arange(features))
    return Program(
        arch,
        Stem("features.init_conv", _array(state["features.init_conv.weight"]), arch.stem_stride),
        tuple(body),
        Pool("features.norm_last", _rounded(scale), _rounded(shift), window),
        Head(
            "classifier",
            features,
            index,
            _array(state[f"{classifier}.weight"]),
            _array(state[f"{classifier}.bias"]),
        ),
        model.preprocessing,
        model.source.digest if model.source else "",
        model.class_names,
        _hidden(state) if arch.updates else None,
    )


def _pointwise(
    model: DenselyConnected,
    arch: Architecture,
    conv: PointwiseShape,
    following: tuple[Doubles, Doubles] | None,
    activation: Activation = "relu",
) -> Pointwise:
    """A 1x1 with the batch norm that follows it (scale, shift) folded in."""
    state, groups, out = model.state_dict(), arch.group_1x1, conv.out_channels
    if arch.learned:
        index = _array(state[f"{conv.name}.index"], np.int64)
        # Channel k of group i is shuffled to k * groups + i.
        order = np.arange(out).reshape(groups, -1).T.reshape(-1)
    else:
        index, order = np.arange(conv.in_channels), np.arange(out)
    weight = _array(state[f"{conv.name}.conv.weight"])[:, :, 0, 0].astype(np.float64)
    bias = np.zeros(out)
    if following is not None:
        scale, shift = np.empty(out), np.empty(out)
        scale[order], shift[order] = following
        weight, bias = weight * scale[:, None], shift
    first_scale, first_shift = map(_rounded, _norm(model, f"{conv.name}.norm"))
    return Pointwise(
        conv.name,
        conv.in_channels,
        _frozen(index),
        first_scale,
        first_shift,
        _rounded(weight),
        _rounded(bias),
        groups,
        _frozen(order),
        activation,
    )


def _update(model: DenselyConnected, arch: Architecture, conv: PointwiseShape, activation: Activation) -> Update:
    """The 1x1 from a layer's new channels to those before it. Its batch norm stays: what it reads is also appended as it is."""
    state, groups = model.state_dict(), arch.update_groups
    assert groups is not None
    index = np.arange(conv.in_channels).reshape(-1, groups).T.reshape(-1)  # group j reads channels j, j + T, …
    scale, shift = (_rounded(values[index]) for values in _norm(model, f"{conv.name}.norm"))
    weight = _array(state[f"{conv.name}.conv.weight"])[:, :, 0, 0]
    target = _array(state[f"{conv.name}.index"], np.int64)
    return Update(conv.name, conv.out_channels, _frozen(index), scale, shift, _frozen(weight), groups, target, activation)


def _excite(state: Mapping[str, Tensor], name: str) -> Excite:
    return Excite(name, _array(state[f"{name}.fc.0.weight"]), _array(state[f"{name}.fc.2.weight"]))


def _hidden(state: Mapping[str, Tensor]) -> Hidden:
    return Hidden("fc", _excite(state, "features.se_last"), _array(state["fc.weight"]), _array(state["fc.bias"]))


def _norm(model: nn.Module, name: str) -> tuple[Doubles, Doubles]:
    """A batch norm as scale and shift, in double precision."""
    norm = model.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    gain, offset, mean, variance = (_array(t).astype(np.float64) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    scale = gain / np.sqrt(variance + norm.eps)
    return scale, offset - mean * scale


def _array(tensor: Tensor, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return _frozen(tensor.detach().cpu().numpy().astype(dtype))


def _rounded(values: Doubles) -> npt.NDArray[np.float32]:
    return _frozen(values.astype(np.float32))


def _frozen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values
