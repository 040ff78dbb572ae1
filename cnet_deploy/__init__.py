"""From a CondenseNet training checkpoint to a model in production.

    import cnet_deploy as cd

    model = cd.load("checkpoint.pth.tar")
    model = cd.convert(model)
    cd.export(model, "onnx", "model.onnx")
    with cd.open_session("model.onnx") as session:
        for answer in session.classify(["cat.jpg", pixels]):  # paths, images of Pillow, uint8 [height, width, 3]
            print(answer.guesses[0].name)
        logits = session.run(session.preprocessing.read("cat.jpg")[None])

The names below are the public ones, in the order in which a model goes through them. Importing this does not import torch; the first use
of a name does where it needs it.
"""

# Nothing else, not even `__future__` or typing: `python -m cnet_deploy` looks in the current folder first until __main__.py runs.
import importlib as _importlib

from cnet_deploy.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cnet_deploy.artifacts.manifest import Manifest as Manifest
    from cnet_deploy.benchmarks.compare.run import compare as compare
    from cnet_deploy.checkpoints.load import load as load
    from cnet_deploy.checkpoints.save import save as save
    from cnet_deploy.errors import CheckFailed as CheckFailed
    from cnet_deploy.errors import CnetDeployError as CnetDeployError
    from cnet_deploy.errors import Inconclusive as Inconclusive
    from cnet_deploy.errors import InputRefused as InputRefused
    from cnet_deploy.errors import OutputRefused as OutputRefused
    from cnet_deploy.errors import PruningUnfinished as PruningUnfinished
    from cnet_deploy.errors import Unavailable as Unavailable
    from cnet_deploy.images.answers import Answer as Answer
    from cnet_deploy.images.answers import Guess as Guess
    from cnet_deploy.images.preprocessing import Overrides as Overrides
    from cnet_deploy.images.preprocessing import Preprocessing as Preprocessing
    from cnet_deploy.models.architecture import Architecture as Architecture
    from cnet_deploy.models.condensenet import DenselyConnected as DenselyConnected
    from cnet_deploy.models.convert import convert as convert
    from cnet_deploy.program.lower import lower as lower
    from cnet_deploy.program.program import Program as Program
    from cnet_deploy.sessions import open_session as open_session
    from cnet_deploy.sessions.base import Session as Session
    from cnet_deploy.workflows.classify import classify as classify
    from cnet_deploy.workflows.evaluate import Evaluation as Evaluation
    from cnet_deploy.workflows.evaluate import evaluate as evaluate
    from cnet_deploy.workflows.export import Exported as Exported
    from cnet_deploy.workflows.export import export as export
    from cnet_deploy.workflows.inspect import Inspection as Inspection
    from cnet_deploy.workflows.inspect import inspect as inspect
    from cnet_deploy.workflows.verify import Comparison as Comparison
    from cnet_deploy.workflows.verify import verify as verify

# Name -> the module that has it, in the order of the road: from a file to its answers, then types, then errors.
_MODULES = {
    "inspect": "workflows.inspect",
    "load": "checkpoints.load",
    "convert": "models.convert",
    "save": "checkpoints.save",
    "lower": "program.lower",
    "export": "workflows.export",
    "verify": "workflows.verify",
    "open_session": "sessions",
    "classify": "workflows.classify",
    "evaluate": "workflows.evaluate",
    "compare": "benchmarks.compare.run",
    "Session": "sessions.base",
    "Preprocessing": "images.preprocessing",
    "Overrides": "images.preprocessing",
    "Answer": "images.answers",
    "Guess": "images.answers",
    "Architecture": "models.architecture",
    "DenselyConnected": "models.condensenet",
    "Program": "program.program",
    "Manifest": "artifacts.manifest",
    "Exported": "workflows.export",
    "Comparison": "workflows.verify",
    "Evaluation": "workflows.evaluate",
    "Inspection": "workflows.inspect",
    "CnetDeployError": "errors",
    "InputRefused": "errors",
    "PruningUnfinished": "errors",
    "OutputRefused": "errors",
    "CheckFailed": "errors",
    "Inconclusive": "errors",
    "Unavailable": "errors",
}

__all__ = [
    "__version__",
    "inspect",
    "load",
    "convert",
    "save",
    "lower",
    "export",
    "verify",
    "open_session",
    "classify",
    "evaluate",
    "compare",
    "Session",
    "Preprocessing",
    "Overrides",
    "Answer",
    "Guess",
    "Architecture",
    "DenselyConnected",
    "Program",
    "Manifest",
    "Exported",
    "Comparison",
    "Evaluation",
    "Inspection",
    "CnetDeployError",
    "InputRefused",
    "PruningUnfinished",
    "OutputRefused",
    "CheckFailed",
    "Inconclusive",
    "Unavailable",
]


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
