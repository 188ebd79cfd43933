"""LoRA (Hu et al. 2021) by peft.

Small matrices are trained beside weights that stay as they are, and are added to them at the end.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from headstart.errors import ConfigError, MissingExtraError
from headstart.recipe import Recipe
from headstart.registry import families

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
except ImportError:
    raise MissingExtraError("peft", "lora") from None

ADAPTER = "default"  # peft's own name


class ConvLora(nn.Module, LoraLayer):  # type: ignore[misc]
    """LoRA of a convolution, added to the filters before the layer uses them.

    peft's own adds the outputs of two convolutions, which is something else where a layer changes
    its filters first, as BiT's does: the matrices could not be merged into the filters afterwards.
    """

    # What peft gives the class, which has no types of its own.
    r: Any
    lora_alpha: Any
    lora_dropout: Any
    lora_bias: Any
    lora_A: Any  # noqa: N815
    lora_B: Any  # noqa: N815
    scaling: Any
    active_adapters: Any
    merged_adapters: Any
    get_base_layer: Any
    reset_lora_parameters: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(
        self,
        base_layer: nn.Conv2d,
        adapter_name: str,
        config: Any,
        r: int,
        lora_alpha: float,
        **_: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: float, config: Any, **_: Any
    ) -> None:
        """Makes the matrices: A (r, filter) and B (filters, r), B zero."""
        filters = self.get_base_layer().weight
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = (
            r,
            lora_alpha,
            lora_alpha / r,
        )
        self.lora_dropout[adapter_name], self.lora_bias[adapter_name] = nn.Identity(), False
        self.lora_A[adapter_name] = nn.Linear(filters[0].numel(), r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, len(filters), bias=False)
        self.reset_lora_parameters(adapter_name, True)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What is added to the filters, of their shape."""
        product = self.lora_B[adapter].weight @ self.lora_A[adapter].weight  # (C_out, C_in * k * k)
        change: Tensor = product.view_as(self.get_base_layer().weight) * self.scaling[adapter]
        return change

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the change to the filters for good."""
        self.get_base_layer().weight.data += self.get_delta_weight(ADAPTER)
        self.merged_adapters.append(ADAPTER)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, H, W) → (B, C_out, H', W')."""
        layer = self.get_base_layer()
        out: Tensor = functional_call(
            layer, {"weight": layer.weight + self.get_delta_weight(ADAPTER)}, (x,)
        )
        return out


def add_lora(model: Any, recipe: Recipe) -> None:
    """Gives the layers that the recipe names their matrices; those, and a new head, are all that is
    trained.

    Raises:
        ConfigError: No layer of that name, or dropout before a convolution.
    """
    assert recipe.lora_rank is not None
    heads: tuple[str, ...] = getattr(model, "heads", ())
    wanted = recipe.lora_targets or families()[model.config.model_type].lora
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not _inside(name, heads)
    }
    chosen = [
        name for name in layers if any(name == each or name.endswith("." + each) for each in wanted)
    ]
    if missing := [
        each
        for each in wanted
        if not any(name == each or name.endswith("." + each) for name in chosen)
    ]:
        known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        raise ConfigError(
            f"lora_targets: no layer is called {' or '.join(map(repr, missing))}; layers are called"
            f" {known}"
        )
    if recipe.lora_dropout and any(isinstance(layers[name], nn.Conv2d) for name in chosen):
        raise ConfigError(
            "lora_dropout is for linear layers; LoRA of a convolution changes its filters, before"
            " which there is no input"
        )
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        target_modules=chosen,
    )
    config._register_custom_module({nn.Conv2d: ConvLora})
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if _inside(name, heads):
            parameter.requires_grad_(True)


def _inside(name: str, heads: tuple[str, ...]) -> bool:
    return any(name == head or name.startswith(head + ".") for head in heads)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Adds the matrices to their weights, so that the model is of plain layers again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
