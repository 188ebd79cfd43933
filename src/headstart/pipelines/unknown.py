"""`unknown.safetensors`: what the training examples look like to the network, to tell whether a new
one is of any of their classes.

Training finds the values (`headstart.features.unknown`), prediction reads them here.

Letters: B new examples, V classes, D features, R coordinates.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from headstart.checkpoint import atomic_write, read_tensors
from headstart.errors import ConfigError

FILE = "unknown.safetensors"
LEVEL = 0.05  # p-value below which an example is refused: 5 % of the known ones are
MOST = {"classes": 1 << 16, "coordinates": 256, "distances": 16384, "features": 1 << 16}


@dataclass(frozen=True)
class Reference:
    """Classes in coordinates in which the examples of a class vary alike in all directions.

    Args:
        mean: Features in the middle of all training examples, (D,).
        basis: Takes centered features to the coordinates, (R, D).
        centers: Mean of the training examples of each class in the coordinates, (V, R).
        distances: Distances of examples that they were found without, (M,), ascending.
    """

    mean: Tensor
    basis: Tensor
    centers: Tensor
    distances: Tensor

    def distances_of(self, features: Tensor) -> Tensor:
        """Distance (B,) of features (B, D) to the center of the nearest class (Mahalanobis')."""
        coordinates = (features - self.mean) @ self.basis.T  # (B, R)
        return torch.cdist(coordinates, self.centers).amin(dim=1)

    def p_values(self, features: Tensor) -> Tensor:
        """How often an example of the known classes is at least as far from them.

        Args:
            features: (B, D).

        Returns:
            (B,), above 0 and at most 1. Of new examples of the known classes, a fraction of at most
            p has one of at most p.
        """
        count = len(self.distances)
        nearer = torch.searchsorted(self.distances, self.distances_of(features))
        return (1 + count - nearer) / (1 + count)

    def write(self, folder: Path) -> None:
        """Writes `unknown.safetensors`."""
        tensors = {each.name: getattr(self, each.name).contiguous() for each in fields(self)}
        atomic_write(folder / FILE, save(tensors))

    @classmethod
    def read(cls, folder: str | Path) -> "Reference | None":
        """The values of a result folder; None where it has none.

        Raises:
            ConfigError: The file holds something else.
            FileFormatError: The file is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        tensors = read_tensors(path)
        names = [each.name for each in fields(cls)]
        if sorted(tensors) != sorted(names):
            raise ConfigError(f"{path} holds {', '.join(sorted(tensors))}; expected {names}")
        found = cls(**{name: torch.as_tensor(tensors[name]) for name in names})
        found.check(path)
        return found

    def check(self, path: Path) -> None:
        """Refuses shapes that do not fit, or are larger than any that training writes.

        Raises:
            ConfigError: With the file and what is wrong.
        """
        for name, dimensions in (("mean", 1), ("basis", 2), ("centers", 2), ("distances", 1)):
            value = getattr(self, name)
            if value.ndim != dimensions or value.dtype != torch.float32 or not value.numel():
                raise ConfigError(f"{path}: {name} is {value.dtype} {tuple(value.shape)}")
            if not value.isfinite().all():
                raise ConfigError(f"{path}: {name} is not finite")
        width, (count, coordinates) = len(self.mean), self.centers.shape
        sizes = {"features": width, "classes": count, "coordinates": coordinates}
        sizes["distances"] = len(self.distances)
        large = [name for name in sizes if sizes[name] > MOST[name]]
        if large:
            name = large[0]
            raise ConfigError(f"{path} has {sizes[name]} {name}; expected at most {MOST[name]}")
        if self.basis.shape != (coordinates, width):
            raise ConfigError(f"{path}: the basis is {tuple(self.basis.shape)}")
        if (self.distances.diff() < 0).any():
            raise ConfigError(f"{path}: distances are not ascending")


def head_of(model: nn.Module, outputs: int) -> nn.Linear | None:
    """The linear layer that gives the scores; None of a network that an engine runs."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return next((each for each in reversed(layers) if each.out_features == outputs), None)
