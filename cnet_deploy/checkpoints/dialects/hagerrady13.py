"""hagerrady13/CondenseNet-PyTorch: the training form of three dense blocks for CIFAR-10 (graphs/models/condensenet.py, denseblock.py).

Its images are prepared with the original's mean and deviation (datasets/cifar10.py).
"""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Data, Dialect

_BLOCKS = {"one": 1, "two": 2, "three": 3}

DIALECT = Dialect(
    "hagerrady13", "github.com/hagerrady13/CondenseNet-PyTorch", anchor="denseblock_one.dense_layer_1.conv_1.conv.weight",
    data=Data("cifar10", (32, 32), 10),
    table=(
        (r"init_conv\.(.+)", r"features.init_conv.\1"),
        *(
            row
            for word, number in _BLOCKS.items()
            for layer, ours in [(rf"denseblock_{word}\.dense_layer_(\d+)", rf"features.denseblock_{number}.denselayer_\1")]
            for row in (
                (rf"{layer}\.conv_1\.batch_norm\.(.+)", rf"{ours}.conv_1.norm.\2"),
                (rf"{layer}\.conv_1\.(.+)", rf"{ours}.conv_1.\2"),
                (rf"{layer}\.batch_norm\.(.+)", rf"{ours}.conv_2.norm.\2"),
                (rf"{layer}\.conv_2\.(.+)", rf"{ours}.conv_2.conv.\2"),
            )
        ),
        (r"batch_norm\.(.+)", r"features.norm_last.\1"),
    ),
)  # fmt: skip
