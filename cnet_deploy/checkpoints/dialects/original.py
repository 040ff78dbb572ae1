"""The authors' code, as trained (reference: models/condensenet.py, densenet.py, densenet_LGC.py). Its names are ours."""

from __future__ import annotations

from cnet_deploy.checkpoints.dialects.base import Dialect

DIALECT = Dialect("original", "github.com/ShichenLiu/CondenseNet", anchor="features.init_conv.weight")
