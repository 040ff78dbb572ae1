"""Builds the API reference from the docstrings: ``python docs/reference.py FOLDER``. Whatever pdoc warns of is an error."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import cnet_deploy


def main(folder: Path) -> None:
    """Every module of the package; what a package exports comes first, its modules after."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Error parsing type annotation .*__init__")  # of a NamedTuple: looked for in another module
    # Types of JSON objects that are written TypedDict("…", {…}): pdoc looks for the lines of their entries.
    warnings.filterwarnings("ignore", "Cannot determine where .*environment\\._")
    for package in ["cnet_deploy", *(found.name for found in pkgutil.walk_packages(cnet_deploy.__path__, "cnet_deploy.") if found.ispkg)]:
        module = importlib.import_module(package)
        if hasattr(module, "__all__"):  # pdoc would take the modules for private ones
            module.__all__ = [*module.__all__, *(name for _, name, _ in pkgutil.iter_modules(module.__path__) if name != "__main__")]
    pdoc.render.configure(docformat="markdown", footer_text=f"cnet-deploy {cnet_deploy.__version__}")
    pdoc.pdoc("cnet_deploy", output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
