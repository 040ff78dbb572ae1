"""The result of a comparison: a variant of the model for each backend and precision, the sentence that sums it up, and its JSON file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from cnet_deploy.benchmarks.measure.rounds import Result, ratio
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report.text import group_title
from cnet_deploy.benchmarks.sweep.results import Group, Report, report_from
from cnet_deploy.errors import printable
from cnet_deploy.files import read_bytes, write_text
from cnet_deploy.files.strict_json import (
    Count,
    InvalidValue,
    Whole,
    closed,
    convert,
    of_version,
    one_of,
    parse_json,
    reading,
    shown,
    to_json,
)
from cnet_deploy.sessions import PRECISIONS, resolve_backend
from cnet_deploy.workflows.evaluate import Interval, paired_difference, wilson

FORMAT = "cnet_deploy_compare"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 30
FULL = PRECISIONS[0]  # what the other precisions are compared with
ALIKE = 1.05  # times closer than this are not told apart in words

Name = Annotated[str, Meta(min_length=1, description="text")]


@closed
@dataclass(frozen=True)
class Images:
    """The labelled images of a comparison: ``used`` of the ``total`` of a dataset's split, evenly spread. ``refused`` could not be read."""

    dataset: str
    split: str
    total: Whole
    used: Whole
    classes: Whole
    refused: Whole = 0


@dataclass(frozen=True)
class Accuracy:
    """Counts of a variant's answers on ``images`` labelled images: right at first, right among five, not finite (counted as wrong).

    ``agree`` answers are the same as the reference's (see ``ModelComparison.reference``), of which ``lost`` were right in the reference
    alone, and ``won`` here alone. The reference agrees with itself. All three are None where there is no reference.
    """

    images: Count
    right1: Whole
    right5: Whole
    not_finite: Whole
    agree: Whole | None = None
    lost: Whole | None = None
    won: Whole | None = None

    @property
    def top1_error(self) -> float:
        """In percent."""
        return 100 * (1 - self.right1 / self.images)

    @property
    def top1_interval(self) -> Interval:
        """The 95 % interval of the top-1 error in percent (Wilson, 1927)."""
        return wilson(self.images - self.right1, self.images)

    @property
    def agreement(self) -> float | None:
        """The share of answers that are the same as the reference's; None without a reference."""
        return None if self.agree is None else self.agree / self.images

    @property
    def difference(self) -> tuple[float, Interval] | None:
        """The top-1 error minus the reference's on the same images, in points, and its 95 % interval (Bonett and Price, 2012)."""
        return None if self.lost is None or self.won is None else paired_difference(self.lost, self.won, self.images)

    def check(self, place: str) -> None:
        """Raise InvalidValue for counts that no images can have."""
        counts = (self.right1, self.right5, self.not_finite, self.agree or 0, (self.lost or 0) + (self.won or 0))
        if max(counts) > self.images or self.right1 > self.right5:
            raise InvalidValue(f"{place} counts more than its {self.images} images can give; expected the counts of one evaluation")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, with what follows from the counts."""
        points = self.difference
        return {
            **asdict(self),
            "top1_error": self.top1_error,
            "top1_interval": self.top1_interval,
            "agreement": self.agreement,
            "difference": points and dict(zip(("points", "interval"), points, strict=True)),
        }


@dataclass(frozen=True)
class Variant:
    """The model on one backend in one precision.

    ``backend`` names both, as in "onnxruntime.fp16"; ``precision`` is what it computes in. ``bytes`` is the size of the file that it runs,
    None for a network that its backend builds itself. ``result`` has the raw times, or the reason why there are none (``result.error``).
    ``accuracy`` is None without labelled images.
    """

    backend: str
    precision: str
    bytes: int | None
    result: Result
    accuracy: Accuracy | None = None

    @property
    def runtime(self) -> str:
        """The name of the backend without its precision."""
        return ".".join(part for part in self.backend.split(".") if part not in PRECISIONS)

    @property
    def seconds(self) -> float | None:
        """The median time of an image; None if it was not measured."""
        return None if self.result.median is None else self.result.median / self.result.batch


@dataclass
class ModelComparison:
    """The variants of one model, measured in turns. ``report`` has the raw times with the environment, as `bench` has them."""

    report: Report
    variants: tuple[Variant, ...]
    images: Images | None = None

    @property
    def model(self) -> str:
        """The file or the network, as it was named."""
        return self.report.rows[0].label

    @property
    def group(self) -> Group:
        """Threads and images per inference of all variants."""
        return self.report.groups[0]

    @property
    def measured(self) -> tuple[Variant, ...]:
        """Those with times, the fastest first."""
        return tuple(sorted((v for v in self.variants if v.seconds is not None), key=lambda v: v.seconds or 0.0))

    @property
    def failed(self) -> dict[str, list[Variant]]:
        """Those without times, by the reason."""
        reasons: dict[str, list[Variant]] = {}
        for variant in self.variants:
            if variant.result.error is not None:
                reasons.setdefault(variant.result.error, []).append(variant)
        return reasons

    @property
    def reference(self) -> Variant | None:
        """What answers are compared with: the first variant in fp32 that was evaluated; None if there is none."""
        return next((v for v in self.variants if v.precision == FULL and v.accuracy is not None), None)

    def times_as_slow(self, variant: Variant) -> float | None:
        """The time of a variant relative to the fastest: the median over rounds; None if it was not measured."""
        return self.report.ratio(variant.result)

    def sentence(self) -> str:
        """The result in words: which variant is the fastest and by how much, and what the precisions do to its answers."""
        if not self.measured:
            return f"{printable(self.model)}: no variant could be measured."
        first = self.measured[0]
        text = f"{first.backend} is the fastest: {milliseconds(first.seconds)} ms an image ({group_title(self.report, self.group)})"
        rivals = [self._against(first, other) for other in self._rivals(first)]
        return f"{', '.join([text, *rivals])}. {self._of_answers()}".strip()

    def _rivals(self, first: Variant) -> Iterator[Variant]:
        """The fastest variant of each other backend, and of the fastest one in fp32."""
        seen = {(first.runtime, first.precision)}
        for other in self.measured[1:]:
            key = (other.runtime, FULL if other.runtime == first.runtime else "")
            if key not in seen and (other.runtime != first.runtime or (other.precision == FULL != first.precision)):
                seen.add(key)
                yield other

    def _against(self, first: Variant, other: Variant) -> str:
        times = ratio(other.result, first.result)
        if times is None or times < ALIKE:
            return f"about as fast as {other.backend}"
        return f"{times:.1f} times as fast as {other.backend}"

    def _of_answers(self) -> str:
        """What the precisions do to the answers; "" where they are all alike or not known."""
        reference, images = self.reference, self.images
        if images is None or reference is None or reference.accuracy is None:
            return ""
        others = [v for v in self.variants if v.accuracy is not None and v.accuracy.difference and v is not reference]
        low, high = reference.accuracy.top1_interval
        text = f"On {images.used:,} images {reference.backend} has a top-1 error of {reference.accuracy.top1_error:.1f} % "
        text += f"(95 %: {low:.1f} to {high:.1f})"
        apart = []
        for variant in others:
            assert variant.accuracy is not None and variant.accuracy.difference is not None
            points, (least, most) = variant.accuracy.difference
            if least > 0 or most < 0:
                apart.append(f"{variant.backend} {points:+.1f} points ({least:+.1f} to {most:+.1f})")
        if apart:
            return f"{text}; different from it beyond chance: {', '.join(apart)}."
        return f"{text}; no other variant differs from it beyond chance." if others else f"{text}."

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw samples included, JSON-ready."""
        return {
            FORMAT: FORMAT_VERSION,
            "result": self.sentence(),
            "images": self.images and asdict(self.images),
            "variants": [
                {
                    "backend": variant.backend,
                    "precision": variant.precision,
                    "bytes": variant.bytes,
                    "accuracy": variant.accuracy and variant.accuracy.to_dict(),
                    "median_seconds": variant.seconds,
                    "times_as_slow": self.times_as_slow(variant),
                    "error": variant.result.error,
                }
                for variant in self.variants
            ],
            "latency": self.report.to_dict(),
        }


@dataclass(frozen=True)
class _StoredVariant:
    """A variant as the file has it; what follows from the rest is left out."""

    backend: Name
    precision: Annotated[str, one_of(PRECISIONS)]
    bytes: Whole | None
    accuracy: Accuracy | None


@dataclass(frozen=True)
class _Stored:
    images: Images | None
    variants: list[_StoredVariant]
    latency: dict[str, Any]


def read_comparison(path: Path | str) -> ModelComparison:
    """A comparison from the file that ``write_comparison`` wrote. Raises InputRefused for anything else."""
    data = read_bytes(path, MAX_BYTES)
    with reading(path, "compare again with `compare --json`"):
        return comparison_from(parse_json(data))


def comparison_from(values: object) -> ModelComparison:
    """The inverse of ``to_dict``. Raises InvalidValue and OtherFormat for anything else."""
    stored = convert(of_version(values, FORMAT, FORMAT_VERSION), _Stored)
    report = report_from(stored.latency)
    if len(report.rows) != 1 or len(report.groups) != 1:
        raise InvalidValue("latency has several models, threads or batches; expected those of one comparison")
    results = {result.cell.backend: result for result in report.results}
    if [variant.backend for variant in stored.variants] != [result.cell.backend for result in report.results]:
        raise InvalidValue(f"variants are not those of latency; expected {', '.join(map(shown, results))}")
    for number, variant in enumerate(stored.variants):
        resolve_backend(variant.backend)
        if variant.accuracy is not None:
            variant.accuracy.check(f"variants[{number}].accuracy")
    images = stored.images
    if images is not None:
        images = Images(**{**asdict(images), "dataset": printable(images.dataset), "split": printable(images.split)})
    variants = tuple(Variant(v.backend, v.precision, v.bytes, results[v.backend], v.accuracy) for v in stored.variants)
    return ModelComparison(report, variants, images)


def write_comparison(path: Path, comparison: ModelComparison) -> None:
    """Write the JSON file, after it was checked that it can be read again. Raises OutputRefused."""
    write_text(path, to_json(comparison.to_dict(), indent=1) + "\n", reader=read_comparison)
