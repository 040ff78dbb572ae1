"""CondenseNet V2 by its authors, as trained (their repository: model/condensenetv2.py). Its names are ours.

Their training script keeps a moving average of the weights beside them, which their converter takes where there is one
(convert_and_eval.py).
"""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Dialect

DIALECT = Dialect(
    "CondenseNet V2", "github.com/jianghaojun/CondenseNetV2", anchor="features.init_conv.weight", needs=".sfr._mask",
    preferred="state_dict_ema",
)  # fmt: skip
