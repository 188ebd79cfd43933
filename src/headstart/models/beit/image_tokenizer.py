"""The image tokenizer of BEiT's pretraining: the discrete VAE of DALL-E (Ramesh et al. 2021), which
turns an image into visual codes.

A network of strided groups gives every 8x8 square of an image one of V codes; a second network
paints an image from codes.

Letters: B images, H W sides of an image, h w = H/8 W/8 sides of its code map, V codes, C channels.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.checkpoint import read_tensors, write_tensors
from headstart.checkpoint.names import NameTable
from headstart.errors import ConfigError, InputError, NotFoundError, WeightsError

GROUPS = 4
STRIDE = 8  # pixels a code stands for, along each side: the groups halve the image three times
MARGIN = 0.1  # pixels are mapped to 0.1..0.9, so that the decoder's sigmoid can reach all of them
# of the groups, in units of `hidden_size`
ENCODER_WIDTHS, DECODER_WIDTHS = (1, 2, 4, 8), (8, 4, 2, 1)
ENCODER_KERNELS, DECODER_KERNELS = (3, 3, 3, 1), (1, 3, 3, 3)  # of a block's convolutions

# What OpenAI published (modified MIT licence). The hashes of the files are not known to us.
PUBLISHED = {
    "dall-e": (
        "https://cdn.openai.com/dall-e/encoder.pkl",
        "https://cdn.openai.com/dall-e/decoder.pkl",
    )
}


class Block(nn.Module):
    """Four convolutions beside a shortcut.

    `gain` shrinks what they add, so that a deep network starts out near the identity.
    """

    def __init__(
        self, channels: int, out_channels: int, hidden: int, kernels: tuple[int, ...], gain: float
    ) -> None:
        super().__init__()
        self.gain = gain
        sizes = [channels, hidden, hidden, hidden, out_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2)
            for i, o, k in zip(sizes[:-1], sizes[1:], kernels, strict=True)
        )
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out_channels, H, W)."""
        y = x
        for conv in self.convs:
            y = conv(F.relu(y))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.gain * y  # (B, out_channels, H, W)


class Coder(nn.Module):
    """Encoder or decoder.

    A stem, four groups of blocks between which the image shrinks or grows, and a head.
    """

    def __init__(
        self,
        channels: int,
        stem: int,
        widths: tuple[int, ...],
        out_channels: int,
        *,
        blocks: int,
        grows: bool,
        kernel: int,
    ) -> None:
        super().__init__()
        self.grows = grows
        kernels = DECODER_KERNELS if grows else ENCODER_KERNELS
        gain = 1 / (GROUPS * blocks) ** 2
        self.stem = nn.Conv2d(channels, stem, kernel, padding=kernel // 2)
        self.groups = nn.ModuleList(
            nn.ModuleList(
                Block(before if i == 0 else width, width, width // 4, kernels, gain)
                for i in range(blocks)
            )
            for before, width in zip((stem, *widths[:-1]), widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out_channels, …).

        Sides times 1/8 in an encoder, times 8 in a decoder.
        """
        return self.after_stem(self.stem(x))

    def after_stem(self, x: Tensor) -> Tensor:
        """`forward` from the stem's features (B, C, H, W) on."""
        for number, group in enumerate(self.groups):
            for block in group:  # type: ignore[attr-defined]
                x = block(x)
            if number + 1 < GROUPS:  # not after the last
                x = (
                    F.interpolate(x, scale_factor=2.0, mode="nearest")
                    if self.grows
                    else F.max_pool2d(x, 2)
                )
        head: Tensor = self.head(F.relu(x))
        return head


class DalleImageTokenizer(nn.Module):
    """Turns images into maps of visual codes, and codes back into images.

    Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1.

    Args:
        vocab_size: Number of codes.
        hidden_size: Channels of the encoder's first group and the decoder's last.
        blocks_per_group: Blocks in each of the four groups.
        decoder_init_size: Channels that the decoder starts with; None leaves the decoder out.

    Raises:
        ConfigError: Sizes that no network can have.

    Example:
        >>> import torch
        >>> from headstart import DalleImageTokenizer
        >>> tokenizer = DalleImageTokenizer(
        ...     vocab_size=16, hidden_size=8, blocks_per_group=1, decoder_init_size=8
        ... )
        >>> codes = tokenizer.encode(torch.rand(2, 3, 112, 112))
        >>> codes.shape, tokenizer.decode(codes).shape
        (torch.Size([2, 14, 14]), torch.Size([2, 3, 112, 112]))
    """

    stride: ClassVar[int] = STRIDE
    published: ClassVar[Mapping[str, tuple[str, str]]] = PUBLISHED

    def __init__(
        self,
        vocab_size: int = 8192,
        hidden_size: int = 256,
        blocks_per_group: int = 2,
        decoder_init_size: int | None = 128,
    ) -> None:
        super().__init__()
        if min(vocab_size, blocks_per_group) < 1 or hidden_size < 4 or hidden_size % 4:
            raise ConfigError(
                f"vocab_size={vocab_size}, hidden_size={hidden_size},"
                f" blocks_per_group={blocks_per_group}; each must be at least 1, and hidden_size a"
                " multiple of 4"
            )
        self.vocab_size, self.blocks_per_group = vocab_size, blocks_per_group
        widths = tuple(hidden_size * w for w in ENCODER_WIDTHS)
        self.encoder = Coder(
            3, hidden_size, widths, vocab_size, blocks=blocks_per_group, grows=False, kernel=7
        )
        self.decoder: Coder | None = None
        if decoder_init_size is not None:
            widths = tuple(hidden_size * w for w in DECODER_WIDTHS)
            # Mean and log spread of each color: the logit-Laplace distribution of DALL-E's paper.
            self.decoder = Coder(
                vocab_size,
                decoder_init_size,
                widths,
                6,
                blocks=blocks_per_group,
                grows=True,
                kernel=1,
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes normal weights of deviation 1/sqrt(inputs), as in DALL-E, and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    # Codes ----------------------------------------------------------------------------------------

    @staticmethod
    def map_pixels(images: Tensor) -> Tensor:
        """Pixels 0..1 as the encoder takes them: 0.1..0.9."""
        if not images.is_floating_point():
            raise InputError(
                f"images are {images.dtype}; expected floating-point pixels from 0 to 1"
            )
        return images * (1 - 2 * MARGIN) + MARGIN

    @staticmethod
    def unmap_pixels(images: Tensor) -> Tensor:
        """The inverse of `map_pixels`, clamped to 0..1."""
        return ((images - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every code: (B, V, h, w), of images (B, 3, H, W) in 0..1."""
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] % STRIDE
            or images.shape[3] % STRIDE
            or not images.numel()
        ):
            raise InputError(
                f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) with H and W"
                f" multiples of {STRIDE}"
            )
        logits: Tensor = self.encoder(self.map_pixels(images))  # (B, V, h, w)
        return logits

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The code of every 8x8 square.

        Args:
            images: (B, 3, H, W), from 0 to 1.

        Returns:
            (B, h, w), int64.

        Raises:
            InputError: Values outside 0 to 1, such as normalized or 8-bit ones.
        """
        logits: Tensor = self(images)  # (B, V, h, w)
        if not bool(((images >= 0) & (images <= 1)).all()):  # NaN is refused as well
            raise InputError(
                f"images go from {float(images.min()):.4g} to {float(images.max()):.4g}; expected"
                " 0 to 1 (do_rescale=True, do_normalize=False of an image processor)"
            )
        return logits.argmax(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The images that codes stand for.

        Args:
            codes: (B, h, w), integers from 0 to V - 1.

        Returns:
            (B, 3, 8h, 8w), from 0 to 1.

        Raises:
            ConfigError: The tokenizer was loaded without its decoder.
            InputError: Codes of another shape, type or range.
        """
        decoder = self._decoder()
        if codes.ndim != 3 or codes.is_floating_point():
            raise InputError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}; expected integers of shape"
                " (B, h, w)"
            )
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.vocab_size):
            raise InputError(
                f"codes go from {int(codes.min())} to {int(codes.max())}; expected 0 to"
                f" {self.vocab_size - 1}"
            )
        # A 1x1 convolution of one-hot codes, without writing out the V - 1 zeros of each.
        x = F.embedding(codes, decoder.stem.weight[:, :, 0, 0].T)  # (B, h, w, C)
        x = x + decoder.stem.bias  # type: ignore[operator]  # this convolution has a bias
        return self.paint(decoder.after_stem(x.permute(0, 3, 1, 2)))  # (B, 3, H, W)

    def expected_image(self, probabilities: Tensor) -> Tensor:
        """The distribution of pixels given probabilities of codes, for training.

        Args:
            probabilities: (B, V, h, w), from 0 to 1; each position sums to 1.

        Returns:
            Means and log scales of each color, (B, 6, 8h, 8w).
        """
        scores: Tensor = self._decoder()(probabilities)
        return scores

    @classmethod
    def paint(cls, scores: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1 from the decoder's output (B, 6, H, W)."""
        return cls.unmap_pixels(scores[:, :3].sigmoid())

    def _decoder(self) -> Coder:
        if self.decoder is None:
            raise ConfigError(
                "this tokenizer was loaded without its decoder; put decoder.pkl beside encoder.pkl"
                " and load it again"
            )
        return self.decoder

    # Files ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dall-e",
        *,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **hub: Any,
    ) -> Self:
        """A tokenizer with the weights of a file, in evaluation mode.

        Its sizes follow from the shapes of the tensors.

        Args:
            name_or_path: "dall-e" for OpenAI's (about 400 MB), a folder that `save_pretrained`
                wrote or that holds `encoder.pkl` (and `decoder.pkl`), such a file itself, or a Hub
                id. No code of a file is run.
            cache_dir: Where downloads are kept.
            local_files_only: Take only what is on disk.
            **hub: `revision` and `token` for the Hub.

        Raises:
            HubError: Nothing of that name can be found or fetched.
            FileFormatError: A file is damaged, unsafe or of an unknown format.
            WeightsError: The tensors are not those of a DALL-E encoder or decoder.
        """
        files = _find_files(
            name_or_path, cache_dir=cache_dir, local_files_only=local_files_only, **hub
        )
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= _with_part(read_tensors(file), str(file))
        return cls._of_tensors(tensors, str(name_or_path))

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, Tensor], name: str) -> Self:
        with torch.device("meta"):
            model = cls(**_sizes(tensors, name))
        own = model.state_dict()
        found, missing, unknown = name_table(model.blocks_per_group).to_ours(tensors, own)
        unknown = sorted(
            {*unknown}
            | {key for key in tensors if key.startswith("decoder.") and model.decoder is None}
        )
        wrong = [
            f"{key} is {tuple(found[key].shape)}, not {tuple(own[key].shape)}"
            for key in found
            if found[key].shape != own[key].shape
        ]
        if missing or unknown or wrong:
            lines = [
                *(f"missing: {key}" for key in missing),
                *(f"unexpected: {key}" for key in unknown),
                *wrong,
            ]
            raise WeightsError("\n  ".join([f"{name} is not a DALL-E tokenizer:", *lines]))
        model.load_state_dict({key: value.float() for key, value in found.items()}, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors`: OpenAI's names behind `encoder.` and `decoder.`."""
        state = {key: value.detach() for key, value in self.state_dict().items()}
        write_tensors(folder, name_table(self.blocks_per_group).to_theirs(state))


def name_table(blocks: int) -> NameTable:
    """Our names ↔ OpenAI's, which count from one."""
    rows: dict[str, str | tuple[str, ...] | Any] = {}
    for part in ("encoder", "decoder"):
        for leaf, theirs in (("weight", "w"), ("bias", "b")):
            rows[f"{part}.stem.{leaf}"] = f"{part}.blocks.input.{theirs}"
            rows[f"{part}.head.{leaf}"] = f"{part}.blocks.output.conv.{theirs}"
            for group in range(GROUPS):
                for block in range(blocks):
                    ours, path = (
                        f"{part}.groups.{group}.{block}",
                        f"{part}.blocks.group_{group + 1}.block_{block + 1}",
                    )
                    rows[f"{ours}.shortcut.{leaf}"] = f"{path}.id_path.{theirs}"
                    rows |= {
                        f"{ours}.convs.{i}.{leaf}": f"{path}.res_path.conv_{i + 1}.{theirs}"
                        for i in range(4)
                    }
    return NameTable(rows)


def _sizes(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What the constructor needs to know, from shapes."""
    stem, head = tensors.get("encoder.blocks.input.w"), tensors.get("encoder.blocks.output.conv.w")
    if stem is None or head is None or stem.ndim != 4 or head.ndim != 4:
        raise WeightsError(
            f"{name} is not a DALL-E tokenizer: it has no encoder.blocks.input.w and"
            " encoder.blocks.output.conv.w of four axes"
        )
    blocks = [
        int(found[1])
        for key in tensors
        if (found := re.match(r"encoder\.blocks\.group_1\.block_(\d{1,4})\.", key))
    ]
    start = tensors.get("decoder.blocks.input.w")
    return {
        "vocab_size": head.shape[0],
        "hidden_size": stem.shape[0],
        "blocks_per_group": max(blocks, default=1),
        "decoder_init_size": None if start is None else start.shape[0],
    }


def _with_part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors with the prefix `encoder.` or `decoder.`.

    The files of encoder and decoder have the same names, but only an encoder has a wide stem.
    """
    if any(key.startswith("encoder.") for key in tensors):
        return dict(tensors)
    stem = tensors.get("blocks.input.w")
    if stem is None or stem.ndim != 4:
        raise WeightsError(
            f"{name} is not a DALL-E encoder or decoder: it has no blocks.input.w of four axes"
        )
    part = "encoder" if stem.shape[-1] > 1 else "decoder"
    return {f"{part}.{key}": value for key, value in tensors.items()}


def _find_files(
    name: str | Path, *, cache_dir: str | Path | None, local_files_only: bool, **hub: Any
) -> list[Path]:
    """The files of a tokenizer.

    One with both networks, or the encoder's and (where there is one) the decoder's.
    """
    from headstart.hub.download import Download, download
    from headstart.hub.resolve import resolve_file

    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return [path / "model.safetensors"]
        encoders = sorted(
            p
            for p in path.iterdir()
            if p.name.startswith("encoder") and p.suffix in (".pkl", ".pt", ".pth", ".safetensors")
        )
        if not encoders:
            raise NotFoundError(
                f"{path} holds no tokenizer; looked for model.safetensors and encoder.pkl"
            )
        path = encoders[0]
    if path.is_file():
        beside = path.with_name(path.name.replace("encoder", "decoder"))
        return [path, *([beside] if beside != path and beside.is_file() else [])]
    if str(name) in PUBLISHED:
        return [
            download(Download(url), cache_dir=cache_dir, local_files_only=local_files_only)
            for url in PUBLISHED[str(name)]
        ]
    file = resolve_file(
        str(name),
        "model.safetensors",
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        **hub,
    )
    assert file is not None  # only an optional file can be
    return [file]
