"""Commands that use a model on images and texts: predict, explain."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli import cluster
from headstart.cli.arguments import check_model, named_values, parsed
from headstart.cli.cluster import Cluster, Inputs
from headstart.cli.options import (
    ActorsOption,
    BatchOption,
    DeviceOption,
    InputsArgument,
    LinesOption,
    LongOption,
    ModelArgument,
    RayOption,
)
from headstart.cli.output import DATA_ERROR, JsonOption, emit
from headstart.cli.terminal import load_torch, print_line, print_table
from headstart.errors import ConfigError, counted

PROGRAMS = (".onnx", ".xml")  # endings of what `headstart export --full` writes
MUCH = 8  # times that an image is shrunk before `explain` says so

if TYPE_CHECKING:
    from headstart.data.predictions import Prediction
    from headstart.data.results import Kind


def predict(
    model: ModelArgument,
    files: InputsArgument = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="Predictions to print for each input; default 3.", rich_help_panel="Output"
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Multi-label models: minimum probability of a printed label.",
            rich_help_panel="Output",
        ),
    ] = 0.5,
    as_json: JsonOption = False,
    batch_size: BatchOption = 8,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Table of results: a name that ends in .csv, .jsonl or .parquet. Or the folder of"
            " written images (masks and overlays, reconstructions); default predictions.",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the table of a run that was cut off.",
            rich_help_panel="Output",
        ),
    ] = False,
    refuse: Annotated[
        bool,
        typer.Option(
            "--refuse",
            help="Refuse to answer where the confidence is too low.",
            rich_help_panel="Refusing",
        ),
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="With --refuse: target error rate among the answers, such as 0.02.",
            rich_help_panel="Refusing",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to predict for; may be repeated.", rich_help_panel="Texts"),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="Question to ask of every text (question answering).", rich_help_panel="Texts"
        ),
    ] = None,
    lines: LinesOption = False,
    long: LongOption = "refuse",
    hash_error: Annotated[
        float | None,
        typer.Option(
            help="Use sampled attention with enough hashes for this relative error, such as 0.1.",
            rich_help_panel="Texts",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A configuration value of a text model.",
            rich_help_panel="Texts",
        ),
    ] = None,
    device: DeviceOption = None,
    ray: RayOption = None,
    actors: ActorsOption = None,
) -> None:
    """Predict for images or texts: classes, numbers, masks, masked words, entities, answers.

    With --out results.csv (.jsonl, .parquet) the results go to a table, one row an input.
    Unreadable images are named and left out; the exit code is then 3.

    Example: [bold]headstart predict runs/photos holiday/ --top 1 --refuse[/bold]
    """
    from headstart.data import text_files
    from headstart.data.results import is_table
    from headstart.pipelines.base import fingerprint, pipeline, task_of

    check_model(model)
    program = Path(model) if Path(model).suffix in PROGRAMS and Path(model).is_file() else None
    task = "image-classification" if program else task_of(model)
    best = top or 3
    how: bool | float = refuse if max_error is None else max_error
    values = {name: parsed(text) for name, text in named_values(set_, "--set").items()}
    if program and (ray is not None or max_error is not None or device not in (None, "cpu")):
        raise ConfigError(
            f"{model} is a file of `headstart export --full`: it runs on this machine's CPU and"
            " refuses as it was exported; leave --ray, --device and --max-error out, or give the"
            " folder of the model"
        )
    if ray is not None:
        options: dict[str, Any] = {
            "model": model,
            "top": top,
            "batch_size": batch_size,
            "threshold": threshold,
            "refuse": how,
            "device": device,
        }
        if task in text_files.TASKS:
            options |= {"long": long, "hash_error": hash_error, "settings": values}
        chosen = Inputs(files or [], text or [], question, lines)
        cluster.predict(task, options, chosen, out, as_json, Cluster(ray, actors, resume))
        return
    cluster.check_absent(files, out, actors)
    paths, where_to = [Path(each) for each in files or []], Path(out) if out else None
    paints = task in ("semantic-segmentation", "masked-image-modeling")
    table = where_to if is_table(where_to) else None
    if out is not None and table is None and not paints:
        raise ConfigError(
            f"--out {out}: a model of {task} writes a table; expected a name that ends in .csv,"
            " .jsonl or .parquet"
        )
    if table is not None and as_json:
        raise ConfigError(
            "--json prints and --out writes; choose one (--out results.jsonl has the same values)"
        )
    if table is None and resume:
        raise ConfigError("--resume continues a table: give its name with --out results.csv")
    used = {"refuse": str(refuse), "max_error": str(max_error)}  # options that change rows
    load_torch()
    if task in text_files.TASKS:
        inputs = text_files.read_inputs(task, paths, text or [], question, lines)
        run = text_files.text_pipeline(
            task,
            model,
            batch_size=batch_size,
            long=long,
            hash_error=hash_error,
            settings=values,
            device=device,
            refuse=how,
        )

        def results(rest: list[Any]) -> Iterable[tuple[str, list[Any]]]:
            return text_files.stream_texts(run, task, rest, best)

        if table is not None:
            columns = text_files.text_columns_of(task, run.model.config.problem_type)
            used |= {"top": str(best), "long": long, "question": str(question)}
            used |= {"hash_error": str(hash_error), "set": json.dumps(values, sort_keys=True)}
            _write(
                table,
                columns,
                [name for name, _ in inputs],
                lambda done: (
                    text_files.text_row(task, name, found, columns)
                    for name, found in results(inputs[done:])
                ),
                resume,
                "texts",
                {"model": model, "key": fingerprint(run), **used},
            )
        elif as_json:
            for name, found in results(inputs):
                emit("predict", {"text": name, text_files.KEYS[task]: found})
        else:
            print_table(
                "",
                ("text", text_files.KEYS[task]),
                ((name, text_files.as_line(task, found)) for name, found in results(inputs)),
            )
        return
    from headstart.data import predictions
    from headstart.data.inputs import ImageInput, image_inputs

    images = image_inputs(paths)
    if paints:
        if how is not False:
            raise ConfigError(f"--refuse is for models that classify; {model} is one of {task}")
        pipe = pipeline(task, model, device=device)
        kind, names, folder = None, [], table.with_suffix("") if table else where_to
        stems = predictions.unique_stems(images, folder or Path("predictions"))
    elif program:
        from headstart.engine.full_file import FullClassifier

        pipe = FullClassifier(program, refuse, threshold)
        kind, names = pipe.kind, pipe.labels
    else:
        pipe = pipeline(
            "image-classification", model, device=device, refuse=how, label_threshold=threshold
        )
        kind, names = pipe.kind, list(pipe.model.config.id2label.values())
    limit = best if kind in (None, "single_label_classification") else top

    def predicted(done: int) -> Iterable["Prediction"]:
        rest: Sequence[ImageInput] = images[done:]
        if paints:
            return predictions.paint(pipe, rest, stems[done:])
        return predictions.classify(pipe, rest, top_k=limit, batch_size=batch_size)

    if table is not None:
        columns = predictions.columns_of(task, kind, names)
        where = table.parent

        def rows(done: int) -> Iterable[dict[str, Any]]:
            return (predictions.row_of(each, columns, where, kind) for each in predicted(done))

        used |= {"top": str(limit), "threshold": str(threshold)}
        key = pipe.key if program else fingerprint(pipe)
        facts = {"model": model, "key": key, **used}
        lost = _write(table, columns, [each.name for each in images], rows, resume, "img", facts)
    else:
        compared = not paints and pipe.reference is not None
        lost = _show(predicted(0), kind, as_json, paints, top, compared)
    if lost:
        raise typer.Exit(DATA_ERROR)


def _write(
    path: Path,
    columns: "dict[str, Kind]",
    names: Sequence[str],
    rows: Callable[[int], Iterable[dict[str, Any]]],
    resume: bool,
    unit: str,
    facts: Mapping[str, str],
) -> int:
    """Writes the rows that are missing in a table; returns how many have an error."""
    from headstart.data.results import ResultTable, remaining
    from headstart.progress import progress_for_terminal

    began = time.perf_counter()
    with (
        ResultTable(path, columns, resume=resume, facts=facts) as table,
        progress_for_terminal() as progress,
    ):
        first, lost = remaining(table, names), table.lost
        if first < len(names):
            progress.start("predict", len(names), done=first, unit=unit)
            for done, row in enumerate(rows(first), start=first + 1):
                table.write(row)
                if row.get("error"):
                    lost += 1
                    progress.report(f"headstart: {row['error']}")
                progress.update(done, {}, (done - first) / (time.perf_counter() - began))
        table.finish()
    note = f", {lost} without a prediction" if lost else ""
    print_line(f"{path}: {counted(len(names), 'row')}{note}")
    return lost


def _show(
    found: Iterable["Prediction"],
    kind: str | None,
    as_json: bool,
    paints: bool,
    top: int | None,
    compared: bool = False,
) -> int:
    """Prints predictions for images; returns how many have an error."""
    form, lost = ".4g" if kind == "regression" else ".1%", 0

    def line(each: "Prediction") -> tuple[str, ...]:
        labels = each.shown()[: top or 3] if paints else each.shown()
        words = "  ".join(f"{one['label']} {one['score']:{form}}" for one in labels)
        written = ", ".join(map(str, each.files.values()))
        if paints:
            return each.name, words, written
        known = "" if each.p_value is None else f"{each.p_value:.3f}"
        return (each.name, words, known) if compared else (each.name, words)

    def readable() -> Iterable["Prediction"]:
        nonlocal lost
        for each in found:
            if each.error is None:
                yield each
            else:
                lost += 1
                print_line(f"headstart: {each.error}", error=True)

    if as_json:
        for each in readable():
            emit("predict", _values(each, paints))
        return lost
    if paints:
        head: tuple[str, ...] = ("image", f"largest {top or 3}", "written")
    else:
        single = kind in (None, "single_label_classification")
        head = ("image", f"top {top or 3}" if single else "labels")
        head += ("p-value",) * compared
    rows = (line(each) for each in readable())
    print_table("", head, rows)
    return lost


def _values(each: "Prediction", paints: bool) -> dict[str, Any]:
    """A prediction as JSON."""
    if not paints:
        return {"image": each.name, "labels": each.shown()}
    classes = [{"label": one["label"], "fraction": one["score"]} for one in each.labels]
    return {"image": each.name, "classes": classes, "files": list(map(str, each.files.values()))}


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
) -> dict[str, Any]:
    """Show which regions of an image a prediction rests on (heat maps).

    Example: [bold]headstart explain runs/photos bee.jpg --out seen/[/bold]
    """
    from headstart.data.inputs import image_files

    check_model(model)
    files = image_files(images)
    from PIL import Image

    from headstart.pipelines.base import pipeline
    from headstart.report.explain import explain as run

    classify = pipeline("image-classification", model, device=device)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, Any]] = []
    for number, file in enumerate(files, start=1):
        found = run(classify.model, classify.image_processor, file, label, classify.temperature)
        # the number keeps files of the same name apart
        image = out / f"{number:04d}_{file.stem}.png"
        Image.fromarray(found.overlay()).save(image)
        score = f"{found.score:.4g}" if classify.kind == "regression" else f"{found.score:.1%}"
        rows.append((str(file), f"{found.label} {score}", str(image)))
        value = {"image": str(file), "label": found.label, "score": found.score}
        values.append(value | {"file": str(image)})
        if found.shrunk >= MUCH:
            height, width = found.seen
            print_line(
                f"headstart: {file}: the network sees {width}x{height} pixels, {found.shrunk:.0f}"
                " times smaller than the image; details of fewer pixels than that are lost",
                error=True,
            )
    print_table("", ("image", "prediction", "heat map"), rows)
    return {"images": values}
