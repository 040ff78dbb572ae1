"""Paddle-Image-Models: the converted form of CondenseNet V2 for Paddle, as ``.pdparams`` (ppim/models/cdnv2.py).

Such a file is a plain pickle of numpy arrays, for which Paddle is not needed. Paddle calls a batch norm's statistics otherwise, and keeps
the matrices of linear layers as [inputs, outputs].
"""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Data, Dialect

DIALECT = Dialect(
    "Paddle-Image-Models", "github.com/AgentMaker/Paddle-Image-Models", anchor="features.init_conv.weight", needs=".sfr.norm._variance",
    data=Data("imagenet", (224, 224), 1000),
    table=((r"(.+)\._mean", r"\1.running_mean"), (r"(.+)\._variance", r"\1.running_var")),
    transposed=r"(fc|classifier|.+\.fc\.[02])\.weight",
)  # fmt: skip
