"""The paper's inference-time table (section 4; also in the reference's README.md), the networks of CondenseNet V2 beside it, and both
counted as their authors count them."""

from __future__ import annotations

from dataclasses import dataclass

from cnet_deploy.models.architecture import INPUT_SIZE, NAMED
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.counting import count


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper prints it: FLOPs in millions, top-1 error in per cent, seconds for one image on an ARM processor (None for
    CondenseNet V2).

    ``convention`` names whose count the FLOPs are.
    """

    model: str
    title: str
    mflops: int
    top1_error: float
    arm_seconds: float | None
    convention: str


CONVENTIONS = {
    "convolutions": "multiply-adds of the convolutions alone (He et al., 2016)",
    "multiply-adds": "multiply-adds of convolutions and classifier (Howard et al., 2017)",
    "reference": "CondenseNet's own count: multiply-adds, ReLUs, poolings and the classifier's biases (utils.py)",
    "condensenet-v2": "CondenseNet V2's own count: multiply-adds, activations and poolings, no biases (its utils/tools.py)",
}
BASE = "mobilenet-1.0-224"
PAPER = (
    PaperRow("vgg-16", "VGG-16", 15300, 28.5, 354, "convolutions"),
    PaperRow("resnet-18", "ResNet-18", 1818, 30.2, 8.14, "reference"),
    PaperRow(BASE, "MobileNet 1.0-224", 569, 29.4, 1.96, "multiply-adds"),
    PaperRow("condensenet-74-g4", "CondenseNet-74 (G=C=4)", 529, 26.2, 1.89, "reference"),
    PaperRow("condensenet-74-g8", "CondenseNet-74 (G=C=8)", 274, 29.0, 0.99, "reference"),
)
V2 = (  # from the README.md of their authors
    PaperRow("condensenet-v2-a", "CondenseNet V2-A", 46, 35.6, None, "condensenet-v2"),
    PaperRow("condensenet-v2-b", "CondenseNet V2-B", 146, 28.1, None, "condensenet-v2"),
    PaperRow("condensenet-v2-c", "CondenseNet V2-C", 309, 24.1, None, "condensenet-v2"),
)
FAMILIES = {"paper": PAPER, "v2": V2}


def paper_row(model: str) -> PaperRow | None:
    """The row of a network; None for one that is in neither table."""
    return next((row for row in (*PAPER, *V2) if row.model == model), None)


def paper_ratio(row: PaperRow) -> float | None:
    """How many times as long as MobileNet it took on the paper's ARM board; None for CondenseNet V2."""
    base = next(other.arm_seconds for other in PAPER if other.model == BASE)
    return None if row.arm_seconds is None or base is None else row.arm_seconds / base


def ratio_text(row: PaperRow | None) -> str:
    """That ratio in words; empty where there is none."""
    times = paper_ratio(row) if row else None
    return "" if times is None else f"{times:.2f}"


def counted(model: str) -> tuple[int, int]:
    """FLOPs, in the convention of the paper's figure, and parameters of a named network."""
    if model in NAMED:
        return NAMED[model].flops, NAMED[model].params
    total = count(BASELINES[model](), INPUT_SIZE)
    convention = next(row.convention for row in PAPER if row.model == model)
    return {"convolutions": total.conv_macs, "multiply-adds": total.macs, "reference": total.flops}[convention], total.params
