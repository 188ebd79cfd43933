"""Checks of what a call gives a network.

Shapes: B images, C channels, H W height and width, A heads.
"""

from torch import Tensor

from headstart.errors import InputError
from headstart.nn.kept import traced


def expand_head_mask(mask: Tensor | None, layers: int, heads: int) -> Tensor | None:
    """A mask of every layer's heads (layers, A) from (A,) or (layers, A); None stays.

    Raises:
        InputError: Another shape.
    """
    if mask is None:
        return None
    if mask.shape not in ((heads,), (layers, heads)):
        raise InputError(
            f"head_mask has shape {tuple(mask.shape)}; expected ({heads},) or ({layers}, {heads}):"
            " one number a head, 1 keeps"
        )
    return mask.expand(layers, heads)


def check_pixels(pixel_values: Tensor | None, channels: int, smallest: int = 1) -> Tensor:
    """The images (B, C, H, W) of a call.

    Args:
        pixel_values: What the caller gave.
        channels: C.
        smallest: The least height and width that the network can take.

    Raises:
        InputError: None or no tensor given, another number of axes or channels, not
            floating-point, or too small.
    """
    if pixel_values is None:
        raise InputError(
            "no pixel_values given; pass a (batch, channels, height, width) tensor, such as an"
            " image processor returns"
        )
    if not isinstance(pixel_values, Tensor):
        kind = type(pixel_values).__name__
        raise InputError(
            f"pixel_values is a {kind}; expected a tensor, such as an image processor returns with"
            ' return_tensors="pt"'
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise InputError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, {channels},"
            " height, width)"
        )
    if not pixel_values.is_floating_point():
        raise InputError(
            f"pixel_values is {pixel_values.dtype}; expected floating-point values, such as an"
            " image processor returns"
        )
    if not traced() and min(pixel_values.shape[2:]) < smallest:
        raise InputError(
            f"images of {tuple(pixel_values.shape[2:])} are too small for this network; its"
            f" smallest height and width are {smallest} pixels"
        )
    return pixel_values
