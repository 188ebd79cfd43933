"""Commands that use a model on images and texts: predict, explain."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.arguments import Readable, check_model, image_files, named_values, parsed
from headstart.cli.options import DeviceOption, ModelArgument
from headstart.cli.terminal import print_table


def predict(
    model: ModelArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, or folders of them; text files or tables for a text model."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Predictions to print for each input; default 3.")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Multi-label models: minimum probability of a printed label."
        ),
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images or texts in one forward pass.")
    ] = 8,
    out: Annotated[
        Path, typer.Option(help="Folder for written images: masks and overlays, reconstructions.")
    ] = Path("predictions"),
    refuse: Annotated[
        bool, typer.Option("--refuse", help="Refuse to answer where the confidence is too low.")
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(help="With --refuse: target error rate among the answers, such as 0.02."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to predict for; may be repeated.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Question to ask of every text (question answering).")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Treat each line of a text file as one text.")
    ] = False,
    long: Annotated[
        str,
        typer.Option(
            help="Texts above the maximum length: refuse, cut or extend (sampled attention)."
        ),
    ] = "refuse",
    hash_error: Annotated[
        float | None,
        typer.Option(
            help="Use sampled attention with enough hashes for this relative error, such as 0.1."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A configuration value of a text model."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Predict for images or texts: classes, numbers, masks, masked words, entities, answers.

    Segmentation and masked-image models write images to --out. Unreadable images are named and
    left out; the exit code is then 1.

    Example: [bold]headstart predict runs/photos holiday/ --top 1 --refuse[/bold]
    """
    from headstart.data import text_files
    from headstart.pipelines.base import pipeline, task_of

    check_model(model)
    task, best = task_of(model), top or 3
    if task in text_files.TASKS:
        inputs = text_files.read_inputs(task, files or [], text or [], question, lines)
        values = {name: parsed(text) for name, text in named_values(set_, "--set").items()}
        results = text_files.predict_texts(
            task,
            model,
            inputs,
            top=best,
            batch_size=batch_size,
            long=long,
            hash_error=hash_error,
            settings=values,
            device=device,
        )
        if as_json:
            for name, found in results:
                print(text_files.as_json(task, name, found), flush=True)
            return
        print_table(
            "",
            ("text", text_files.KEYS[task]),
            ((name, text_files.as_line(task, found)) for name, found in results),
        )
        return
    images = Readable(image_files(files or []))
    if task in ("semantic-segmentation", "masked-image-modeling"):
        _paint(pipeline(task, model, device=device), images, out, best, as_json)
    else:
        how: bool | float = refuse if max_error is None else max_error
        classify = pipeline(
            "image-classification", model, device=device, refuse=how, label_threshold=threshold
        )
        single = classify.kind in (None, "single_label_classification")
        found = classify.stream(images, best if single else top, batch_size)
        # a name is there once its picture has been read
        answers = zip(found, images.names, strict=False)
        if as_json:
            for labels, file in answers:
                print(json.dumps({"image": str(file), "labels": labels}), flush=True)
        else:
            form = ".4g" if classify.kind == "regression" else ".1%"
            rows = (
                (str(file), "  ".join(f"{each['label']} {each['score']:{form}}" for each in labels))
                for labels, file in answers
            )
            print_table("", ("image", f"top {best}" if single else "labels"), rows)
    if images.lost:
        raise typer.Exit(1)


def _paint(painter: Any, images: Readable, out: Path, top: int, as_json: bool) -> None:  # noqa: ANN401 - a pipeline that writes pictures
    """Writes the images that a pipeline makes and prints their paths."""
    rows, taken = [], set()
    for pixels in images:
        file = images.names[-1]
        names = (file.stem, *(f"{file.stem}_{i}" for i in range(2, len(images.files) + 2)))
        stem = next(out / name for name in names if name not in taken)
        taken.add(stem.name)
        found = painter.write(pixels, stem)
        written = [found[key] for key in found if key.endswith("_file")]
        if as_json:
            print(
                json.dumps({"image": str(file), "classes": found["classes"], "files": written}),
                flush=True,
            )
        rows.append(
            (
                str(file),
                "  ".join(
                    f"{each['label']} {each['share']:.1%}" for each in found["classes"][:top]
                ),
                ", ".join(written),
            )
        )
    if not as_json:
        print_table("", ("image", f"largest {top}", "written"), rows)


def explain(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the heat maps.")],
    label: Annotated[
        str | None,
        typer.Option(
            help="Class or regression target to explain; default the most probable class."
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Show which regions of an image a prediction rests on (heat maps).

    Example: [bold]headstart explain runs/photos bee.jpg --out seen/[/bold]
    """
    check_model(model)
    files = image_files(images)
    from PIL import Image

    from headstart.pipelines.base import pipeline
    from headstart.report.explain import explain as run

    classify = pipeline("image-classification", model, device=device)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, file in enumerate(files, start=1):
        found = run(classify.model, classify.image_processor, file, label, classify.temperature)
        # the number keeps files of the same name apart
        picture = out / f"{number:04d}_{file.stem}.png"
        Image.fromarray(found.overlay()).save(picture)
        score = f"{found.score:.4g}" if classify.kind == "regression" else f"{found.score:.1%}"
        rows.append((str(file), f"{found.label} {score}", str(picture)))
    print_table("", ("image", "prediction", "heat map"), rows)
