"""From a CondenseNet training checkpoint to a model in production.

    import cnet_deploy as cd

    model = cd.load("checkpoint.pth.tar")
    model = cd.convert(model)
    cd.export(model, "onnx", "model.onnx")
    with cd.open_session("model.onnx") as session:
        logits = session.run(batch)

Importing this does not import torch; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cnet_deploy.architecture import Architecture as Architecture
    from cnet_deploy.checkpoint import load as load
    from cnet_deploy.checkpoint import save as save
    from cnet_deploy.classification import classify as classify
    from cnet_deploy.conversion import convert as convert
    from cnet_deploy.deployment import export as export
    from cnet_deploy.errors import CnetDeployError as CnetDeployError
    from cnet_deploy.evaluation import evaluate as evaluate
    from cnet_deploy.inspection import inspect as inspect
    from cnet_deploy.lowering import lower as lower
    from cnet_deploy.sessions import open_session as open_session
    from cnet_deploy.verification import verify as verify

_HOMES = {
    "Architecture": "architecture",
    "CnetDeployError": "errors",
    "classify": "classification",
    "convert": "conversion",
    "evaluate": "evaluation",
    "export": "deployment",
    "inspect": "inspection",
    "load": "checkpoint",
    "lower": "lowering",
    "open_session": "sessions",
    "save": "checkpoint",
    "verify": "verification",
}

__all__ = [
    "Architecture",
    "CnetDeployError",
    "__version__",
    "classify",
    "convert",
    "evaluate",
    "export",
    "inspect",
    "load",
    "lower",
    "open_session",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
