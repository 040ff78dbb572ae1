"""Networks and checkpoints as training leaves them, made without any of the code under test beyond the modules themselves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected, initialise
from cnet_deploy.models.layers import LearnedGroupConv, LearnedUpdate

TINY = Architecture((2, 1, 2), (8, 8, 16), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0)
TINY_LGC = replace(TINY, kind="densenet_lgc", transition_channels=(16, 16))
TINY_DENSENET = replace(TINY, kind="densenet", condense_factor=1, transition_channels=(16, 16))

TINY_V2 = Architecture.v2(
    (2, 1, 2), (8, 8, 16), groups=4, hard_swish_from=2, excitation_from=3, hidden_channels=20, classes=10, stem_stride=1,
    input_size=(32, 32),
)  # fmt: skip


def tiny(groups: int = 4, condense_factor: int = 4, **changes: Any) -> Architecture:
    """A small CIFAR network with the wanted G and C."""
    return replace(TINY, group_1x1=groups, condense_factor=condense_factor, **changes)


# Networks that a lowering must get right: G and C apart, other kinds, a cut classifier, odd sizes.
VARIETIES = [
    TINY,
    replace(TINY, classifier_keep=0.5),
    tiny(4, 2),
    tiny(2, 8),
    tiny(8, 4),
    tiny(1, 4),
    TINY_LGC,
    TINY_DENSENET,
    replace(TINY_DENSENET, group_1x1=1),
    replace(TINY, input_size=(33, 47), stem_stride=2),
    replace(TINY, bottleneck=3, group_3x3=2),
]
# CondenseNet V2: activations and excitation everywhere and nowhere, G and C and T apart, odd sizes, the last pooling's window.
VARIETIES_V2 = [
    TINY_V2,
    replace(TINY_V2, hard_swish_from=1, excitation_from=1),
    replace(TINY_V2, hard_swish_from=4, excitation_from=4),
    replace(TINY_V2, update_groups=2, group_1x1=4, condense_factor=2),
    replace(TINY_V2, update_groups=8, group_1x1=2, condense_factor=8, group_3x3=2, bottleneck=3),
    replace(TINY_V2, update_groups=1, condense_factor=1, group_1x1=1, group_3x3=1),
    replace(TINY_V2, input_size=(33, 47), stem_stride=2, excitation_channels=1),
    replace(TINY_V2, input_size=(48, 40), final_pool="original", image_channels=1),
    Architecture.v2((1, 2), (6, 12), groups=3, hard_swish_from=2, excitation_from=2, hidden_channels=7, classes=3, input_size=(30, 30)),
]


def training_model(arch: Architecture, seed: int = 0, stage: int | None = None) -> DenselyConnected:
    """A network in training form whose pruning came to ``stage`` (None: the last, C-1), channels dropped at random.

    As in the reference, each stage takes in/C channels from each group, and row r belongs to group r mod G. In an update of CondenseNet V2
    it is outputs that are taken, and column k that belongs to group k mod T.
    """
    model = build(arch, "training")
    initialise(model, seed)
    random = np.random.default_rng(seed)
    stage = arch.condense_factor - 1 if stage is None else stage
    for module in model.modules():
        if isinstance(module, LearnedGroupConv):
            updates = isinstance(module, LearnedUpdate)
            groups, factor = (arch.update_groups or 1,) * 2 if updates else (arch.group_1x1, arch.condense_factor)
            mask = module._mask.transpose(0, 1) if updates else module._mask
            channels = mask.shape[1]
            last = max(1, arch.condense_factor - 1)
            reached = (factor - 1) * min(stage, last) // last if arch.condense_factor > 1 else factor - 1
            dropped = reached * channels // factor
            for group in range(groups):
                mask[group::groups, random.permutation(channels)[:dropped]] = 0
            module._stage.fill_(reached)
            module._count.fill_(dropped)
    return model.eval()


def state_dict(model: torch.nn.Module, prefix: str = "module.") -> OrderedDict[str, torch.Tensor]:
    """A copy that a test may change, with DataParallel's prefix."""
    return OrderedDict((prefix + name, value.clone()) for name, value in model.state_dict().items())


def save_checkpoint(path: Path, state: Any, *, legacy: bool = True) -> Path:
    """Write what the reference's ``save_checkpoint`` writes."""
    content = {"epoch": 3, "model": "condensenet", "state_dict": state, "best_prec1": 12.5, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def noise(model: DenselyConnected, batch: int = 2, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random images of the network's input size."""
    return np.random.default_rng(seed).standard_normal((batch, *model.architecture.image_shape), np.float32)


def logits(model: torch.nn.Module, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What torch computes."""
    with torch.inference_mode():
        return model(torch.from_numpy(batch)).numpy()


def write_idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> Path:
    """The idx format: type and number of sides, each side with its highest byte first, the bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    path.write_bytes(header + values.tobytes())
    return path


def ending_in_softmax(path: Path, out: Path) -> Path:
    """An ONNX file whose outputs are the probabilities for the logits of another, with the other's metadata."""
    model = onnx.load(path)
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["probabilities"], axis=1))
    output.name = "probabilities"
    onnx.save(model, out)
    return out
