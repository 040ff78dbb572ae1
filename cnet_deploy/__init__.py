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

from cnet_deploy.version import __version__ as __version__

if TYPE_CHECKING:
    from cnet_deploy.benchmarks.compare.run import compare as compare
    from cnet_deploy.checkpoints.load import load as load
    from cnet_deploy.checkpoints.save import save as save
    from cnet_deploy.errors import CnetDeployError as CnetDeployError
    from cnet_deploy.images.preprocessing import Overrides as Overrides
    from cnet_deploy.images.preprocessing import Preprocessing as Preprocessing
    from cnet_deploy.models.architecture import Architecture as Architecture
    from cnet_deploy.models.convert import convert as convert
    from cnet_deploy.program.lower import lower as lower
    from cnet_deploy.sessions import open_session as open_session
    from cnet_deploy.workflows.classify import classify as classify
    from cnet_deploy.workflows.evaluate import evaluate as evaluate
    from cnet_deploy.workflows.export import export as export
    from cnet_deploy.workflows.inspect import inspect as inspect
    from cnet_deploy.workflows.verify import verify as verify

# Name -> the module that has it.
_MODULES = {
    "Architecture": "models.architecture",
    "CnetDeployError": "errors",
    "Overrides": "images.preprocessing",
    "Preprocessing": "images.preprocessing",
    "classify": "workflows.classify",
    "compare": "benchmarks.compare.run",
    "convert": "models.convert",
    "evaluate": "workflows.evaluate",
    "export": "workflows.export",
    "inspect": "workflows.inspect",
    "load": "checkpoints.load",
    "lower": "program.lower",
    "open_session": "sessions",
    "save": "checkpoints.save",
    "verify": "workflows.verify",
}

__all__ = [
    "Architecture",
    "CnetDeployError",
    "Overrides",
    "Preprocessing",
    "__version__",
    "classify",
    "compare",
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
