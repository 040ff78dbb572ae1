"""Recognise the Architecture of a state dict from its tensors' names, shapes, masks and indices. Files record nothing else.

Works on mappings whose values have a ``shape`` and can become numpy arrays (torch tensors on the CPU, numpy arrays).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from cnet_deploy.checkpoints.metadata import METADATA_KEY, OwnMetadata
from cnet_deploy.checkpoints.tensors import Contents
from cnet_deploy.errors import InputRefused, PruningUnfinished, printable
from cnet_deploy.images.preprocessing import CHANNELS
from cnet_deploy.models.architecture import Architecture, DenseLayerShape, FinalPool, Form, Kind
from cnet_deploy.models.pruning import LayerPruning, infer_condense_factor, infer_groups, read_layer, read_update

Tensors = Mapping[str, Any]

_LAYER = re.compile(r"features\.denseblock_(\d{1,4})\.denselayer_(\d{1,4})\.conv_1\.norm\.weight")
_FAMILY = "a CondenseNet, CondenseNet V2 or DenseNet of the references (features.init_conv, features.denseblock_1 …, classifier)"


def infer_form(tensors: Tensors) -> Form:
    """Training form (has masks), or group-conv form (has indices). A plain DenseNet has nothing to convert and counts as group-conv."""
    return "training" if any(key.endswith("._mask") for key in tensors) else "group-conv"


def infer_stages(tensors: Tensors) -> tuple[int, ...]:
    """Dense layers per block. Raises InputRefused for a network that is not of the family, or with gaps in its numbering."""
    counts: Counter[int] = Counter()
    last: dict[int, int] = {}
    for key in tensors:
        if match := _LAYER.fullmatch(key):
            block, layer = int(match[1]), int(match[2])
            counts[block] += 1
            last[block] = max(layer, last.get(block, 0))
    if not counts or "features.init_conv.weight" not in tensors:
        names = ", ".join(printable(repr(name), 60) for name in sorted(tensors)[:3]) or "no tensor at all"
        raise InputRefused(f"another network: expected {_FAMILY}; found {names} …")
    for number, block in enumerate(sorted(counts), 1):
        if block != number or last[block] != counts[block]:
            what = f"{counts[block]} layers, numbered up to {last[block]}" if block == number else f"no block {number} before it"
            raise InputRefused(
                f"tensors are missing: dense block {block} has {what} (counting conv_1.norm.weight); expected a whole state dict"
            )
    return tuple(counts[block] for block in sorted(counts))


def pruning_layers(tensors: Tensors) -> list[LayerPruning]:
    """The pruning state of every learned group convolution, in the order in which they run."""
    stages = infer_stages(tensors)
    names = []
    for block, count in enumerate(stages, 1):
        names += [f"features.denseblock_{block}.denselayer_{layer}.conv_1" for layer in range(1, count + 1)]
        names.append(f"features.transition_{block}.conv")
    return [read_layer(name, tensors) for name in names if f"{name}._mask" in tensors]


def updates(tensors: Tensors) -> list[LayerPruning]:
    """The pruning state of every update of CondenseNet V2 that has a mask, in the order in which they run."""
    names = [f"features.denseblock_{b}.denselayer_{n + 1}.sfr" for b, count in enumerate(infer_stages(tensors), 1) for n in range(count)]
    return [read_update(name, tensors) for name in names if f"{name}._mask" in tensors]


def infer_architecture(
    tensors: Tensors,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    final_pool: FinalPool | None = None,
    hs_from: int | None = None,
    pruning: list[LayerPruning] | None = None,
) -> Architecture:
    """The Architecture of a state dict of the family (any form), checked against every tensor's shape.

    ``groups`` and ``condense_factor`` are needed if pruning has not begun or the counters are missing; they must agree with the tensors.
    ``input_size`` (height, width) and ``stem_stride`` override what stages and classes suggest; no tensor tells ``final_pool`` (None:
    "whole") and ``hs_from``, the block of CondenseNet V2 from which activations are hard swish (None: 3 of five blocks, as in all published
    ones). ``pruning`` is what ``pruning_layers`` returns for the tensors, if that is known already. Raises InputRefused for another
    network, missing or extra tensors, wrong shapes, and if something can't be inferred.
    """
    stages = infer_stages(tensors)
    blocks = range(1, len(stages) + 1)
    kind, form = _infer_kind(tensors, stages), infer_form(tensors)
    first = "features.denseblock_1.denselayer_1"
    growth = tuple(_dim(tensors, f"features.denseblock_{b}.denselayer_1.conv_2.conv.weight", 0) for b in blocks)
    middle = _dim(tensors, f"{first}.conv_1.conv.weight", 0)
    group_inputs = _dim(tensors, f"{first}.conv_2.conv.weight", 1)
    inputs = [_dim(tensors, f"features.denseblock_{b}.denselayer_1.conv_2.conv.weight", 1) for b in blocks]
    if group_inputs == 1 and middle > 1 and (growth[0] % middle or max(inputs) == 1):
        raise InputRefused(
            f"{first}.conv_2 is depthwise (one input per group): a depthwise variant of CondenseNet; expected grouped 3x3 "
            "convolutions of several inputs per group, as in the paper"
        )
    if middle % growth[0] or middle % group_inputs:
        raise InputRefused(
            f"{first}: {middle} channels between its convolutions; expected a multiple of growth {growth[0]} and of {group_inputs}"
        )
    if form == "training":
        group_1x1, factor = _trained_groups(pruning_layers(tensors) if pruning is None else pruning, groups, condense_factor)
    else:
        group_1x1, factor = _converted_groups(tensors, first, kind)
        for what, given, inferred in (("groups", groups, group_1x1), ("condense factor", condense_factor, factor)):
            if given not in (None, inferred):
                raise InputRefused(f"{what} {given} was given, but the tensors have {inferred}; leave it out")
    classes = _dim(tensors, "classifier.linear.weight" if "classifier.index" in tensors else "classifier.weight", 0)
    size, stride = _infer_input(stages, classes, input_size, stem_stride)
    v2 = _infer_v2(tensors, stages, growth, form, hs_from, group_1x1) if kind == "condensenet_v2" else {}
    if hs_from is not None and not v2:
        raise InputRefused(f"hard swish from block {hs_from} was given, but a {kind} has ReLU everywhere; leave --hs-from out")
    arch = Architecture(
        stages, growth, kind, middle // growth[0], group_1x1, middle // group_inputs, factor, classes, stride, size,
        classifier_keep=1.0,
        transition_channels=tuple(_dim(tensors, f"features.transition_{b}.conv.conv.weight", 0) for b in blocks[:-1])
        if kind in ("densenet", "densenet_lgc") else (),
        final_pool=final_pool or "whole", image_channels=_image_channels(tensors), **v2,
    )  # fmt: skip
    if "classifier.index" in tensors:
        arch = _with_keep(arch, _dim(tensors, "classifier.index", 0))
    check_tensors(tensors, arch, form)
    return arch


def expected_shapes(arch: Architecture, form: Form) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a state dict in this form, except for the optional counters of batch norms and pruning."""
    shapes: dict[str, tuple[int, ...]] = {"features.init_conv.weight": (arch.stem_channels, arch.image_channels, 3, 3)}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    for layer in arch.layers():
        if conv := layer.pointwise:
            masked = form == "training" and arch.learned
            width = conv.in_channels if masked else arch.gathered(conv)
            norm(f"{conv.name}.norm", width)
            shapes[f"{conv.name}.conv.weight"] = (conv.out_channels, width // (1 if masked else arch.group_1x1), 1, 1)
            if masked:
                shapes[f"{conv.name}._mask"] = shapes[f"{conv.name}.conv.weight"]
            elif arch.learned:
                shapes[f"{conv.name}.index"] = (width,)
        if isinstance(layer, DenseLayerShape):
            middle = layer.pointwise.out_channels
            norm(f"{layer.name}.conv_2.norm", middle)
            shapes[f"{layer.name}.conv_2.conv.weight"] = (layer.growth, middle // arch.group_3x3, 3, 3)
            if update := layer.update:
                groups = 1 if form == "training" else arch.update_groups or 1
                norm(f"{update.name}.norm", layer.growth)
                shapes[f"{update.name}.conv.weight"] = (update.out_channels, layer.growth // groups, 1, 1)
                if form == "training":
                    shapes[f"{update.name}._mask"] = shapes[f"{update.name}.conv.weight"]
                else:
                    shapes[f"{update.name}.index"] = (update.out_channels,)
            if layer.excited:
                shapes.update({f"{layer.name}.se.fc.{n}.weight": (layer.growth, layer.growth) for n in (0, 2)})
    norm("features.norm_last", arch.features)
    inputs = arch.kept_features if form == "group-conv" else arch.features
    if arch.excitation_channels is not None and arch.hidden_channels is not None:
        shapes["features.se_last.fc.0.weight"] = (arch.excitation_channels, arch.features)
        shapes["features.se_last.fc.2.weight"] = (arch.features, arch.excitation_channels)
        shapes["fc.weight"], shapes["fc.bias"] = (arch.hidden_channels, arch.features), (arch.hidden_channels,)
        inputs = arch.hidden_channels
    prefix = "classifier"
    if form == "group-conv" and arch.condenses_classifier:
        shapes["classifier.index"] = (arch.kept_features,)
        prefix = "classifier.linear"
    shapes[f"{prefix}.weight"] = (arch.classes, inputs)
    shapes[f"{prefix}.bias"] = (arch.classes,)
    return shapes


def check_tensors(tensors: Tensors, arch: Architecture, form: Form) -> None:
    """Raise InputRefused for missing or extra tensors, wrong shapes, bad or repeated indices, and weights that are not finite."""
    expected = expected_shapes(arch, form)
    optional = {f"{name.rpartition('.')[0]}.num_batches_tracked" for name in expected if name.endswith(".running_mean")}
    optional |= {f"{name.rpartition('.')[0]}.{counter}" for name in expected if name.endswith("._mask") for counter in ("_stage", "_count")}
    if missing := [name for name in expected if name not in tensors]:
        raise InputRefused(f"tensors are missing: {_some(missing)}; expected a whole state dict: save model.state_dict() again")
    if extra := sorted(set(tensors) - set(expected) - optional):
        raise InputRefused(f"a {arch.kind} in {form} form has no tensors {_some(extra)}; expected its state dict alone")
    for name in optional.intersection(tensors):
        if math.prod(tensors[name].shape) != 1:
            raise InputRefused(f"{name} has shape {tuple(tensors[name].shape)}; expected one number")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise InputRefused(f"{name} has shape {tuple(tensors[name].shape)}; expected {shape}")
        values = np.asarray(tensors[name])
        if values.dtype.kind != "f" and not name.endswith((".index", "._mask")):
            raise InputRefused(f"{name} holds {values.dtype}; expected floating-point weights, not quantised ones")
        if not np.isfinite(values).all():
            raise InputRefused(f"{name} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite; expected finite weights")
        if name.endswith("running_var") and (values < 0).any():
            raise InputRefused(f"{name} holds negative variances; expected none")
    if form == "group-conv" and arch.learned:
        for conv in arch.pointwise_convs():
            _check_index(tensors, f"{conv.name}.index", conv.in_channels, arch.group_1x1)
        for conv in arch.updating_convs():
            _check_index(tensors, f"{conv.name}.index", conv.out_channels, arch.update_groups or 1)
        if arch.condenses_classifier:
            _check_index(tensors, "classifier.index", arch.features, 1)


def _check_index(tensors: Tensors, name: str, channels: int, groups: int) -> None:
    index = np.asarray(tensors[name])
    if index.dtype.kind not in "iu":
        raise InputRefused(f"{name} holds {index.dtype} values; expected whole numbers")
    if index.min() < 0 or index.max() >= channels:
        raise InputRefused(f"{name} points at channel {index.min() if index.min() < 0 else index.max()}; expected 0 to {channels - 1}")
    rows = np.sort(index.reshape(groups, -1), axis=1)
    if (rows[:, 1:] == rows[:, :-1]).any():
        raise InputRefused(
            f"{name} names a channel twice within a group; expected each once (was it converted before pruning had finished?)"
        )


def _kind_of(tensors: Tensors) -> Kind:
    return _infer_kind(tensors, infer_stages(tensors))


def _infer_kind(tensors: Tensors, stages: Sequence[int]) -> Kind:
    learned = any(key.endswith(("conv_1._mask", "conv_1.index")) for key in tensors)
    if foreign := next((key for key in tensors if ".sfr." in key or key.startswith(("features.se_last.", "fc."))), None):
        return _require_v2(tensors, foreign)
    if any(key.startswith("features.transition_") for key in tensors):
        return "densenet_lgc" if learned else "densenet"
    if not learned and len(stages) > 1:
        raise InputRefused(
            "it has neither masks (…conv_1._mask) nor indices (…conv_1.index): a CondenseNet's buffers were dropped when it was saved"
        )
    return "condensenet" if learned else "densenet"


def _require_v2(tensors: Tensors, foreign: str) -> Kind:
    """Refuse a mixture of CondenseNet V2, some of whose tensors are there, with another network."""
    stages = infer_stages(tensors)
    layers = [f"features.denseblock_{b}.denselayer_{n + 1}" for b, count in enumerate(stages, 1) for n in range(count)]
    if not any(".sfr." in key for key in tensors):
        raise InputRefused(
            f"has {printable(foreign, 120)}, as CondenseNet V2 has, but none of its updates (…sfr); "
            "expected the whole state dict of one network"
        )
    if without := [name for name in layers if f"{name}.sfr.norm.weight" not in tensors]:
        raise InputRefused(
            f"has {printable(foreign, 120)}, as CondenseNet V2 has, but misses {_some(f'{name}.sfr.norm.weight' for name in without)}; "
            "expected the whole state dict of one network"
        )
    if other := next((key for key in tensors if key.startswith("features.transition_") or key == "classifier.index"), None):
        raise InputRefused(
            f"has {printable(foreign, 120)}, as CondenseNet V2 has, and {printable(other, 120)}, which it has not; "
            "expected the whole state dict of one network"
        )
    return "condensenet_v2"


def _infer_v2(
    tensors: Tensors, stages: Sequence[int], growth: Sequence[int], form: Form, hs_from: int | None, group_1x1: int
) -> dict[str, Any]:
    """The fields of an Architecture that CondenseNet V2 alone has."""
    first = "features.denseblock_1.denselayer_1.sfr"
    # By any of its layers: check_tensors then names those that miss it.
    excited = [any(key.startswith(f"features.denseblock_{b}.") and ".se.fc." in key for key in tensors) for b in range(1, len(stages) + 1)]
    excitation_from = excited.index(True) + 1 if any(excited) else len(stages) + 1
    if not all(excited[excitation_from - 1 :]):
        missing = excited.index(False, excitation_from - 1) + 1
        raise InputRefused(
            f"dense block {excitation_from} has excitation (…se.fc), but block {missing} after it has none; expected it in every layer "
            "from some block on, as in CondenseNet V2"
        )
    if form == "training":
        layers = updates(tensors)
        factor = infer_condense_factor(layers)
        groups = infer_groups(layers) or factor or group_1x1
        if factor is not None and factor != groups:
            raise InputRefused(
                f"its updates (…sfr) are in {groups} groups, but each loses outputs until 1/{factor} are left; expected the two to be "
                "equal: the authors' code can't convert such a network either, or its maps get another width"
            )
    else:
        inputs, rows = _dim(tensors, f"{first}.conv.weight", 1), _dim(tensors, f"{first}.conv.weight", 0)
        channels = _dim(tensors, "features.init_conv.weight", 0)
        if growth[0] % inputs:
            raise InputRefused(f"{first}.conv reads {inputs} of {growth[0]} channels per group; expected a part of them")
        groups = growth[0] // inputs
        if rows != channels:
            raise InputRefused(
                f"{first}.conv has {rows} outputs in {groups} groups, for {channels} channels; expected as many outputs as channels, which "
                "is so where groups and condense factor of the updates are equal (--group-trans and --trans-factor in the authors' code)"
            )
    if hs_from is None:
        if len(stages) != 5:
            raise InputRefused(
                f"no tensor tells from which of the {len(stages)} dense blocks on activations are hard swish (3 in the published networks, "
                f"which have 5); give --hs-from BLOCK, from 1 to {len(stages)}, or {len(stages) + 1} for ReLU everywhere"
            )
        hs_from = 3
    return {
        "update_groups": groups, "hard_swish_from": hs_from, "excitation_from": excitation_from,
        "excitation_channels": _dim(tensors, "features.se_last.fc.0.weight", 0), "hidden_channels": _dim(tensors, "fc.weight", 0),
    }  # fmt: skip


def _trained_groups(layers: Sequence[LayerPruning], groups: int | None, factor: int | None) -> tuple[int, int]:
    if not layers:
        raise InputRefused("it has masks, but none of a 1x1 convolution (…conv_1._mask); expected a whole state dict")
    mask_groups, counter_factor = infer_groups(layers), infer_condense_factor(layers)
    if factor and counter_factor and factor != counter_factor:
        raise InputRefused(f"condense factor {factor} was given, but the checkpoint's counters have {counter_factor}; leave it out")
    if groups and (wrong := next((layer.name for layer in layers if not layer.groups_agree(groups)), None)):
        raise InputRefused(f"groups {groups} was given, but the mask of {wrong} does not repeat every {groups} rows")
    if groups and factor:
        return groups, factor
    uncounted = next((layer for layer in layers if layer.uncounted), None)
    if uncounted or not counter_factor:
        layer = uncounted or layers[0]
        raise PruningUnfinished(
            f"pruning has not begun or its counters are missing, so groups and condense factor can't be inferred ({layer.name}: "
            f"{layer.describe(None)}); if it has finished give both --groups and --condense-factor, else train on"
        )
    if not (groups or mask_groups):
        raise InputRefused(
            "the masks' rows do not repeat, so the groups can't be inferred: the file is damaged, or every output is a group "
            "of its own (then give --groups)"
        )
    return groups or mask_groups or 0, counter_factor


def _converted_groups(tensors: Tensors, first: str, kind: Kind) -> tuple[int, int]:
    """G and C of a network without masks: its 1x1 reads in_channels * G / C channels, the same number in each group."""
    channels = _dim(tensors, "features.init_conv.weight", 0)
    width = channels if kind == "densenet" else _dim(tensors, f"{first}.conv_1.index", 0)
    per_group = _dim(tensors, f"{first}.conv_1.conv.weight", 1)
    if width % per_group or channels % per_group:
        raise InputRefused(
            f"{first}.conv_1 reads {width} of {channels} channels, {per_group} per group; expected whole groups and a whole condense factor"
        )
    return width // per_group, 1 if kind == "densenet" else channels // per_group


def _infer_input(stages: Sequence[int], classes: int, size: tuple[int, int] | None, stride: int | None) -> tuple[tuple[int, int], int]:
    imagenet = [text for text, holds in (("5 stages", len(stages) == 5), ("1000 classes", classes == 1000)) if holds]
    cifar = [text for text, holds in (("3 stages", len(stages) == 3), (f"{classes} classes", classes in (10, 100))) if holds]
    guess = None
    if imagenet and not cifar:
        guess = ((224, 224), 2)
    elif len(cifar) == 2 and not imagenet:
        guess = ((32, 32), 1)
    if guess is None and not (size and stride):
        signs = [f"{' and '.join(texts)} point to {name}" for texts, name in ((imagenet, "ImageNet"), (cifar, "CIFAR")) if texts]
        missing = " and ".join(flag for flag, given in (("--input-size", size), ("--stem-stride", stride)) if not given)
        raise InputRefused(
            f"input size and stem stride can't be inferred from {len(stages)} stages and {classes} classes "
            f"({'; '.join(signs) or 'neither ImageNet nor CIFAR has these'}); give {missing}"
        )
    fallback = guess or ((0, 0), 0)
    return size or fallback[0], stride or fallback[1]


def _image_channels(tensors: Tensors) -> Literal[1, 3, 4]:
    channels = _dim(tensors, "features.init_conv.weight", 1)
    if channels not in CHANNELS:
        known = ", ".join(f"{count} ({name})" for count, name in CHANNELS.items())
        raise InputRefused(f"features.init_conv reads images of {channels} channels; expected one of {known}")
    return cast(Literal[1, 3, 4], channels)


def _with_keep(arch: Architecture, kept: int) -> Architecture:
    if not 0 < kept <= arch.features:
        raise InputRefused(f"classifier.index has {kept} entries; expected 1 to {arch.features}")
    halved = int(arch.features * 0.5) == kept
    return replace(arch, classifier_keep=0.5 if halved else kept / arch.features)


def _dim(tensors: Tensors, name: str, axis: int) -> int:
    if name not in tensors:
        raise InputRefused(f"tensors are missing: {name}; expected a whole state dict")
    shape = tuple(tensors[name].shape)
    if axis >= len(shape) or shape[axis] < 1:
        raise InputRefused(f"{name} has shape {shape}; expected a positive size in dimension {axis}")
    return int(shape[axis])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(printable(name, 120) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def architecture_of(
    read: Contents,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    final_pool: FinalPool | None = None,
    hs_from: int | None = None,
    pruning: list[LayerPruning] | None = None,
    like: Architecture | None = None,
) -> Architecture:
    """The Architecture of a file's tensors, checked against each: from this package's metadata if the file has it, else inferred.

    ``like`` is the Architecture of an artifact made of the file: how it reads images and pools counts more than the file's metadata, since
    an export may change it; its hard swish counts where the metadata has none, since another one is another network. Parameters come first.
    Raises InputRefused as ``infer_architecture`` does, and for metadata that disagrees with the tensors.
    """
    own: OwnMetadata | None = read.metadata.get(METADATA_KEY)
    stored = own.architecture if own else None
    if own and own.form != infer_form(read.tensors):
        raise InputRefused(
            f"the metadata has {own.form} form, but the tensors are in {infer_form(read.tensors)} form; convert the checkpoint again"
        )
    if known := like or stored:
        input_size, stem_stride = input_size or known.input_size, stem_stride or known.stem_stride
        final_pool = final_pool or known.final_pool
    if (known := stored or like) and known.kind == _kind_of(read.tensors):
        hs_from = hs_from or known.hard_swish_from
    if stored and infer_form(read.tensors) == "training":
        groups, condense_factor = groups or stored.group_1x1, condense_factor or stored.condense_factor
    arch = infer_architecture(
        read.tensors, groups=groups, condense_factor=condense_factor, input_size=input_size, stem_stride=stem_stride,
        final_pool=final_pool, hs_from=hs_from, pruning=pruning,
    )  # fmt: skip
    may_differ = {name: getattr(arch, name) for name in ("input_size", "stem_stride", "classifier_keep", "final_pool", "hard_swish_from")}
    if stored and replace(stored, **may_differ) != arch:
        raise InputRefused(
            f"the metadata describes {stored.summary()}, but the tensors are those of {arch.summary()}; convert the checkpoint again"
        )
    return arch
