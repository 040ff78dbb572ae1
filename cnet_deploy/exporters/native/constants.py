"""Numbers that the exporter and the kernels must agree on: cpp/constants.h has the same names and values, and explains them.

Every plan.cpp asserts that they are equal, so that a change on one side alone stops the build.
"""

from __future__ import annotations

WIDE_TILES, WIDE_TILES_PAIRED = (8, 4, 2, 1), (8, 4, 2)
NARROW_TILES, ROW_TILES, LINEAR_TILES = (32, 16), (32, 16, 8), (64, 16)
LINE, CHUNK, CLASSES_TOGETHER, ROW_LEAST = 16, 16, 64, 4
PLANE_SLACK, MAP_SLACK, WHOLE_SLACK, CHUNK_SLACK = LINE, 4 * LINE, 8 * LINE, 16


def assertions() -> str:
    """C++ that fails to compile, with a sentence, where constants.h has another value."""
    shared = {name: value for name, value in globals().items() if name.isupper()}
    return "\n".join(
        f"static_assert({name.lower()} == {_in_cpp(value)}, "
        f'"{name} in constants.py differs from {name.lower()} in cpp/constants.h; give both one value");'
        for name, value in shared.items()
    )


def _in_cpp(value: int | tuple[int, ...]) -> str:
    return f"Tiles<{', '.join(map(str, value))}>{{}}" if isinstance(value, tuple) else str(value)
