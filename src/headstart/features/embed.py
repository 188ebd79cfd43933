"""Embeddings: one vector an image or text, written as they come.

The vector of a classifier is what goes into its last layer; of any other network it is the pooled
last hidden state (of texts the mean over the tokens).

Letters: B images or texts, L tokens, D features.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoImageProcessor, AutoTokenizer
from headstart.data.embeddings import IMAGE_COLUMNS, TEXT_COLUMNS, Embeddings, read_embeddings
from headstart.data.inputs import ImageInput, image_inputs
from headstart.data.passes import forward_passes
from headstart.data.predictions import attempt, computed, in_batches, once_a_file
from headstart.data.results import EMBEDDING_SUFFIXES, ResultTable, remaining, vector_text
from headstart.data.sources.raw import Lazy, take
from headstart.data.text_files import read_inputs
from headstart.errors import ConfigError, InputError
from headstart.features.extract import model_key
from headstart.loading import family_of
from headstart.nn.hooks import inputs_of
from headstart.pipelines.base import batched, is_one_image, refuse_random_weights
from headstart.pipelines.features import FeatureExtractionPipeline
from headstart.progress import Progress, Silent

Floats = NDArray[np.float32]
ROW = 512  # bytes of an embedded image beside its vector, about
TEXTS = 8  # in one forward pass, by default
CLASSIFIERS = ("image-classification", "text-classification")


class Embedder:
    """A network that gives vectors.

    Args:
        model: A result folder, a Hub id or an authors' name.
        device: Where to compute; None is the CPU.
        long: What becomes of texts above the maximum length: "refuse", "cut" or "extend".

    Attributes:
        reads_text: Whether inputs are texts.
        key: Hash of weights, configuration and preprocessing: vectors of equal keys are comparable.
        width: Length of a vector.

    Raises:
        ConfigError: The checkpoint lacks weights.
    """

    def __init__(self, model: str | Path, device: Any = None, long: str = "refuse") -> None:
        family, values = family_of(model)
        self.name, self.reads_text, self.long = str(model), family.reads_text, long
        classifiers = {family.tasks.get(task) for task in CLASSIFIERS} - {None}
        named = next((x for x in values.get("architectures") or [] if x in classifiers), None)
        # what an engine computes does not include the input of the last layer
        self.network: Any = family.load(named or family.tasks["base"]).from_pretrained(
            model, optimized=False
        )
        self.layer = _last_layer(self.network) if named else None
        if named and self.layer is None:  # without classes
            base = family.load(family.tasks["base"])
            self.network = base.from_pretrained(model, optimized=False)
        refuse_random_weights(self.network, self.name)
        self.network.to(device or "cpu").eval()
        loader = AutoTokenizer if self.reads_text else AutoImageProcessor
        self.processor: Any = loader.from_pretrained(model)
        what = {"features": "pooled" if self.layer is None else "last layer"}
        if self.reads_text:
            if long not in ("refuse", "cut", "extend"):
                raise ConfigError(f"long={long!r}; expected refuse, cut or extend")
            cut, extend = long == "cut", long == "extend"
            self.texts = FeatureExtractionPipeline(
                self.network, tokenizer=self.processor, truncation=cut, extend_positions=extend
            )
            self.texts.ways_out = ("--long cut", "--long extend")
            self.key = model_key(self.network, {"texts": "token ids", **what})
            self.width = len(self.of_texts(["a"], ["text 1"])[0])
        else:
            self.key = model_key(self.network, {**self.processor.to_dict(), **what})
            black = np.zeros((64, 64, 3), dtype=np.uint8)
            self.width = len(self.of_images([self.pixel_values(black)])[0])

    @property
    def facts(self) -> dict[str, str]:
        """What a file of these vectors records."""
        return {"model": self.name, "key": self.key, "width": str(self.width)}

    def pixel_values(self, image: Any) -> Tensor:
        """What the network sees of one image: (1, 3, H, W)."""
        values: Tensor = self.processor(image, return_tensors="pt")["pixel_values"]
        return values

    def of_images(self, parts: Sequence[Tensor]) -> Floats:
        """Vectors (B, D) of images that `pixel_values` prepared."""
        same = len({part.shape for part in parts}) == 1
        batches = [torch.cat(list(parts))] if same else parts
        return np.concatenate([self._compute({"pixel_values": batch}) for batch in batches])

    def of_texts(self, texts: Sequence[str], names: Sequence[str]) -> Floats:
        """Vectors (B, D) of texts; `names` are how messages call them."""
        batch = self.texts.encode(list(texts), list(names))
        return self._compute({key: batch[key] for key in ("input_ids", "attention_mask")})

    @torch.inference_mode()
    def _compute(self, inputs: Mapping[str, Tensor]) -> Floats:
        network = self.network
        placed = {key: value.to(network.device) for key, value in inputs.items()}
        if "pixel_values" in placed:
            placed["pixel_values"] = placed["pixel_values"].to(network.dtype)
        if self.layer is None:
            vectors = _pooled(network(**placed), placed.get("attention_mask"))
        else:
            with inputs_of(self.layer) as seen:
                network(**placed)
            vectors = seen[0]
        found: Floats = vectors.float().cpu().numpy()
        return found


def _last_layer(network: nn.Module) -> nn.Linear | None:
    """The linear layer that scores the classes, or None where a classifier has none."""
    config: Any = network.config
    layers = [each for each in network.modules() if isinstance(each, nn.Linear)]
    fits = [each for each in layers if each.out_features == config.num_labels]
    return fits[-1] if fits else None


def _pooled(out: Any, mask: Tensor | None) -> Tensor:
    """The pooled vectors (B, D) of a network's output.

    Args:
        out: Its named output.
        mask: (B, L), 1 keeps a token; None of images.
    """
    hidden: Tensor = out.last_hidden_state
    if mask is not None:
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    for name in ("pooler_output", "cls_token_value"):
        if out.get(name) is not None:
            pooled: Tensor = out[name].flatten(1)
            return pooled
    return hidden.flatten(2).mean(2)  # (B, D, H, W) → (B, D)


@dataclass(frozen=True)
class Embedded:
    """The vector of one input.

    Args:
        name: How the user knows the input.
        vector: (D,), or None where the image cannot be read.
        error: Why.
        content: A text itself.
    """

    name: str
    vector: Floats | None
    error: str = ""
    content: str = ""


def image_vectors(
    embedder: Embedder,
    inputs: Sequence[ImageInput],
    batch_size: int | None,
    workers: int | None = None,
) -> Iterator[Embedded]:
    """The vector of each image, in order; reading and preprocessing overlap with the network."""

    def results(rows: Sequence[int]) -> Iterator[Embedded]:
        return _image_vectors(embedder, take(inputs, rows), batch_size, workers)

    return once_a_file(inputs, results, 4 * embedder.width + ROW)


def _image_vectors(
    embedder: Embedder, inputs: Sequence[ImageInput], batch_size: int | None, workers: int | None
) -> Iterator[Embedded]:
    """As `image_vectors`, of inputs that are each a file of their own."""
    ready = attempt(lambda each: embedder.pixel_values(each.pixels()), inputs, workers)
    for batch in forward_passes(
        lambda batch: computed(embedder.of_images, batch),
        in_batches(inputs, ready, batch_size),
        embedder.network,
    ):
        for each, found in batch:
            if isinstance(found, InputError):
                yield Embedded(each.name, None, str(found))
            else:
                yield Embedded(each.name, found)


def text_vectors(
    embedder: Embedder, inputs: Sequence[tuple[str, str]], batch_size: int | None
) -> Iterator[Embedded]:
    """The vector of each named text, in order."""
    for batch in batched(inputs, TEXTS if batch_size is None else batch_size):
        names, texts = [name for name, _ in batch], [text for _, text in batch]
        for name, text, vector in zip(names, texts, embedder.of_texts(texts, names), strict=True):
            yield Embedded(name, vector, content=text)


def vectors_of(
    embedder: Embedder, inputs: Sequence[Any], batch_size: int | None, workers: int | None = None
) -> Iterator[Embedded]:
    """The vector of each `ImageInput`, or of each pair of name and text, in order."""
    if embedder.reads_text:
        return text_vectors(embedder, inputs, batch_size)
    return image_vectors(embedder, inputs, batch_size, workers)


def write_embeddings(
    embedder: Embedder,
    inputs: Sequence[Any],
    out: Path,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the vectors of images or texts to a file; a run that was cut off can be continued.

    Args:
        embedder: The network.
        inputs: `ImageInput`s, or pairs of name and text.
        out: A Parquet or .npz file.
        batch_size: Images or texts in one forward pass; None takes 8 texts, 8 images of 224 x 224
            pixels, or up to 64 smaller ones.
        workers: Threads that read and preprocess images.
        resume: Continue a file.
        progress: Shows what is done.

    Returns:
        How many images cannot be read.
    """
    show = progress or Silent()
    columns = TEXT_COLUMNS if embedder.reads_text else IMAGE_COLUMNS
    name = (lambda i: inputs[i][0]) if embedder.reads_text else (lambda i: inputs[i].name)
    names = Lazy(name, range(len(inputs)))
    unit = "texts" if embedder.reads_text else "img"
    facts = embedder.facts | ({"long": embedder.long} if embedder.reads_text else {})
    with ResultTable(
        out, columns, resume=resume, facts=facts, suffixes=EMBEDDING_SUFFIXES
    ) as table:
        first, began, lost = remaining(table, names), time.perf_counter(), table.lost
        if first < len(names):
            show.start("embed", len(names), done=first, unit=unit)
            found = vectors_of(embedder, inputs[first:], batch_size, workers)
            for done, each in enumerate(found, start=first + 1):
                vector = None if each.vector is None else vector_text(each.vector)
                row = {"path": each.name, "error": each.error or None, "features": vector}
                table.write(row | {"text": each.name, "content": each.content})
                if each.error:
                    lost += 1
                    show.report(f"headstart: {each.error}")
                show.update(done, {}, (done - first) / (time.perf_counter() - began))
        table.finish()
    return lost


def embed(
    model: str | Path,
    inputs: Any = (),
    *,
    texts: Sequence[str] = (),
    out: str | Path | None = None,
    batch_size: int | None = None,
    device: Any = None,
    workers: int | None = None,
    long: str = "refuse",
    resume: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Vectors of images or texts, to search, cluster or classify with.

    Args:
        model: A result folder, a Hub id or an authors' name. The vector of a classifier is what
            goes into its last layer; of any other network the pooled last hidden state.
        inputs: Path, or list of paths: images, folders, globs, tables of paths, tars; for a text
            model text files and tables. Also arrays (H, W, 3) of uint8.
        texts: Texts themselves, for a text model.
        out: A file that ends in .parquet or .npz, written row by row; None keeps all in memory.
        batch_size: Images or texts in one forward pass; None takes 8 texts, 8 images of 224 x 224
            pixels, or up to 64 smaller ones.
        device: Where to compute; None is the CPU.
        workers: Threads that read and preprocess images.
        long: What becomes of texts above the maximum length: "refuse", "cut" or "extend".
        resume: Continue the file of a run that was cut off.
        progress: Shows what is done.

    Returns:
        `names` and `features`, (N, D) float32 in the order of the inputs; rows of images that
        cannot be read are NaN, with the reason in `errors`.

    Raises:
        InputError: No inputs, a path that does not exist, or a text that is too long.
        ConfigError: The checkpoint lacks weights.

    Example:
        >>> import numpy
        >>> from headstart import embed
        >>> found = embed("bit-mini", [numpy.zeros((64, 64, 3), dtype="uint8")] * 2)
        >>> len(found.names), found.features.shape[0], found.features.dtype.name
        (2, 2, 'float32')
    """
    embedder = Embedder(model, device, long)
    given = inputs_for(embedder, inputs, texts)
    if out is not None:
        write_embeddings(
            embedder,
            given,
            Path(out),
            batch_size=batch_size,
            workers=workers,
            resume=resume,
            progress=progress,
        )
        return read_embeddings(Path(out))
    if resume:
        raise ConfigError("resume=True continues a file: give its name with out=")
    found = list(vectors_of(embedder, given, batch_size, workers))
    missing = np.full(embedder.width, np.nan, dtype=np.float32)
    return Embeddings(
        [each.name for each in found],
        np.stack([missing if each.vector is None else each.vector for each in found]),
        embedder.name,
        embedder.key,
        [each.error for each in found],
        [each.content for each in found] if embedder.reads_text else [],
    )


def inputs_for(
    embedder: Embedder, inputs: Any, texts: Sequence[str] = (), by_line: bool = False
) -> Sequence[Any]:
    """What a network is to embed: `ImageInput`s, or pairs of name and text.

    Args:
        embedder: The network.
        inputs: A path or array, or a list of them.
        texts: Texts themselves.
        by_line: Each line of a text file is a text.

    Raises:
        InputError: No inputs, texts for a network of images, arrays for one of texts, or pairs of
            texts.
    """
    every = [inputs] if is_one_image(inputs) else list(inputs)
    arrays = [i for i, each in enumerate(every) if not isinstance(each, str | Path)]
    if embedder.reads_text:
        if arrays:
            raise InputError(f"{embedder.name} reads texts; got {type(every[arrays[0]]).__name__}")
        paths = [Path(each) for each in every]
        found = read_inputs("text-classification", paths, list(texts), None, by_line)
        for name, text in found:
            if not isinstance(text, str):
                raise InputError(f"{name} is a pair of texts; expected one text")
        return found
    if texts or by_line:
        raise InputError(f"{embedder.name} reads images; texts are for a text model")
    if not arrays:
        return image_inputs([Path(each) for each in every])
    return [
        item
        for i, each in enumerate(every)
        for item in (
            [ImageInput(f"image {i + 1}", np.asarray(each, dtype=np.uint8))]
            if i in arrays
            else image_inputs([Path(each)])
        )
    ]
