"""``python -m cnet_deploy`` is ``cnet-deploy``."""

import os  # Python has imported both before it came here
import sys


def _search_the_current_folder_last() -> None:
    """``python -m`` looks for every module in the current folder first, where a stranger's ``json.py`` may lie.

    If this package itself lies there it stays, as the last: what else it needs may be there too.
    """
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:
        here = ""
    if sys.path and sys.path[0] in ("", here):
        del sys.path[0]
        if here == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):  # noqa: PTH100, PTH120
            sys.path.append(here)


if __name__ == "__main__":
    _search_the_current_folder_last()
    from cnet_deploy.cli import main

    main(prog_name="cnet-deploy")
