"""The commands `headstart optimize`, `headstart export` and `headstart check`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from headstart.cli.options import DeviceOption
from headstart.cli.output import DATA_ERROR, JsonOption, emit
from headstart.cli.terminal import print_line, print_table
from headstart.errors import ConfigError, InputError

ModelArgument = Annotated[str, typer.Argument(help="Result folder, Hub id or authors' name.")]
SizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Side of the images; default what the image processor makes."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images or texts in one call.")]
LengthOption = Annotated[int | None, typer.Option(min=1, help="Tokens of a text; default 128.")]
DynamicOption = Annotated[
    str | None,
    typer.Option(
        help="Axes that change: batch, size, length, separated by commas, or none; default batch,"
        " and length for texts."
    ),
]
TOLERANCE_HELP = "Largest difference of an output, as a fraction of the largest."
CALIBRATED = 256  # images or texts, of which there may be up to twice as many
CALIBRATION_HELP = (
    "Folder of images, or file of texts, one a line: int8 and deviations are measured on them."
)

T = TypeVar("T")


def optimize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine: torch, openvino or onnxruntime; default the fastest here.",
            rich_help_panel="Program",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision: float32, bfloat16 or int8.", rich_help_panel="Program")
    ] = "float32",
    calibration: Annotated[
        Path | None, typer.Option(help=CALIBRATION_HELP, rich_help_panel="Check")
    ] = None,
    size: SizeOption = None,
    batch: BatchOption = 1,
    length: LengthOption = None,
    dynamic: DynamicOption = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the engine; default PyTorch's.", rich_help_panel="Program"
        ),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Streams that the threads are divided into; default the fastest number.",
            rich_help_panel="Program",
        ),
    ] = None,
    goal: Annotated[
        str,
        typer.Option(
            help="What is timed: latency of one caller, or throughput of one caller a thread.",
            rich_help_panel="Program",
        ),
    ] = "latency",
    tolerance: Annotated[
        float | None, typer.Option(help=TOLERANCE_HELP, rich_help_panel="Check")
    ] = None,
    device: DeviceOption = None,
) -> dict[str, Any]:
    """Optimize a model for this machine, and report the deviation of its outputs.

    Example: [bold]headstart optimize runs/photos --out runs/fast[/bold]
    """
    from headstart.engine import optimize as run
    from headstart.training.world import best_device

    if out.resolve() == Path(model).resolve():
        raise ConfigError(f"--out is the model's own folder, {out}; name another one")
    place, changing = best_device(device), axes(dynamic)
    network, processor = load_both(model)
    example = example_of(network, processor, size, batch, length)
    calls: list[dict[str, Any]] = []
    if calibration is not None:
        together = batch if changing is not None and "batch" not in changing else 1
        fixed = changing is not None and "length" not in changing
        if fixed and "input_ids" in example:
            length = example["input_ids"].shape[-1]
        calls = list(read_calibration(calibration, processor, network, length, together, fixed))
    fast = run(
        network.to(place),
        example=example,
        engine=engine,
        precision=precision,
        dynamic=changing,
        threads=threads,
        streams=streams,
        goal=goal,
        tolerance=tolerance,
        calibration=calls,
    )
    fast.save_pretrained(out)
    processor.save_pretrained(out)
    print_line(f"{fast.report}\nwritten: {out}")
    return {"out": str(out), "report": fast.report.to_dict()}


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="File to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Format: onnx, openvino or torch-export; default that of the ending of --out"
            " (.onnx, .xml, .pt2), else onnx."
        ),
    ] = None,
    size: SizeOption = None,
    batch: BatchOption = 1,
    length: LengthOption = None,
    dynamic: DynamicOption = None,
    opset: Annotated[int, typer.Option(min=18, help="Opset of ONNX.")] = 20,
    normalize: Annotated[
        bool,
        typer.Option(
            help="Rescale and normalize inside the program, which then takes pixels from 0 to 255."
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Resize, crop, normalize, probabilities and refusal inside: the program takes"
            " uint8 pixels of any size (image classification; ONNX and OpenVINO).",
        ),
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(help="With --full: target error rate of the refusal, such as 0.02."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help=f"{TOLERANCE_HELP[:-1]}; default 0.0001, with --full 0.01.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> dict[str, Any]:
    """Export a model to ONNX, OpenVINO or torch.export, and verify it against PyTorch.

    Example: [bold]headstart export runs/photos --out photos.onnx[/bold]
    """
    from headstart.engine import export as run
    from headstart.engine.exporting import SUFFIXES, free_path

    fixed = {"--size": size, "--length": length, "--dynamic": dynamic}
    fixed |= {"--batch": None if batch == 1 else batch, "--normalize": normalize or None}
    given = [name for name, value in fixed.items() if value is not None]
    if full and given:
        raise ConfigError(f"--full takes one image of any size; leave {given[0]} out")
    endings = {ending: name for name, ending in SUFFIXES.items()}
    form: Any = endings.get(out.suffix.lower(), "onnx") if to is None else to
    file = free_path(out, form, overwrite) if form in SUFFIXES else out  # before a model is loaded
    network, processor = load_both(model)
    deviation = run(
        network,
        out,
        to=form,
        example=None if full else example_of(network, processor, size, batch, length),
        dynamic=axes(dynamic),
        opset=opset,
        processor=processor,
        normalize=normalize,
        full=full,
        max_error=max_error,
        tolerance=tolerance,
        overwrite=overwrite,
    )
    print_line(f"{file}: largest deviation from PyTorch {deviation.largest:.1e}")
    return {"out": str(file), "deviation": deviation.largest}


def check(
    file: Annotated[Path, typer.Argument(help="File that `headstart export --full` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Run the test images in an exported file, and compare with the answers in it.

    The exit code is 3 where this machine's runtime answers otherwise than PyTorch did.

    Example: [bold]headstart check photos.onnx[/bold]
    """
    from headstart.engine.full_file import FullFile

    found = FullFile(file).check()
    right = all(each.right for each in found)
    if as_json:
        emit("check", {"file": str(file), "right": right, "images": list(map(asdict, found))})
    else:
        head = ("image", "expected", "found", "difference", "")
        lines = (
            (
                "x".join(map(str, each.shape)),
                each.expected,
                each.found,
                f"{each.difference:.1e}",
                "" if each.right else "wrong",
            )
            for each in found
        )
        print_table("", head, lines)
        print_line(f"{file} answers as PyTorch did" if right else f"{file} answers otherwise")
    if not right:
        raise typer.Exit(DATA_ERROR)


def load_both(name: str) -> tuple[Any, Any]:
    """The network that a checkpoint's config.json names (not an optimized form of it), and its
    image processor or tokenizer.
    """
    from headstart.auto import AutoImageProcessor, AutoTokenizer
    from headstart.loading import family_of

    family, values = family_of(name)
    known = set(family.tasks.values())
    named = next((each for each in values.get("architectures") or [] if each in known), None)
    fallback = family.tasks.get("image-classification") or family.tasks["masked-language-modeling"]
    network = family.load(named or fallback).from_pretrained(name, optimized=False)
    processor = AutoTokenizer if family.reads_text else AutoImageProcessor
    return network, processor.from_pretrained(name)


def example_of(
    network: Any, processor: Any, size: int | None, batch: int, length: int | None
) -> dict[str, Any]:
    """Inputs of the shape that calls will have."""
    import numpy as np
    import torch

    from headstart.engine.capture import make_example

    reads_text = network.main_input_name != "pixel_values"
    if (size if reads_text else length) is not None:
        given = f"size={size}" if reads_text else f"length={length}"
        what = "texts, which have no size" if reads_text else "images, which have no length"
        raise ConfigError(f"{given}: the model takes {what}; leave it out")
    if reads_text:
        return {
            key: torch.cat([value] * batch)
            for key, value in make_example(network, length=length).items()
        }
    if size is None:
        photo = np.random.default_rng(0).integers(0, 256, (480, 480, 3), dtype=np.uint8)
        pixels = processor(photo, return_tensors="pt")["pixel_values"]
    else:
        pixels = torch.randn(
            1, network.config.num_channels, size, size, generator=torch.Generator().manual_seed(0)
        )
    return {"pixel_values": torch.cat([pixels] * batch)}


def read_calibration(
    path: Path, processor: Any, network: Any, length: int | None, together: int, fixed: bool
) -> Iterator[dict[str, Any]]:
    """Calls of as many images or texts each as the program will take.

    Args:
        path: Folder of images, or file of texts.
        processor: Makes the inputs.
        network: Takes them.
        length: Tokens of a text; None is as many as the network takes.
        together: Images or texts of a call; the first ones come again to fill the last call.
        fixed: Whether every text has as many tokens.
    """
    if network.main_input_name == "pixel_values":
        from headstart.data.inputs import image_files

        if not path.is_dir():
            raise InputError(f"{path} is not a folder of images")
        for files in _calls(image_files([path]), together):
            yield {"pixel_values": processor(files, return_tensors="pt")["pixel_values"]}
        return
    from headstart.checkpoint.documents import read_text

    lines = (
        [line for line in read_text(path).splitlines() if line.strip()] if path.is_file() else []
    )
    if not lines:
        raise InputError(f"{path} is not a file with texts, one a line")
    limit = length or network.config.max_position_embeddings
    padding: Any = "max_length" if fixed else True
    for texts in _calls(lines, together):
        found = processor(
            texts, truncation=True, padding=padding, max_length=limit, return_tensors="pt"
        )
        yield {key: found[key] for key in ("input_ids", "attention_mask")}


def _calls(items: Sequence[T], together: int) -> Iterator[list[T]]:
    """At most about `CALIBRATED` of the items, so many in each call."""
    chosen = items[:: max(1, len(items) // CALIBRATED)]
    calls = math.ceil(len(chosen) / together)
    for call in range(calls):
        yield [chosen[i % len(chosen)] for i in range(call * together, (call + 1) * together)]


def axes(text: str | None) -> tuple[str, ...] | None:
    """Axes as the library takes them."""
    if text is None:
        return None
    return () if text == "none" else tuple(word.strip() for word in text.split(","))
