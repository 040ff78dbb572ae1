"""The reference's two DenseNets: plain group convolutions, and learned group convolutions; transitions with convolutions."""

from __future__ import annotations

from cnet_deploy.models.condensenet import DenselyConnected


class DenseNet(DenselyConnected):
    """DenseNet-BC with group convolutions (reference: models/densenet.py). It has one form: there is nothing to convert."""

    kind = "densenet"


class DenseNetLGC(DenselyConnected):
    """DenseNet with learned group convolutions, in its transitions too (reference: models/densenet_LGC.py)."""

    kind = "densenet_lgc"
