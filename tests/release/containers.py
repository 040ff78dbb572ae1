"""What the files in examples/serving say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "serving"
IMAGES = sorted(FOLDER.glob("Dockerfile*"))
OBJECTS = FOLDER / "kubernetes.yaml"


def _words(dockerfile: Path, before: str) -> list[str]:
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", "")
    (found,) = re.findall(rf"^{before}CMD (\[.*\])$", text, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def command(dockerfile: Path) -> list[str]:
    """Program and flags that the container runs."""
    return _words(dockerfile, "")


def health_check(dockerfile: Path) -> list[str]:
    """What is run to see whether the container is well."""
    return _words(dockerfile, "HEALTHCHECK .*")


def objects() -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment and the Service."""
    deployment, service = yaml.safe_load_all(OBJECTS.read_text(encoding="utf-8"))
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    return deployment, service
