"""DALL-E's image tokenizer: OpenAI's numbers, files that run no code, round trips."""

import io
import json
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import ROOT, assert_close, golden_dir
from headstart import DalleImageTokenizer
from headstart.errors import (
    ConfigError,
    FileFormatError,
    InputError,
    NotFoundError,
    OfflineError,
    WeightsError,
)

CASES = ["encoder_tiny", "encoder_nonsquare"]


def load_case(case):
    folder = golden_dir("authors", "dalle", case)
    return (
        folder,
        load_file(folder / "inputs.safetensors")["image"],
        load_file(folder / "outputs.safetensors"),
    )


@pytest.mark.parametrize("case", CASES)
def test_encoder_gives_the_authors_codes(case):
    folder, image, expected = load_case(case)
    tokenizer = DalleImageTokenizer.from_pretrained(folder / "encoder_state_dict.pt")
    features = {}
    for i, group in enumerate(tokenizer.encoder.groups):
        group[-1].register_forward_hook(lambda _m, _i, out, i=i: features.update({i: out}))
    with torch.no_grad():
        logits = tokenizer(image)
    assert_close(tokenizer.map_pixels(image), expected["map_pixels"], 1e-6)
    assert_close(
        tokenizer.unmap_pixels(tokenizer.map_pixels(image)), expected["unmap_pixels"], 1e-6
    )
    assert_close(features[3], expected["blocks.group_4"], 1e-5)
    assert_close(logits, expected["logits"], 1e-5)
    assert torch.equal(tokenizer.encode(image), expected["codes"])


def test_pickled_modules_and_decoder():
    folder, image, expected = load_case("encoder_tiny")
    tokenizer = DalleImageTokenizer.from_pretrained(folder / "encoder.pkl")
    assert torch.equal(tokenizer.encode(image), expected["codes"])
    both = DalleImageTokenizer.from_pretrained(folder / "encoder_state_dict.pt")
    one_hot = torch.nn.functional.one_hot(expected["codes"], 32).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        assert_close(both.expected_image(one_hot), expected["decoder_output"], 1e-5)
    assert_close(both.decode(expected["codes"]), expected["reconstruction"], 1e-5)


def test_round_trip_through_safetensors(tmp_path):
    folder, image, expected = load_case("encoder_tiny")
    DalleImageTokenizer.from_pretrained(folder / "encoder_state_dict.pt").save_pretrained(tmp_path)
    assert "encoder.blocks.group_2.block_1.id_path.w" in load_file(tmp_path / "model.safetensors")
    again = DalleImageTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(image), expected["codes"])
    assert_close(again.decode(expected["codes"]), expected["reconstruction"], 1e-5)
    assert not again.training


def test_a_folder_of_the_authors_files(tmp_path):
    folder, image, expected = load_case("encoder_tiny")
    shutil.copy(folder / "encoder.pkl", tmp_path)
    alone = DalleImageTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"decoder\.pkl beside"):
        alone.decode(expected["codes"])
    shutil.copy(folder / "decoder_state_dict.pt", tmp_path / "decoder.pkl")
    assert_close(
        DalleImageTokenizer.from_pretrained(tmp_path).decode(expected["codes"]),
        expected["reconstruction"],
        1e-5,
    )


def test_the_published_name_uses_openais_addresses(tmp_path):
    folder, image, expected = load_case("encoder_tiny")
    with pytest.raises(OfflineError, match=r"cdn\.openai\.com/dall-e/encoder\.pkl"):
        DalleImageTokenizer.from_pretrained("dall-e", cache_dir=tmp_path, local_files_only=True)
    cached = tmp_path / "headstart" / "cdn.openai.com" / "dall-e"
    cached.mkdir(parents=True)
    shutil.copy(folder / "encoder.pkl", cached / "encoder.pkl")
    shutil.copy(folder / "decoder_state_dict.pt", cached / "decoder.pkl")
    tokenizer = DalleImageTokenizer.from_pretrained(
        "dall-e", cache_dir=tmp_path, local_files_only=True
    )
    assert torch.equal(tokenizer.encode(image), expected["codes"]) and tokenizer.decoder is not None


def test_published_size():
    """Parameters of OpenAI's two networks, counted from their description.

    Four groups of two blocks, 256 channels, 8,192 codes.
    """
    with torch.device("meta"):
        tokenizer = DalleImageTokenizer()

    def conv(i, o, k):
        return i * o * k * k + o

    def count(widths, start, kernels):
        total = 0
        for before, width in zip((start, *widths[:-1]), widths, strict=True):
            for i in (before, width):
                sizes = (i, width // 4, width // 4, width // 4, width)
                total += sum(
                    conv(a, b, k) for a, b, k in zip(sizes[:-1], sizes[1:], kernels, strict=True)
                )
                total += conv(i, width, 1) if i != width else 0
        return total

    encoder = (
        conv(3, 256, 7) + count((256, 512, 1024, 2048), 256, (3, 3, 3, 1)) + conv(2048, 8192, 1)
    )
    decoder = (
        conv(8192, 128, 1) + count((2048, 1024, 512, 256), 128, (1, 3, 3, 3)) + conv(256, 6, 1)
    )
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) == encoder
    assert sum(p.numel() for p in tokenizer.decoder.parameters()) == decoder


def test_a_fresh_tokenizer_learns():
    torch.manual_seed(0)
    tokenizer = DalleImageTokenizer(
        vocab_size=12, hidden_size=8, blocks_per_group=1, decoder_init_size=8
    )
    shares = tokenizer(torch.rand(2, 3, 24, 16)).softmax(1)  # (2, 12, 3, 2)
    tokenizer.paint(tokenizer.expected_image(shares)).mean().backward()
    # the log spreads (last three channels) do not appear in the image; everything else must have
    # a gradient
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(1, 3, 20, 24), "multiples of 8"),
        (torch.zeros(3, 24, 24), r"\(3, 24, 24\)"),
        (torch.zeros(1, 1, 24, 24), "expected"),
        (torch.zeros(1, 3, 24, 24, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 24, 24), -0.5), r"from -0.5 to -0.5; expected 0 to 1"),
        (torch.full((1, 3, 24, 24), 255.0), "from 255 to 255"),
    ],
)
def test_bad_images(images, message):
    tokenizer = DalleImageTokenizer(
        vocab_size=4, hidden_size=4, blocks_per_group=1, decoder_init_size=4
    )
    with pytest.raises(InputError, match=message):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.tensor([[[4]]]), "expected 0 to 3"),
        (torch.tensor([[[-1]]]), "-1"),
        (torch.zeros(1, 2, 2), "float"),
    ],
)
def test_bad_codes(codes, message):
    tokenizer = DalleImageTokenizer(
        vocab_size=4, hidden_size=4, blocks_per_group=1, decoder_init_size=4
    )
    with pytest.raises(InputError, match=message):
        tokenizer.decode(codes)


def test_bad_sizes():
    with pytest.raises(ConfigError, match="hidden_size=6"):
        DalleImageTokenizer(hidden_size=6)


def test_files_of_something_else(tmp_path):
    with pytest.raises(NotFoundError, match=r"encoder\.pkl"):
        DalleImageTokenizer.from_pretrained(tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "encoder.pt")
    with pytest.raises(WeightsError, match=r"blocks\.input\.w"):
        DalleImageTokenizer.from_pretrained(tmp_path)
    good = DalleImageTokenizer(
        vocab_size=4, hidden_size=4, blocks_per_group=1, decoder_init_size=None
    )
    good.save_pretrained(tmp_path / "good")
    tensors = load_file(tmp_path / "good" / "model.safetensors")
    tensors["encoder.blocks.group_3.block_1.res_path.conv_2.w"] = torch.zeros(1)
    del tensors["encoder.blocks.output.conv.b"]
    torch.save(tensors | {"extra": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(
        WeightsError,
        match=(
            r"missing: encoder\.head\.bias\n.*unexpected:"
            r" extra\n.*groups\.2\.0\.convs\.1\.weight is"
        ),
    ):
        DalleImageTokenizer.from_pretrained(tmp_path / "wrong.pt")


# Malicious files ----------------------------------------------------------------------------------

touched: list[str] = []


def touch(word: str) -> dict:
    """What a malicious pickle would call."""
    touched.append(word)
    return {}


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class HidesInState:
    """An object whose state is made by a call."""

    def __getstate__(self):
        return {"_modules": Calls(touch, "state"), "_parameters": {}}


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", Calls(touch, "persistent"), "0", "cpu", 1) if value == "here" else None


def persistent_bytes() -> bytes:
    buffer = io.BytesIO()
    Persistent(buffer).dump({"w": "here"})
    return buffer.getvalue()


ATTACKS = {
    "call": lambda: pickle.dumps({"blocks.input.w": Calls(touch, "call")}),
    "system": lambda: pickle.dumps(Calls(__import__("os").system, "true")),
    "eval": lambda: pickle.dumps(Calls(eval, "touched.append('eval')")),
    "getattr": lambda: pickle.dumps(Calls(getattr, touch, "__globals__")),
    "import": lambda: pickle.dumps(Calls(__import__, "antigravity")),
    "state": lambda: pickle.dumps(HidesInState()),
    "torch.load": lambda: pickle.dumps(Calls(torch.load, "elsewhere.pt")),
    "persistent": persistent_bytes,
    # protocol 0 instruction INST, which makes an object of any class
    "instance opcode": lambda: b"(S'true'\nios\nsystem\n.",
    "object opcode": lambda: b"\x80\x02(cos\nsystem\nS'true'\no.",
    "extension registry": lambda: b"\x80\x02\x82\x01.",
    "reduce of a rebuilt tensor": lambda: (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\ncos\nsystem\nX\x04\x00\x00\x00true\x85R\x85R."
    ),
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("container", ["plain", "zip"])
def test_malicious_pickles_are_refused_and_run_nothing(
    tmp_path: Path, name, container, monkeypatch
):
    touched.clear()
    path = tmp_path / "encoder.pkl"
    data = ATTACKS[name]()
    if container == "plain":
        path.write_bytes(data)
    else:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
    monkeypatch.setattr("os.system", lambda command: touched.append(command))
    with pytest.raises(FileFormatError):
        DalleImageTokenizer.from_pretrained(path)
    assert not touched


def test_the_attacks_are_real():
    """Python's own unpickler runs them: otherwise the test above would show nothing."""
    touched.clear()
    pickle.loads(ATTACKS["call"]())
    pickle.loads(ATTACKS["state"]())
    assert touched == ["call", "state"]


def test_the_example_trains_a_tokenizer_that_loads(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        noise = (
            np.random.default_rng(i)
            .integers(0, 256, (3, 4, 3))
            .repeat(10, 0)
            .repeat(10, 1)
            .astype(np.uint8)
        )
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
    options = [
        "--size",
        "24",
        "--crop",
        "16",
        "--codes",
        "8",
        "--hidden-size",
        "8",
        "--steps",
        "10",
        "--batch-size",
        "4",
    ]
    monkeypatch.setattr(
        sys, "argv", ["train_dvae.py", str(tmp_path / "photos"), str(tmp_path / "out"), *options]
    )
    runpy.run_path(str(ROOT / "examples" / "train_dvae.py"), run_name="__main__")
    lines = [
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")
    ]
    assert len(lines) == 10 and lines[-1]["rmse"] < 128 and 1 <= lines[-1]["codes_in_use"] <= 8
    tokenizer = DalleImageTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.vocab_size == 8 and tokenizer.encode(torch.rand(1, 3, 24, 40)).shape == (
        1,
        3,
        5,
    )
    with Image.open(tmp_path / "out" / "reconstructions.png") as image:
        assert image.size == (2 * 12 * 24, 2 * 2 * 24)
