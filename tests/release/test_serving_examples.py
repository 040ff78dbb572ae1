"""The files in examples/serving: as their linters want them, and each says what the others say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.release.containers import IMAGES, OBJECTS, command, objects
from tests.release.pages import ROOT


def lint(*words: str | Path) -> tuple[int, str]:
    """Exit code and output of a linter from the extra dev. Where a system has no wheel of it, the test is skipped by its name."""
    program = Path(sys.executable).parent / words[0]
    if not program.exists():
        pytest.skip(f"needs {words[0]}, of the extra dev")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(image: Path, tmp_path: Path) -> None:
    assert lint("hadolint", "--no-color", image) == (0, "")
    (worse := tmp_path / "Dockerfile").write_text(image.read_text(encoding="utf-8") + "RUN cd /models\n", encoding="utf-8")
    code, found = lint("hadolint", "--no-color", worse)
    assert code != 0 and "DL3003" in found


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_objects_are_those_of_kubernetes(version: str, tmp_path: Path) -> None:
    """Of an old version and of a new one; what is misspelt would be ignored in a cluster."""
    code, found = lint("kubernetes-validate", "--strict", "-k", version, OBJECTS)
    assert code == 0 and found.count(" passed ") == 2, found
    (worse := tmp_path / "kubernetes.yaml").write_text(OBJECTS.read_text(encoding="utf-8").replace("httpGet", "httpget"), encoding="utf-8")
    code, found = lint("kubernetes-validate", "--strict", "-k", version, worse)
    assert code != 0 and "httpget" in found


def test_images_differ_in_where_the_server_is_from() -> None:
    assert len(IMAGES) == 2 and command(IMAGES[0]) == command(IMAGES[1])
    for path in IMAGES:
        text = path.read_text(encoding="utf-8")
        assert "--gpus" not in text and '\nENV CUDA_VISIBLE_DEVICES=""\n' in text
        assert "\nCOPY repository /models\n" in text and "--chown" not in text  # so the files are root's
        assert "--model-repository=/models" in command(path)


def test_the_small_image_has_the_server_that_tests_run() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["triton"]
    installed = re.findall(r"nvidia-pytriton==[\d.]+", IMAGES[1].read_text(encoding="utf-8"))
    assert IMAGES[1].suffix == ".slim" and installed and set(installed) <= {requirement.partition(" ")[0] for requirement in extra}


def test_there_is_time_to_answer_before_the_end() -> None:
    """Kubernetes kills what has not ended by then."""
    pod = objects()[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (seconds,) = (int(flag.partition("=")[2]) for flag in command(IMAGES[0]) if flag.startswith("--exit-timeout-secs="))
    program, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep" and pod["terminationGracePeriodSeconds"] >= seconds + int(pause) + 5


def test_the_pod_is_what_the_image_expects() -> None:
    deployment, service = objects()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for path in IMAGES:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE) == [" ".join(map(str, ports.values()))]
        user, group = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)[0]
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, int(user), int(group))
        (threads,) = re.findall(r"--triton-threads (\d+)", text)
        assert (
            {threads} == set(re.findall(r"--cpus (\d+)", text)) == {container["resources"][kind]["cpu"] for kind in ("requests", "limits")}
        )
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
