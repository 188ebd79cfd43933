"""Distillation: a student learns what a teacher answers, from images with or without labels.

Function matching (Beyer et al. 2021, "Knowledge distillation: A good teacher is patient and
consistent"): teacher and student see the same crop and the same MixUp of every image, and the
student's answers are pulled to the teacher's by their KL divergence. Loop, checkpoints, report and
budget are those of `headstart.train`: a distillation is a task like any other.

Letters: B images, S side of a view, V classes, N images of a split, D features.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoModelForImageClassification, AutoTokenizer
from headstart.config import PreTrainedConfig
from headstart.data.cache import PixelCache, decode, parallel, square
from headstart.data.images import ImageData, read_images, read_unlabeled_images
from headstart.data.labels import SINGLE
from headstart.data.options import IMAGE_ROLES, DataOptions
from headstart.errors import ConfigError, DataError
from headstart.loading import family_of
from headstart.metrics.classification import wilson
from headstart.metrics.divergence import kl_divergence
from headstart.progress import Progress
from headstart.recipe import Recipe
from headstart.registry import families
from headstart.tasks.base import Evaluation
from headstart.tasks.image_classification import LabelledImages, head_of, processor_side
from headstart.tasks.result import Result
from headstart.training.distill_settings import FUNCTION, Settings, TextSettings, teacher_function
from headstart.training.request import Request, absolute, check_free
from headstart.training.run import train
from headstart.training.teacher import Teacher, read_teacher, resized

TEXTS = "text-distillation"  # task of students that read texts
STUDENT = "student"  # folder in the result folder: a student given as a configuration
PROJECTION = "distillation_projection"  # module of the student while features are matched
CHUNK = 32  # images that the teacher sees together in an evaluation


class Distillation(LabelledImages):
    """Answers of a teacher for images; what it leaves is an image classifier."""

    name: ClassVar[str] = "distillation"
    column_roles: ClassVar[tuple[str, ...]] = IMAGE_ROLES
    option_names: ClassVar[tuple[str, ...]] = ("max_error", *Settings.names())

    def __init__(self, data: ImageData, options: DataOptions) -> None:
        self.settings = Settings.of(options.extra)
        self.teacher = self._read_teacher()
        self.labelled = self.settings.label_weight > 0
        if self.labelled:
            self._match_classes(data)
        super().__init__(data, options)
        self.side = 0  # of what the student sees; known from `build` on
        self.head: nn.Linear | None = None
        self.taught: dict[str, NDArray[np.float32]] = {}  # the teacher's logits (N, V) by split

    @property
    def headline(self) -> str:
        """See `Task.headline`."""
        return "agreement"

    @property
    def result_task(self) -> str:
        """See `Task.result_task`."""
        return "image-classification"

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`: with labels where they have a weight, else any images."""
        labelled = Settings.of(options.extra).label_weight > 0
        return cls((read_images if labelled else read_unlabeled_images)(path, options), options)

    def _read_teacher(self) -> Teacher:
        settings = self.settings
        function = teacher_function.get()
        if settings.teacher == FUNCTION and function is None:
            raise ConfigError(
                "the teacher of this run is a Python function; go on with it in Python:"
                " headstart.distill(function, …, resume=True)"
            )
        return read_teacher(settings.teacher if function is None else function)

    def _match_classes(self, data: ImageData) -> None:
        """Turns labels into positions among the teacher's classes, -1 where it has no such
        class.
        """
        if data.kind != SINGLE:
            raise DataError(
                "label_weight needs data with one class for each image; leave it out to distill"
                " without labels"
            )
        known = {name: i for i, name in reversed(list(enumerate(self.teacher.classes or [])))}
        positions = np.array([known.get(name, -1) for name in data.classes])
        if (positions < 0).all():
            names = ", ".join((self.teacher.classes or ["(no names)"])[:5])
            raise DataError(
                f"label_weight: no class of the data ({', '.join(data.classes[:5])}, …) is one of"
                f" the teacher's ({names}, …); leave it out to distill without labels"
            )
        for examples in data.splits.values():
            examples.labels = positions[examples.labels]
        unknown = [name for name in data.classes if name not in known]
        if unknown:
            data.notes.append(
                f"{len(unknown)} of {len(data.classes)} classes of the data are not the teacher's"
                f" ({', '.join(unknown[:5])}): their labels are not used"
            )

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of the images, and of the teacher."""
        whole = hashlib.sha256(super().fingerprint.encode())
        whole.update(self.teacher.key.encode())
        return whole.hexdigest()

    def _counts(self) -> NDArray[np.int64]:
        """None: a class of the teacher may be without images."""
        return np.zeros(0, dtype=np.int64)

    def _describe_labels(self) -> str:
        """See `LabelledImages.found`."""
        if not self.labelled:
            return "labels are not looked at"
        return f"{np.mean(self.targets('train') >= 0):.0%} of them with a class of the teacher's"

    def found(self) -> list[str]:
        """See `Task.found`."""
        settings = self.settings
        name = self.teacher.key if settings.teacher == FUNCTION else settings.teacher
        parts = [f"temperature {settings.temperature:g}"]
        for what in ("label_weight", "feature_weight"):
            if getattr(settings, what):
                parts.append(f"{what.replace('_', ' ')} {getattr(settings, what):g}")
        return [*super().found(), f"teacher {name}, {', '.join(parts)}"]

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`: the student, with a class for each of the teacher's."""
        _refuse(recipe, self.settings)
        self._probe()
        model = super().build(name, recipe, revision=revision)
        assert self.recipe.crop is not None
        self.side = self.recipe.crop
        # Views are cut from the image at the size of whoever sees more of it.
        teacher = self._teacher_side()
        larger = max(self.side, teacher) / self.side
        resize = self.recipe.resize
        self.recipe = replace(
            self.recipe,
            crop=max(self.side, teacher),
            resize=None if resize is None else round(resize * larger),
        )
        self._normalize_teacher()
        self.head = head_of(model)
        if self.settings.feature_weight:
            features = self.teacher(torch.zeros(1, 3, teacher, teacher))[1]
            if features is None:
                raise ConfigError(
                    "feature_weight needs a teacher that gives features: a checkpoint, or a"
                    " function that returns (logits, features)"
                )
            model.add_module(PROJECTION, nn.Linear(self.head.in_features, features.shape[1]))
        return model

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`: the student, which has the teacher's classes."""
        self._probe()
        model = super().attach(name)
        self.side, self.head = processor_side(self.processor) or 0, head_of(model)
        self._normalize_teacher()
        return model

    def _normalize_teacher(self) -> None:
        """Sets how the teacher's images are normalized, where it does not say itself."""
        self.teacher.mean = self.settings.teacher_mean or self.teacher.mean or self._own("mean")
        self.teacher.std = self.settings.teacher_std or self.teacher.std or self._own("std")

    def new_model(self, name: str, revision: str | None, overrides: dict[str, Any]) -> nn.Module:
        """See `LabelledImages.new_model`: perhaps randomly initialized."""
        if not self.settings.scratch:
            return super().new_model(name, revision, overrides)
        config = AutoConfig.from_pretrained(name, revision=revision, **overrides)
        model: nn.Module = AutoModelForImageClassification.from_config(config)
        return model

    def _probe(self) -> None:
        """Asks the teacher for its number of classes, and names them if nobody did."""
        side = self.settings.teacher_size or self.teacher.size or 64
        neutral = replace(self.teacher, mean=(0.5,) * 3, std=(0.5,) * 3)
        count = neutral(torch.zeros(1, 3, side, side))[0].shape[1]
        names = self.teacher.classes
        if names is None:
            names = [f"LABEL_{i}" for i in range(count)]
        if len(names) != count:
            raise ConfigError(
                f"the teacher has {len(names)} class names and {count} logits; they must be as many"
            )
        self.teacher.classes = self.data.classes = names

    def _own(self, what: str) -> tuple[float, ...]:
        """Mean or standard deviation of the student's image processor, for images in 0..1."""
        if not self.processor.do_normalize:
            return (0.0 if what == "mean" else 1.0,) * 3
        scale = self.processor.rescale_factor * 255
        return tuple(each / scale for each in getattr(self.processor, f"image_{what}"))

    def _teacher_side(self) -> int:
        return self.settings.teacher_size or self.teacher.size or self.side

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`: the map between the features is not the student's."""
        if self.settings.feature_weight:
            delattr(model, PROJECTION)

    # Training -------------------------------------------------------------------------------------

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: the same views for student (B, 3, S, S) and teacher, and targets (B,
        V).

        A target is the mixture of two labels; of a label that is not known, it is zero.
        """

        def part(which: slice | Tensor) -> tuple[Tensor, Tensor]:
            labels = batch["label"][which].to(device)
            known = (labels >= 0)[:, None] if self.labelled else torch.zeros_like(labels)[:, None]
            one_hot = F.one_hot(labels.clamp(min=0), len(self.data.classes)).float()
            return batch["image"][which].to(device, non_blocking=True).float(), one_hot * known

        views, targets = part(rows)  # (B, 3, S, S) in 0..255
        if "partner" in batch:
            portion = batch["portion"].to(device)
            others, other_targets = part(batch["partner"][rows])
            targets = torch.lerp(other_targets, targets, portion)
            if "box" in batch:
                top, left, bottom, right = batch["box"].tolist()
                views[..., top:bottom, left:right] = others[..., top:bottom, left:right]
            else:
                views = torch.lerp(others, views, portion)
        return {
            "pixel_values": self.normalize(resized(views, self.side)),
            "teacher_views": resized(views, self._teacher_side()) / 255,
            "targets": targets,
        }

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: T² KL(teacher ‖ student), and the losses of labels and features."""
        settings = self.settings
        taught, wanted = self.teacher(inputs["teacher_views"])  # (B, V), (B, D)
        assert self.head is not None
        with _inputs(self.head) as seen:
            logits = model(pixel_values=inputs["pixel_values"]).logits.float()  # (B, V)
        divergence = kl_divergence(logits, taught, settings.temperature).sum()
        agreement = (logits.detach().argmax(1) == taught.argmax(1)).sum()
        loss = divergence
        measures = {"kl": divergence.detach(), "agreement": agreement}
        if self.labelled:
            cross = -(inputs["targets"] * F.log_softmax(logits, 1)).sum()
            loss = loss + settings.label_weight * cross
        if settings.feature_weight:
            assert self.model is not None
            assert wanted is not None
            guess = getattr(self.model, PROJECTION)(seen[0]).float()  # (B, D)
            error = (guess - F.layer_norm(wanted, wanted.shape[1:])).square().mean(1).sum()
            loss = loss + settings.feature_weight * error
            measures["feature_error"] = error.detach()
        return loss, measures

    # Evaluation -----------------------------------------------------------------------------------

    def _teacher_logits(self, split: str, device: torch.device) -> NDArray[np.float32]:
        """The teacher's logits (N, V) for the whole images of a split, computed once."""
        if split not in self.taught:
            images = self.examples[split].images
            side = self._teacher_side()
            view = partial(square, side=side, resample=self.processor.resample)

            def pixels(index: int) -> NDArray[np.uint8]:
                return view(decode(images[index]))

            rows = []
            for start in range(0, len(images), CHUNK):
                chosen = range(start, min(start + CHUNK, len(images)))
                parts = np.stack(list(parallel(pixels, chosen, self.options.workers)))
                views = torch.from_numpy(parts).permute(0, 3, 1, 2).to(device).float() / 255
                rows.append(self.teacher(views)[0].cpu().numpy())
            self.taught[split] = np.concatenate(rows)
        return self.taught[split]

    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """See `Task.subset`."""
        part = super().subset(split, indices)
        part.taught.pop(split, None)
        return part

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`.

        `details` are logits (N, V), the teacher's, and labels if all are known.
        """
        cache: PixelCache = self.caches[split]
        taught = self._teacher_logits(split, device)
        rows = []
        for start in range(0, len(taught), CHUNK):
            images = np.stack([cache[i] for i in range(start, min(start + CHUNK, len(taught)))])
            pixels = self.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
            rows.append(model(pixel_values=pixels).logits.float().cpu().numpy())
        logits = np.concatenate(rows)  # (N, V)
        if not np.isfinite(logits).all():
            raise ConfigError(
                "the student's scores are not finite numbers: training diverged; try a smaller --lr"
            )
        same = int((logits.argmax(1) == taught.argmax(1)).sum())
        divergence = kl_divergence(torch.tensor(logits), torch.tensor(taught), 1.0)
        metrics = {"agreement": same / len(taught), "kl": float(divergence.mean())}
        details = {"logits": logits, "teacher_logits": taught}
        labels = self.targets(split)
        known = labels >= 0
        if self.labelled and known.any():
            for name, scores in (("accuracy", logits), ("teacher_accuracy", taught)):
                metrics[name] = float((scores.argmax(1) == labels)[known].mean())
            if known.all():
                details["labels"] = labels
        return Evaluation(split, len(taught), metrics, wilson(same, len(taught)), details)


@contextlib.contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block, what goes into a layer is kept, with its gradient's history."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _refuse(recipe: Recipe, settings: Settings) -> None:
    """Refuses recipe values that a distillation cannot honor."""
    if recipe.tune == "head":
        raise ConfigError("tune=head trains no student; leave it out of a distillation")
    if recipe.label_smoothing:
        raise ConfigError(
            f"label_smoothing={recipe.label_smoothing:g}: a distillation has no use for it, for the"
            " teacher's answers are soft already; set it to 0"
        )
    if recipe.class_weights != "none":
        raise ConfigError("class_weights: a distillation weighs all images alike; set it to none")
    if settings.feature_weight and (recipe.lora_rank or recipe.unfreeze):
        raise ConfigError(
            "feature_weight trains a map beside the student, which lora_rank and unfreeze would"
            " freeze; leave one of them out"
        )


def _student_folder(student: str | Path | PreTrainedConfig, out: Path) -> tuple[str, bool]:
    """The student's name, and whether it is a configuration without weights.

    A configuration is written into the result folder, where a resumed run finds it.
    """
    if isinstance(student, str | Path):
        if Path(student).suffix != ".json":
            return str(student), False
        student = AutoConfig.from_pretrained(student)
    assert isinstance(student, PreTrainedConfig)
    check_free(out, overwrite=False)
    student.save_pretrained(out / STUDENT)
    return str(out / STUDENT), True


def _check_same(
    out: Path, values: dict[str, Any], settings: type[Settings] | type[TextSettings]
) -> None:
    """Refuses settings that are not those of the run that is resumed."""
    kept = settings.of(Request.read(out).options["extra"])
    given = settings.of(absolute(values))
    for field in fields(settings):
        value = getattr(given, field.name)
        if value not in (field.default, getattr(kept, field.name)):
            raise ConfigError(
                f"the run in {out} has {field.name}={getattr(kept, field.name)}, not {value}; leave"
                " it out, or choose another --out"
            )


def distill(
    teacher: str | Path | Callable[[Tensor], Any],
    images: str | Path,
    *,
    student: str | Path | PreTrainedConfig | None = None,
    out: str | Path,
    scratch: bool = False,
    temperature: float | None = None,
    label_weight: float | None = None,
    feature_weight: float | None = None,
    teacher_size: int | None = None,
    teacher_mean: Sequence[float] | None = None,
    teacher_std: Sequence[float] | None = None,
    vector_weight: float | None = None,
    hidden_weight: float | None = None,
    mask_weight: float | None = None,
    tokenizer: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    columns: dict[str, str] | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    budget: str | float | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
    **recipe_values: Any,
) -> Result:
    """A small network that answers as a large one does, learned from images or texts without
    labels.

    Images: teacher and student see the same crop and the same MixUp of every image (function
    matching, Beyer et al. 2021), each at its own size and in its own normalization. Texts: linear
    maps of the student's hidden states predict the teacher's and its vector of the text, and the
    student guesses masked words.

    Args:
        teacher: A result folder, Hub id or authors' name of an image classifier, a folder that
            `headstart optimize` wrote, an ONNX (`.onnx`) or OpenVINO (`.xml`) file, or a function:
            it gets images (B, 3, S, S) and returns logits (B, V), (logits, features (B, D)), or an
            object with `logits`. For a student of texts a result folder or Hub id of a network that
            reads texts, or a function of a list of texts that returns vectors (B, T), or (vectors,
            states, offsets): of each text the hidden states (M, T) of its tokens, and their first
            and last (exclusive) characters (M, 2).
        images: Images or texts: everything that `headstart.train` reads, or images anywhere below a
            folder. Lines of text files, both texts of pairs, the words of CoNLL files, contexts and
            questions of SQuAD's.
        student: A checkpoint by name or folder; or a configuration (in Python, or a .json file),
            whose weights are randomly initialized. A YOSO learns from texts, the other families
            from images. Needed unless `resume`.
        out: Result folder; made if it does not exist.
        scratch: Take only the configuration of the checkpoint `student`.
        temperature: Divides the logits of both before they are compared; None is 1.
        label_weight: Weight of the cross-entropy of labels whose class the teacher has; None is 0,
            which reads no labels.
        feature_weight: Weight of the squared error of the teacher's last features, predicted by a
            linear map of the student's; needs a checkpoint or a function with features. None is 0.
        teacher_size: Side in pixels of what the teacher sees; None takes its processor's, else the
            student's.
        teacher_mean: Mean of each channel (of 0..1) that the teacher's images are normalized by;
            None takes its processor's or its file's, else the student's.
        teacher_std: Standard deviation likewise.
        vector_weight: Of texts: weight of the squared error of the teacher's vector of a text,
            predicted from the mean of the student's hidden states; None is 1.
        hidden_weight: Of texts: weight of the squared error of the teacher's hidden states, token
            by token; None is 1.
        mask_weight: Of texts: weight of the cross-entropy of masked words; None is 0.1, and 0 masks
            none and leaves a network without a head.
        tokenizer: Of texts: folder with the tokenizer of a student that is a configuration; None
            takes the teacher's.
        recipe: Name of a recipe in place of "distill", or of texts "distill-texts".
        config: YAML file of recipe values.
        resume: Continue the run in `out`; its settings are kept there.
        dry_run: Report what would be done, and stop.
        val_fraction: Proportion of the images or texts held out where the data has no validation
            split.
        skip_bad: Continue without unreadable images or texts.
        columns: Columns of a table by role, such as {"image": "file"}.
        validation: Further images to compare the student with the teacher on during training.
        test: Further images to compare the result with the teacher on.
        device: "cpu", "cuda", …; None takes the best available.
        workers: Threads that read and decode.
        budget: Time that everything may take, such as "10m"; the recipe is shortened to fit.
        tensorboard: Also write the metrics for TensorBoard.
        progress: Where progress is shown; None shows it in notebooks and is silent elsewhere.
        **recipe_values: Any value of `headstart.recipe.Recipe`, such as `steps=20000`, `crop=128`.

    Returns:
        The result, with agreement and KL divergence on held-out images; its folder is an image
        classifier. Of texts with `cka` (how alike the vectors of student and teacher are, from 0 to
        1) and `masked_accuracy`; its folder is a network for masked words, which every text task
        can start from.

    Raises:
        ConfigError: A setting that cannot be honored, or a teacher that is not of this kind.
        DataError: The images cannot be read, or their labels are not the teacher's.
        TrainingInterrupted: A signal stopped the run; a checkpoint was written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from headstart import BitConfig, distill
        >>> folder = tempfile.mkdtemp()
        >>> noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        >>> np.savez(f"{folder}/images.npz", images=noise)
        >>> student = BitConfig(embedding_size=8, hidden_sizes=[32], depths=[1], num_groups=8)
        >>> made = distill("bit-mini", f"{folder}/images.npz", student=student, out=f"{folder}/out",
        ...                steps=2, batch_size=4, crop=32)
        >>> sorted(made.metrics)
        ['agreement', 'kl']
    """
    out = Path(out)
    for_images = {
        "temperature": temperature,
        "label_weight": label_weight,
        "feature_weight": feature_weight,
        "teacher_size": teacher_size,
        "teacher_mean": None if teacher_mean is None else list(teacher_mean),
        "teacher_std": None if teacher_std is None else list(teacher_std),
    }
    for_texts = {
        "vector_weight": vector_weight,
        "hidden_weight": hidden_weight,
        "mask_weight": mask_weight,
        "tokenizer": None if tokenizer is None else str(tokenizer),
    }
    texts = _saved_task(out) == TEXTS if resume else _learns_from_texts(student, images)
    of_images = {name: recipe_values.get(name) for name in ("crop", "resize", "mixup", "cutmix")}
    _refuse_others(for_images | of_images if texts else for_texts, texts)
    values = {k: v for k, v in (for_texts if texts else for_images).items() if v is not None}
    values |= {"teacher": FUNCTION if callable(teacher) else str(teacher), "scratch": scratch}
    values.pop("tokenizer", None)
    if resume:
        if tokenizer is not None:
            raise ConfigError(f"the run in {out} has its tokenizer; leave tokenizer out")
        _check_same(out, values, TextSettings if texts else Settings)
        name = str(student) if isinstance(student, str | Path) else None
    else:
        assert student is not None
        name, random = _student_folder(student, out)
        values["scratch"] = scratch or random
        if texts:
            _place_tokenizer(teacher, tokenizer, out, random)
    usual = "distill-texts" if texts else "distill"
    given = teacher_function.set(teacher if callable(teacher) else None)
    try:
        return train(
            images,
            model=name,
            out=out,
            task=TEXTS if texts else "distillation",
            recipe=None if resume else recipe or usual,
            config=config,
            resume=resume,
            dry_run=dry_run,
            val_fraction=val_fraction,
            skip_bad=skip_bad,
            columns=columns,
            validation=validation,
            test=test,
            task_options=values,
            device=device,
            workers=workers,
            budget=budget,
            tensorboard=tensorboard,
            progress=progress,
            **recipe_values,
        )
    finally:
        teacher_function.reset(given)


def _learns_from_texts(student: str | Path | PreTrainedConfig | None, images: str | Path) -> bool:
    """Whether the student of a new run is a network of texts; the data must fit it."""
    if student is None:
        raise ConfigError("which student? Give --student NAME, or a configuration in a .json file")
    texts = _reads_text(student)
    if not texts and Path(images).suffix.lower() == ".txt":
        raise ConfigError(
            f"{images} holds texts, and the student {student} learns from images; give a YOSO as"
            " student=, or images"
        )
    return texts


def _saved_task(out: Path) -> str:
    """The task of the run in a folder."""
    return Request.read(out).task


def _reads_text(student: str | Path | PreTrainedConfig) -> bool:
    """Whether a student is a network of texts."""
    if isinstance(student, PreTrainedConfig):
        return families()[student.model_type].reads_text
    if Path(student).suffix == ".json":
        return _reads_text(AutoConfig.from_pretrained(student))
    return family_of(student)[0].reads_text


def _refuse_others(values: dict[str, Any], texts: bool) -> None:
    """Refuses options of the other kind of distillation."""
    for name, value in values.items():
        if value is not None:
            kind, other = ("texts", "images") if texts else ("images", "texts")
            raise ConfigError(
                f"{name}={value} is for students of {other}, and this one reads {kind}; leave it"
                " out"
            )


def _place_tokenizer(
    teacher: str | Path | Callable[..., Any],
    tokenizer: str | Path | None,
    out: Path,
    configuration: bool,
) -> None:
    """Puts a tokenizer beside a student that is a configuration: that given, or the teacher's."""
    if not configuration:
        if tokenizer is not None:
            raise ConfigError(
                f"tokenizer={tokenizer}: this student has its own; give one only with a"
                " configuration"
            )
        return
    source = teacher if tokenizer is None else tokenizer
    if callable(source):
        raise ConfigError(
            "which tokenizer? The student is a configuration and the teacher a function; give"
            " tokenizer=, a folder that holds one"
        )
    AutoTokenizer.from_pretrained(source).save_pretrained(out / STUDENT)
