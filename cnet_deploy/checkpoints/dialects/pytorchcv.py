"""pytorchcv: the converted form under other names (pytorchcv/models/condensenet.py). All its files are of ImageNet, 224 pixels."""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Data, Dialect

_LAYER = r"features\.stage(\d+)\.unit(\d+)\.conv([12])"
_OURS = r"features.denseblock_\1.denselayer_\2.conv_\3"

DIALECT = Dialect(
    "pytorchcv", "github.com/osmr/pytorchcv", anchor="features.init_block.conv.weight", data=Data("imagenet", (224, 224), 1000),
    table=(
        (r"features\.init_block\.conv\.(.+)", r"features.init_conv.\1"),
        (rf"{_LAYER}\.bn\.(.+)", rf"{_OURS}.norm.\4"),
        (rf"{_LAYER}\.(conv\..+|index)", rf"{_OURS}.\4"),
        (r"features\.post_activ\.bn\.(.+)", r"features.norm_last.\1"),
        (r"output\.(.+)", r"classifier.\1"),
    ),
)  # fmt: skip
