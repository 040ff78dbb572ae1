"""Options that several commands share, and checks of their combinations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from cnet_deploy.cli.types import Batches, Bytes, Channels, Choices, Depths, Digest, FilePath, Finite, OutputPath, Points, Size
from cnet_deploy.exporters import targets
from cnet_deploy.exporters.base import Option

if TYPE_CHECKING:
    from cnet_deploy.images.preprocessing import Overrides

F = TypeVar("F", bound=Callable[..., Any])


def _replace_anything(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from cnet_deploy.files.replacing import replacing_anything

        ctx.with_resource(replacing_anything())


force_option = click.option(
    "--force", is_flag=True, expose_value=False, callback=_replace_anything, help="Replace output files even if they are of another kind."
)
weights_option = click.option(
    "--weights", metavar="KEY", help="Which weights of a checkpoint that holds several sets; `inspect` lists them."
)

calibration_option = click.option(
    "--calibrate",
    type=FilePath(),
    metavar="DATA",
    help="Images to calibrate int8 networks with that are exported here: as of `export`. [default: random ones, and no judge of accuracy]",
)


def _limit_trials(ctx: click.Context, _: click.Parameter, seconds: float | None) -> None:
    if seconds is not None:
        from cnet_deploy.sessions import trial

        ctx.with_resource(trial.time_limit(seconds))


timeout_option = click.option(
    "--timeout",
    type=Finite(0, min_open=True),
    expose_value=False,
    callback=_limit_trials,
    metavar="SECONDS",
    help="How long the first opening of an ONNX file may take that is no plain network, in a process of its own. [default: 60]",
)


def model_options(command: F) -> F:
    """Options for what a checkpoint doesn't record."""
    for option in (
        click.option(
            "--hs-from",
            type=click.IntRange(1),
            metavar="BLOCK",
            help="CondenseNet V2: the dense block from which activations are hard swish. [default: 3, where there are 5]",
        ),
        click.option(
            "--final-pool",
            type=click.Choice(["whole", "original"]),
            help="What the last pooling averages: the whole map, or the reference's window at its top left. [default: whole]",
        ),
        click.option(
            "--stem-stride",
            type=click.IntRange(1, 16),
            help="Stride of the first convolution, instead of the inferred one.",
        ),
        click.option("--input-size", type=Size(), help="Input in pixels, as 224 or HEIGHTxWIDTH, instead of the inferred size."),
        click.option("--condense-factor", type=click.IntRange(1), help="C, if the checkpoint's counters don't tell it."),
        click.option("--groups", type=click.IntRange(1), help="G of the 1x1 convolutions, if the masks don't tell it."),
        weights_option,
    ):
        command = option(command)
    return command


def steps_options(command: F) -> F:
    """Options for how images are prepared, instead of what files state or what is guessed where they state nothing."""
    for option in reversed(
        (
            click.option(
                "--statistics",
                type=click.Choice(["cifar10", "cifar100", "imagenet", "fashion-mnist"]),
                help="The dataset whose mean and standard deviation to use.",
            ),
            click.option("--mean", type=Channels(), help="Mean of pixels from 0 to 1. These five options override what files state."),
            click.option("--std", type=Channels(), help="Standard deviation of pixels from 0 to 1."),
            click.option("--resize", type=click.IntRange(1), help="Pixels of the shorter side before the centre is cropped."),
            click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="How images are resized. [default: bilinear]"),
        )
    ):
        command = option(command)
    return command


def form_option(command: F) -> F:
    """The form in which `export` writes the dense blocks."""
    forms = click.Choice(["gather", "dense", "absorbed", "auto"])
    text = "How 1x1 convolutions are written; auto measures the fastest for each block. [default: gather]"
    command = click.option("--form", type=forms, help=text)(command)
    return click.option("--lowering", type=forms, hidden=True)(command)  # its name until 0.1.0


def int8_options(command: F) -> F:
    """How `export` comes to int8."""
    methods = click.Choice(["minmax", "percentile", "entropy"])
    for option in reversed((
        click.option("--calibrate", type=FilePath(), help="int8: images that the ranges of its values are taken from, as the network is "
                     "used with: a dataset's folder, a CIFAR binary file, or a folder of images."),
        click.option("--calibration", type=methods, help="int8: how ranges are taken; the last two leave out rare values. "
                     "[default: minmax]"),
        click.option("--calibration-images", type=click.IntRange(1, 10_000), help="int8: images to calibrate on, evenly over classes "
                     "where they are known. [default: 256]"),
        click.option("--accuracy-budget", type=Points(), metavar="POINTS%", help="int8: points of top-1 accuracy that may be lost on "
                     "labelled --images (else on those of --calibrate), as 0.5%. Where int8 loses more, the layers that cost most are "
                     "kept in higher precision: each is tried, which takes seconds a layer."),
    )):  # fmt: skip
        command = option(command)
    return command


def training_options(command: F) -> F:
    """The reference's options (main.py) with its names and defaults, and some that it does not have."""
    number, least = click.IntRange, Finite(0)
    for option in reversed((
        click.option("--model", type=click.Choice(["condensenet", "condensenet_v2", "densenet", "densenet_LGC"], case_sensitive=False),
                     default="condensenet", show_default=True, help="densenet_LGC: DenseNet with learned group convolutions."),
        click.option("--stages", type=Depths(), required=True, help="Layers of each dense block, as 14-14-14."),
        click.option("--growth", type=Depths(), required=True, help="Channels that each of a block's layers adds, as 8-16-32."),
        click.option("--bottleneck", type=number(1), default=4, show_default=True, help="Outputs of the 1x1 for each channel of growth."),
        click.option("--group-1x1", type=number(1), default=4, show_default=True, help="Groups of the 1x1 convolutions (G)."),
        click.option("--group-3x3", type=number(1), default=4, show_default=True, help="Groups of the 3x3 convolutions."),
        click.option("--condense-factor", type=number(1), default=4, show_default=True, help="1/C of the inputs is kept (C)."),
        click.option("--reduction", type=Finite(0, 1, min_open=True), default=0.5, show_default=True, help="DenseNets: compression."),
        click.option("--hs-from", type=number(1), metavar="BLOCK", help="condensenet_v2: the block, from 1, from which activations are "
                     "hard swish. [default: the last three, but not the first]"),
        click.option("--se-from", type=number(1), metavar="BLOCK", help="condensenet_v2: the block, from 1, from which layers have "
                     "squeeze and excitation. [default: the last two, but not the first]"),
        click.option("--hidden-channels", type=number(1), help="condensenet_v2: width of the layer before the classifier. [default: 1024]"),
        click.option("--input-size", type=Size(), help="Input size in pixels. [default: 32 for small images, else 224]"),
        click.option("--stem-stride", type=number(1, 16), help="Stride of the first convolution. [default: 1 for small images, else 2]"),
        click.option("--epochs", type=number(1), default=120, show_default=True, help="Epochs of the whole run."),
        click.option("-b", "--batch-size", type=number(1), default=256, show_default=True, help="Images per step, over all devices."),
        click.option("--lr", "--learning-rate", "lr", type=least, default=0.1, show_default=True, help="Learning rate at the start."),
        click.option("--lr-type", type=click.Choice(["cosine", "multistep"]), default="cosine", show_default=True, help="Schedule."),
        click.option("--momentum", type=least, default=0.9, show_default=True, help="Nesterov momentum."),
        click.option("--weight-decay", "--wd", type=least, default=1e-4, show_default=True, help="Weight decay of all weights."),
        click.option("--group-lasso-lambda", "--group-lasso", type=least, default=0.0, show_default=True, help="Paper, ImageNet: 1e-5."),
        click.option("--dropout-rate", type=least, default=0.0, show_default=True, help="Dropout before the 1x1 convolutions."),
        click.option("--label-smoothing", type=least, default=0.0, show_default=True, help="Share of a label spread over all classes."),
        click.option("--manual-seed", "seed", type=number(0), default=0, show_default=True, help="Of weights, order, augmentation."),
        click.option("-j", "--workers", type=number(1), help="Threads that read images. [default: one per core, at most 8]"),
        click.option("-p", "--print-freq", type=number(1), default=10, show_default=True, help="Steps between updates of the bar."),
        click.option("--savedir", type=FilePath(), default=Path("results/savedir"), show_default=True, help="Output."),
        click.option("--resume", is_flag=True, help="Continue from the last valid checkpoint in --savedir, if there is one."),
        click.option("--no-save-model", is_flag=True, help="Keep only the best checkpoint and the last two."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The device. [default: cuda if there is one]"),
        click.option("--gpu", help="The GPUs to use, as in CUDA_VISIBLE_DEVICES."),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="bf16: autocast."),
        click.option("--channels-last/--no-channels-last", default=True, show_default=True, help="Last is twice as fast on a CPU."),
        click.option("--compile", is_flag=True, help="Compile the model (torch.compile)."),
    )):  # fmt: skip
        command = option(command)
    return command


def target_options(command: F) -> F:
    """A flag for each target, and the targets' own options. An option that several targets have is offered once."""
    known = targets()
    shared: dict[str, dict[str, Option]] = {}
    for name, target in known.items():
        for option in target.options:
            shared.setdefault(option.command_line, {})[name] = option
    for flag, owners in reversed(shared.items()):
        first = next(iter(owners.values()))
        about = "; ".join(f"{known[name].title}: {option.help}" for name, option in owners.items())
        kind = _type_of(list(owners.values()))
        command = click.option(flag, first.name, type=kind, metavar=getattr(kind, "metavar", None), help=f"{about}.")(command)
    for name, target in reversed(list(known.items())):
        command = click.option(f"--{name}", f"to_{name}", is_flag=True, help=target.help)(command)
    return command


def _type_of(options: Sequence[Option]) -> click.ParamType:  # type: ignore[type-arg,unused-ignore]
    """A parameter type that accepts the values of all these options; the target's own values are checked later."""
    first = options[0]
    if first.kind == "choice":
        choices = list(dict.fromkeys(choice for option in options for choice in option.choices))
        return Choices(choices) if first.several else click.Choice(choices, case_sensitive=False)
    if first.kind == "number":
        return click.IntRange(*(first.bounds or (1, None)))
    return {"batch": Batches(), "batches": Batches(), "bytes": Bytes(), "file": FilePath()}[first.kind]


def triton_options(command: F) -> F:
    """Options of a model repository of Triton, and how its server runs what lies there."""
    several = {name: target.serving for name, target in targets().items() if len(target.serving) > 1}
    backends = {name: [way.backend for way in ways] for name, ways in several.items()}
    defaults = "; ".join(f"{name}: {known[0]}" for name, known in backends.items())
    told = {name: way for name, target in targets().items() for way in target.serving if way.threads}
    stated = ", ".join(name for name, way in told.items() if way.states_threads)
    for option in (
        click.option(
            "--triton-threads",
            type=click.IntRange(1, 32),
            help=f"{' and '.join(told)}: threads of each instance. [default: {stated}: the processors, divided among the instances]",
        ),
        click.option("--triton-instances", type=click.IntRange(1, 1024), help="Instances, which run at the same time. [default: 1]"),
        click.option(
            "--triton-backend",
            type=click.Choice([name for known in backends.values() for name in known]),
            help=f"{' and '.join(several)}: Triton's backend. [default: {defaults}]",
        ),
        click.option(
            "--triton",
            type=OutputPath(),
            help="Write the artifact into this model repository of NVIDIA Triton Inference Server.",
        ),
    ):
        command = option(command)
    return command


def take_triton(options: dict[str, Any], triton: Path | None) -> dict[str, Any]:
    """Remove the options of ``triton_options``, and return those that were given, as ``publish`` calls them.

    Raises UsageError where one was given and no repository.
    """
    given = {name: value for name in TRITON if (value := options.pop(f"triton_{name}")) is not None}
    if given and triton is None:
        raise click.UsageError(f"--triton-{next(iter(given))} is an option of --triton FOLDER alone")
    return given


def require_served(given: Mapping[str, Any], artifacts: Sequence[Artifact]) -> None:
    """Raise UsageError for an option of ``triton_options`` that an artifact's target does not take."""
    for target in {artifact.target for artifact in artifacts}:
        ways = targets()[target].serving
        if (backend := given.get("backend")) is not None and ways:
            if backend not in [way.backend for way in ways]:
                raise click.UsageError(f"--triton-backend {backend} is no backend of --{target}")
            ways = tuple(way for way in ways if way.backend == backend)
        if "threads" in given and ways and not ways[0].threads:
            raise click.UsageError(f"--triton-threads is no option of --{target} with Triton's backend {ways[0].backend}")


def take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove some of a command's options and return them."""
    return {name: options.pop(name) for name in names}


def take_overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of ``model_options`` and return them."""
    return take(options, "weights", "groups", "condense_factor", "input_size", "stem_stride", "final_pool", "hs_from")


def take_steps(options: dict[str, Any]) -> Overrides:
    """Remove the options of ``steps_options`` and return them."""
    from cnet_deploy.images.preprocessing import Overrides

    return Overrides(**take(options, "statistics", "mean", "std", "resize", "interpolation"))


def take_targets(options: dict[str, Any], triton: Path | None, output: Path | None) -> list[str]:
    """Remove the targets' flags and return the targets of `export`. Raises UsageError if there is none, or two outputs were given."""
    if triton is not None and output is not None:
        raise click.UsageError("--triton and --output were both given; expected one of them")
    chosen = [name for name in targets() if options.pop(f"to_{name}")]
    if chosen:
        return chosen
    if triton is None:
        *most, last = (f"--{name}" for name in targets())
        raise click.UsageError(f"Missing the target; expected {', '.join(most)} or {last}, or several of them")
    return [next(name for name, known in targets().items() if known.serving)]


TRITON = ("backend", "instances", "threads")
INT8 = ("calibrate", "calibration", "calibration_images", "accuracy_budget")


class Artifact(NamedTuple):
    """One of the artifacts that `export` writes: its target, the form of its dense blocks (None: the default), the target's own options."""

    target: str
    form: str | None
    options: dict[str, Any]


def artifacts_of(chosen: Sequence[str], options: Mapping[str, Any], form: str | None) -> list[Artifact]:
    """The artifacts of an `export`: one for each target and each of several values, as precisions. An option goes to the targets that
    have it.

    Raises UsageError for an option or a form that none of the targets has, and a value that one of them does not take.
    """
    known = {name: {option.name: option for option in targets()[name].options} for name in chosen}
    flags = {option.name: option.command_line for target in targets().values() for option in target.options}
    all_targets = " and ".join(f"--{name}" for name in chosen)
    if foreign := [name for name in options if not any(name in own for own in known.values())]:
        raise click.UsageError(f"{flags[foreign[0]]} is no option of {all_targets}")
    if form not in (None, "gather") and not any(targets()[name].forms for name in chosen):
        raise click.UsageError(f"--form is no option of {all_targets}, which has its own layout of the network")
    artifacts = []
    for target, own in known.items():
        given = {name: value for name, value in options.items() if name in own}
        for name, value in given.items():
            option = own[name]
            if option.kind == "batch" and not isinstance(value, int):
                raise click.UsageError(f"{option.command_line} of --{target} must be one number; leave it out for a free batch")
            values = value if isinstance(value, tuple) and option.several else [value]
            if option.kind == "choice" and (unknown := [word for word in values if word not in option.choices]):
                raise click.UsageError(
                    f"--{target} has no {option.command_line} {unknown[0]}; expected one of {', '.join(option.choices)}"
                )  # fmt: skip
        several = {name: value for name, value in given.items() if own[name].several}
        for combination in itertools.product(*several.values()):
            chosen_form = form if targets()[target].forms else None
            artifacts.append(Artifact(target, chosen_form, {**given, **dict(zip(several, combination, strict=True))}))
    return artifacts


def take_int8(options: dict[str, Any], artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """What was given of the options of ``int8_options``, taken out of all options.

    Raises UsageError where none of the artifacts is in int8, or one is and nothing to calibrate on was given.
    """
    given = {name: value for name in INT8 if (value := options.get(name)) is not None}
    int8 = [artifact for artifact in artifacts if is_int8(artifact)]
    if given and not int8:
        flag = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{flag} is an option of --precision int8 alone")
    if int8 and "calibrate" not in given:
        raise click.UsageError(
            "--precision int8 takes the ranges of its values from images; give some as the network is used with: --calibrate DATA, a "
            "dataset's folder, a CIFAR binary file or a folder of images"
        )
    if any(artifact.form == "auto" for artifact in int8):
        raise click.UsageError("--form auto measures no int8; expected another form, or none")
    return given


def is_int8(artifact: Artifact) -> bool:
    """Whether an artifact is to be written in int8."""
    return artifact.options.get("precision") == "int8"


def once(notify: Callable[[str], None]) -> Callable[[str], None]:
    """``notify`` for lines that were not said before: several artifacts of one model have the same ones."""
    heard: set[str] = set()

    def new(text: str) -> None:
        if text not in heard:
            heard.add(text)
            notify(text)

    return new


def labels_option(more: str) -> Callable[[F], F]:
    """The option for a file of class names; ``more`` is added to its help."""
    return click.option("--labels", type=FilePath(), help=f"File of class names: one per line, JSON, or a Python dict. {more}")


pin_option = click.option("--sha256", type=Digest(), help="The SHA-256 that the (first) file must have; otherwise it is refused.")
images_option = click.option(
    "--images",
    type=FilePath(),
    help="Real images to check on: a CIFAR binary file, an image, or a folder of images.",
)
tolerance_option = click.option(
    "--tolerance",
    type=Finite(0),
    help="Largest error allowed, relative to the largest logit. [default: 1e-4, more in a smaller precision; int8: by its answers]",
)
keep_option = click.option(
    "--classifier-keep",
    type=Finite(0, 1, min_open=True),
    help="Share of the classifier's inputs to keep; CondenseNet V2 keeps all. [default: 0.5, as the reference]",
)
