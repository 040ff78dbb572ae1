"""The authors' code, converted for tests (reference: models/condensenet_converted.py). Its names are ours."""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Dialect

DIALECT = Dialect("original, converted", "github.com/ShichenLiu/CondenseNet", anchor="features.init_conv.weight", needs=".conv_1.index")
