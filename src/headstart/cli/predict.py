"""Commands that use a model on images and texts: predict, explain."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from headstart.cli.terminal import load_torch, print_line, print_table, reading_inputs, resumable
from headstart.errors import ConfigError, counted

PROGRAMS = (".onnx", ".xml")  # endings of what `headstart export --full` writes
SHOWN = 3  # predictions for an input
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
    batch_size: BatchOption = None,
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
    from headstart.pipelines.base import task_of

    check_model(model)
    program = Path(model) if Path(model).suffix in PROGRAMS and Path(model).is_file() else None
    wanted = _Wanted(
        model=model,
        task="image-classification" if program else task_of(model),
        program=program,
        out=None if out is None else Path(out),
        top=top,
        batch_size=batch_size,
        threshold=threshold,
        refuse=refuse,
        max_error=max_error,
        device=device,
        long=long,
        hash_error=hash_error,
        settings={name: parsed(text) for name, text in named_values(set_, "--set").items()},
        question=question,
        as_json=as_json,
        resume=resume,
    )
    texts_only = {
        "--text": bool(text),
        "--question": question is not None,
        "--lines": lines,
        "--long": long != "refuse",
        "--hash-error": hash_error is not None,
    }
    unused = [name for name, given in texts_only.items() if given]
    if unused and not wanted.reads_texts:
        raise ConfigError(f"{model} reads images, and {', '.join(unused)} is for texts")
    if question is not None and wanted.task != "question-answering":
        raise ConfigError(f"--question is for question answering; {model} is of {wanted.task}")
    if program and (ray is not None or max_error is not None or device not in (None, "cpu")):
        raise ConfigError(
            f"{model} is a file of `headstart export --full`: it runs on this machine's CPU and"
            " refuses as it was exported; leave --ray, --device and --max-error out, or give the"
            " folder of the model"
        )
    if ray is not None:
        chosen = Inputs(files or [], text or [], question, lines)
        options = wanted.batch_options()
        cluster.predict(wanted.task, options, chosen, out, as_json, Cluster(ray, actors, resume))
        return
    cluster.check_absent(files, out, actors)
    wanted.check_output()
    load_torch()
    paths = [Path(each) for each in files or []]
    if wanted.reads_texts:
        with reading_inputs(files):
            texts = text_files.read_inputs(wanted.task, paths, text or [], question, lines)
        _predict_texts(wanted, texts)
    elif _predict_images(wanted, paths):
        raise typer.Exit(DATA_ERROR)


@dataclass(frozen=True)
class _Wanted:
    """What a call of `predict` asks for: its options, and what follows from them."""

    model: str
    task: str
    program: Path | None  # a file of `headstart export --full`
    out: Path | None
    top: int | None
    batch_size: int | None
    threshold: float
    refuse: bool
    max_error: float | None
    device: str | None
    long: str
    hash_error: float | None
    settings: dict[str, Any]
    question: str | None
    as_json: bool
    resume: bool

    @property
    def refusal(self) -> bool | float:
        """What a pipeline takes as `refuse`."""
        return self.refuse if self.max_error is None else self.max_error

    @property
    def reads_texts(self) -> bool:
        """Whether inputs are texts."""
        from headstart.data import text_files

        return self.task in text_files.TASKS

    @property
    def paints(self) -> bool:
        """Whether a prediction is an image."""
        return self.task in ("semantic-segmentation", "masked-image-modeling")

    @property
    def table(self) -> Path | None:
        """The table to write, if any."""
        from headstart.data.results import is_table

        return self.out if is_table(self.out) else None

    def batch_options(self) -> dict[str, Any]:
        """Arguments of `BatchPredictor`."""
        options: dict[str, Any] = {
            "model": self.model,
            "top": self.top,
            "batch_size": self.batch_size,
            "threshold": self.threshold,
            "refuse": self.refusal,
            "device": self.device,
        }
        if self.reads_texts:
            options |= {"long": self.long, "hash_error": self.hash_error, "settings": self.settings}
        return options

    def check_output(self) -> None:
        """Refuses options of the output that do not fit each other or the task."""
        if self.out is not None and self.table is None and not self.paints:
            raise ConfigError(
                f"--out {self.out}: a model of {self.task} writes a table; expected a name that"
                " ends in .csv, .jsonl or .parquet"
            )
        if self.table is not None and self.as_json:
            raise ConfigError(
                "--json prints and --out writes; choose one (--out results.jsonl has the same"
                " values)"
            )
        if self.table is None and self.resume:
            raise ConfigError("--resume continues a table: give its name with --out results.csv")
        if self.paints and self.refusal is not False:
            raise ConfigError(
                f"--refuse is for models that classify; {self.model} is one of {self.task}"
            )

    def facts(self, key: str, **values: str) -> dict[str, str]:
        """What a table that is continued must have in common with this call."""
        used = {"refuse": str(self.refuse), "max_error": str(self.max_error)}
        return {"model": self.model, "key": key, **used, **values}


def _predict_texts(wanted: _Wanted, inputs: list[tuple[str, Any]]) -> None:
    """Predictions for texts, in a table or on the terminal."""
    from headstart.data import text_files
    from headstart.pipelines.base import fingerprint

    task, best = wanted.task, wanted.top or SHOWN
    run = text_files.text_pipeline(
        task,
        wanted.model,
        batch_size=wanted.batch_size,
        long=wanted.long,
        hash_error=wanted.hash_error,
        settings=wanted.settings,
        device=wanted.device,
        refuse=wanted.refusal,
    )

    def results(rest: list[Any]) -> Iterable[tuple[str, list[Any]]]:
        return text_files.stream_texts(run, task, rest, best)

    if wanted.table is not None:
        columns = text_files.text_columns_of(task, run.model.config.problem_type)

        def rows(done: int) -> Iterable[dict[str, Any]]:
            return (
                text_files.text_row(task, name, found, columns)
                for name, found in results(inputs[done:])
            )

        facts = wanted.facts(
            fingerprint(run),
            top=str(best),
            long=wanted.long,
            question=str(wanted.question),
            hash_error=str(wanted.hash_error),
            set=json.dumps(wanted.settings, sort_keys=True),
        )
        names = [name for name, _ in inputs]
        _write(wanted.table, columns, names, rows, wanted.resume, "texts", facts)
    elif wanted.as_json:
        for name, found in results(inputs):
            emit("predict", {"text": name, text_files.KEYS[task]: found})
    else:
        print_table(
            "",
            ("text", text_files.KEYS[task]),
            ((name, text_files.as_line(task, found)) for name, found in results(inputs)),
        )


def _predict_images(wanted: _Wanted, paths: list[Path]) -> int:
    """Predictions for images, in a table or on the terminal; returns how many have an error."""
    from headstart.data import predictions
    from headstart.data.inputs import ImageInput, image_inputs
    from headstart.data.sources.raw import Lazy
    from headstart.pipelines.base import fingerprint

    table, top = wanted.table, wanted.top
    with reading_inputs(map(str, paths)):
        images = image_inputs(paths)
    pipe, kind, names = _image_pipeline(wanted)
    stems: Sequence[Path] = ()
    if wanted.paints:
        folder = table.with_suffix("") if table else wanted.out
        stems = predictions.unique_stems(images, folder or Path("predictions"))
    limit = top or SHOWN if kind in (None, "single_label_classification") else top

    def predicted(done: int) -> Iterable["Prediction"]:
        rest: Sequence[ImageInput] = images[done:]
        if wanted.paints:
            return predictions.paint(pipe, rest, stems[done:])
        return predictions.classify(pipe, rest, top_k=limit, batch_size=wanted.batch_size)

    if table is None:
        compared = not wanted.paints and pipe.reference is not None
        return _show(predicted(0), kind, wanted.as_json, wanted.paints, top, compared)
    columns = predictions.columns_of(wanted.task, kind, names)
    where = table.parent

    def rows(done: int) -> Iterable[dict[str, Any]]:
        return (predictions.row_of(each, columns, where, kind) for each in predicted(done))

    key = pipe.key if wanted.program else fingerprint(pipe)
    facts = wanted.facts(key, top=str(limit), threshold=str(wanted.threshold))
    inputs = Lazy(lambda i: images[i].name, range(len(images)))
    return _write(table, columns, inputs, rows, wanted.resume, "img", facts)


def _image_pipeline(wanted: _Wanted) -> tuple[Any, str | None, list[str]]:
    """What predicts for images, the kind of its labels (None: it paints), and their names."""
    from headstart.pipelines.base import pipeline

    if wanted.paints:
        return pipeline(wanted.task, wanted.model, device=wanted.device), None, []
    if wanted.program:
        from headstart.engine.full_file import FullClassifier

        program = FullClassifier(wanted.program, wanted.refuse, wanted.threshold)
        return program, program.kind, program.labels
    pipe = pipeline(
        "image-classification",
        wanted.model,
        device=wanted.device,
        refuse=wanted.refusal,
        label_threshold=wanted.threshold,
    )
    return pipe, pipe.kind, list(pipe.model.config.id2label.values())


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
        resumable(path),
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
        labels = each.shown()[: top or SHOWN] if paints else each.shown()
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
        head: tuple[str, ...] = ("image", f"largest {top or SHOWN}", "written")
    else:
        single = kind in (None, "single_label_classification")
        head = ("image", f"top {top or SHOWN}" if single else "labels")
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
    out: Annotated[
        Path, typer.Option(help="Folder for the heat maps, or a PNG file for that of one image.")
    ],
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
    maps = _heat_map_files(out, files)
    from PIL import Image

    from headstart.loading import family_of
    from headstart.pipelines.base import pipeline
    from headstart.report.explain import explain as run

    named = family_of(model)[1].get("architectures") or []
    if any(str(name).endswith("SemanticSegmentation") for name in named):
        raise ConfigError(
            f"{model} gives every pixel a class, which `headstart predict` shows; explain is for"
            " models that give an image one answer"
        )
    classify = pipeline("image-classification", model, device=device)
    maps[0].parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, Any]] = []
    for file, image in zip(files, maps, strict=True):
        found = run(classify.model, classify.image_processor, file, label, classify.temperature)
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


def _heat_map_files(out: Path, files: Sequence[Path]) -> list[Path]:
    """The file of the heat map of each image.

    Raises:
        ConfigError: `out` names a file, and not the PNG of one image.
    """
    from headstart.data.sources.raw import IMAGE_SUFFIXES

    suffix = out.suffix.lower()
    if suffix == ".png" and len(files) == 1 and not out.is_dir():
        return [out]
    if out.is_file() or (suffix in IMAGE_SUFFIXES and not out.is_dir()):
        raise ConfigError(
            f"--out {out} names a file, and there are {counted(len(files), 'image')}; expected a"
            " folder, or a name that ends in .png for one image"
        )
    # the number keeps files of the same name apart
    return [out / f"{i:04d}_{file.stem}.png" for i, file in enumerate(files, start=1)]
