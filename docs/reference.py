"""Builds the API reference: ``python docs/reference.py FOLDER``. Whatever pdoc warns of is an error.

First come the public names in the order in which a model goes through them, with the guides of docs/ beside them; the modules inside are
folded. Open FOLDER/index.html.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc
from pdoc.render_helpers import to_html

import cnet_deploy

HERE = Path(__file__).parent
FIRST = ("reading", "evaluating", "deploying", "serving", "preprocessing", "c-api", "native")  # of the guides; then by name
PAGES = sorted(HERE.glob("*.md"), key=lambda page: (FIRST.index(page.stem) if page.stem in FIRST else len(FIRST), page.stem))
GUIDES = {page.stem: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in PAGES}  # name -> title
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: system-ui, sans-serif; line-height: 1.5 }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #ccc; padding: .3rem .6rem; text-align: left }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .6rem }}</style></head>
<body><p><a href="cnet_deploy.html">API</a> · {links}</p>{content}</body></html>
"""


def main(folder: Path) -> None:
    """Every module of the package; what a package exports comes first, its modules after."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Error parsing type annotation .*__init__")  # of a NamedTuple: looked for in another module
    warnings.filterwarnings("ignore", "Error parsing type annotation .*Given")  # Pillow is imported where an image is read
    # Types of JSON objects that are written TypedDict("…", {…}): pdoc looks for the lines of their entries.
    warnings.filterwarnings("ignore", "Cannot determine where .*environment\\._")
    for package in ["cnet_deploy", *(found.name for found in pkgutil.walk_packages(cnet_deploy.__path__, "cnet_deploy.") if found.ispkg)]:
        module = importlib.import_module(package)
        if hasattr(module, "__all__"):  # pdoc would take the modules for private ones
            module.__all__ = [*module.__all__, *(name for _, name, _ in pkgutil.iter_modules(module.__path__) if name != "__main__")]
    pdoc.render.configure(
        docformat="markdown", footer_text=f"cnet-deploy {cnet_deploy.__version__}", template_directory=HERE / "reference_pages"
    )
    pdoc.render.env.globals["guides"] = [(f"{name}.html", title) for name, title in GUIDES.items()]
    pdoc.pdoc("cnet_deploy", output_directory=folder)
    for name, title in GUIDES.items():
        links = " · ".join(f'<a href="{other}.html">{text}</a>' for other, text in GUIDES.items() if other != name)
        content = to_html(linked((HERE / f"{name}.md").read_text(encoding="utf-8")))
        (folder / f"{name}.html").write_text(_PAGE.format(title=title, links=links, content=content), encoding="utf-8")


def linked(page: str) -> str:
    """Links between guides lead to their pages; others, which lead into the repository, become plain text."""
    page = re.sub(r"\]\(([\w-]+)\.md(#[\w-]+)?\)", lambda m: f"]({m[1]}.html{m[2] or ''})" if m[1] in GUIDES else "]()", page)
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:|[\w-]+\.html|#)[^)]*\)", r"\1", page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
