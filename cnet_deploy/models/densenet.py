"""The reference's two DenseNets, with plain and with learned group convolutions. Their transitions have 1x1 convolutions."""

from __future__ import annotations

from cnet_deploy.models.condensenet import DenselyConnected


class DenseNet(DenselyConnected):
    """DenseNet-BC with group convolutions (reference: models/densenet.py). It has one form: there is nothing to convert."""

    kind = "densenet"


class DenseNetLGC(DenselyConnected):
    """DenseNet with learned group convolutions, in its transitions too (reference: models/densenet_LGC.py)."""

    kind = "densenet_lgc"
