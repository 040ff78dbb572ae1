"""CondenseNet V2 by its authors, converted for tests (their repository: model/converted_condensenetv2.py). Its names are ours."""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Dialect

DIALECT = Dialect(
    "CondenseNet V2, converted", "github.com/jianghaojun/CondenseNetV2", anchor="features.init_conv.weight", needs=".sfr.index"
)
