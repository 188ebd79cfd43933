"""The base of the PyTorch networks of every family: their methods, loading and saving.

Building blocks are in `headstart.nn.layers`, checks of inputs in `headstart.nn.checks`, losses in
`headstart.nn.losses`.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headstart import outputs
from headstart.checkpoint.names import PublishedNames
from headstart.config import Compat, PreTrainedConfig
from headstart.errors import ConfigError, WeightsError
from headstart.hub.options import split_hub, within
from headstart.hub.push import check_upload, push_saved, upload_saved
from headstart.nn.kept import forget
from headstart.nn.pretrained import (
    check_keywords,
    fresh_message,
    misfit_message,
    prefix_message,
    read_config,
    save_network,
    unused_message,
)
from headstart.nn.weights import NoInit, as_dtype, dispatched, set_tensor
from headstart.registry import load_marked, refuse_saved_code

logger = logging.getLogger("headstart")

for _cls in outputs.output_classes():  # so that torch.export and FSDP see the tensors inside
    torch.utils._pytree.register_pytree_node(
        _cls,
        lambda out: (list(out.values()), (type(out), list(out.keys()))),
        lambda values, context: context[0](**dict(zip(context[1], values, strict=True))),
        serialized_type_name=f"headstart.outputs.{_cls.__name__}",
        to_dumpable_context=lambda context: [context[0].__name__, context[1]],
        from_dumpable_context=lambda context: (getattr(outputs, context[0]), context[1]),
    )


class PreTrainedModel(nn.Module):
    """Base of every network: loading, saving, and the methods that all networks have.

    A family's base class sets the class attributes; a network sets `heads`, the prefixes of names
    that a checkpoint may lack.

    Args:
        config: The family's configuration.

    Example:
        >>> import tempfile
        >>> from headstart import BitConfig, BitModel
        >>> config = BitConfig(embedding_size=8, hidden_sizes=[16], depths=[1], num_groups=4)
        >>> model = BitModel(config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     again = BitModel.from_pretrained(folder)
        >>> again.num_parameters() == model.num_parameters()
        True
    """

    config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "pixel_values"
    heads: ClassVar[tuple[str, ...]] = ()
    is_parallelizable: ClassVar[bool] = False  # over devices by a method of its own
    config: Any
    # Parameters of a loaded network that its checkpoint does not hold.
    randomly_initialized: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a"
                f" {type(config).__name__}"
            )
        self.config = config
        self.gradient_checkpointing = False
        self._not_checkpointed: set[nn.Module] = set()
        self._checkpointing: dict[str, Any] = {"use_reentrant": False}
        self._name_or_path = ""

    # What a family fills in

    @classmethod
    def name_table(cls, config: Any) -> PublishedNames:
        """What published files of the family may hold (see `PublishedNames`)."""
        return PublishedNames(cls.base_model_prefix)

    def init_module(self, module: nn.Module) -> None:
        """Gives the parameters that a module itself holds (not its children) their initial
        values.
        """
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]

    def _init_weights(self, module: nn.Module) -> None:
        """`init_module`, under the name that subclasses written for transformers override."""
        self.init_module(module)

    def tie_weights(self) -> None:
        """Makes parameters that are one tensor share it again."""

    def post_init(self) -> None:
        """Initializes the parameters; the last line of every network's constructor."""
        if not any(p.is_meta for p in self.parameters()):
            with torch.no_grad():
                for module in self.modules():
                    self._init_weights(module)
        self.tie_weights()
        if vars(self.config).pop("gradient_checkpointing", False):  # how older code asks for it
            self.gradient_checkpointing_enable()

    init_weights = post_init

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation; values cached between calls are dropped."""
        forget(self)
        return super().train(mode)

    # Properties

    @property
    def base_model(self) -> nn.Module:
        """The network without its head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the floating-point parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights, shared ones counted once.

        Args:
            only_trainable: Count those that need gradients alone.
            exclude_embeddings: Leave out the tables of `nn.Embedding`.
        """
        tables = {
            id(module.weight)
            for module in self.modules()
            if exclude_embeddings and isinstance(module, nn.Embedding)
        }
        return sum(
            p.numel()
            for p in self.parameters()
            if (p.requires_grad or not only_trainable) and id(p) not in tables
        )

    @property
    def num_labels(self) -> int:
        """Number of classes of the head."""
        return int(self.config.num_labels)

    @property
    def name_or_path(self) -> str:
        """Where the weights came from; empty where they were made here."""
        return self._name_or_path

    @property
    def framework(self) -> str:
        """ "pt", as transformers calls PyTorch."""
        return "pt"

    @classmethod
    def can_generate(cls) -> bool:
        """False: none of the families generates text."""
        return False

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers unless `return_buffers` is false."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in tensors)

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Number of values in the main input of a batch."""
        main = input_dict.get(self.main_input_name)
        return 0 if main is None else int(main.numel())

    def floating_point_ops(
        self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True
    ) -> int:
        """Operations of a training step as 6 x inputs x parameters (Kaplan et al. 2020)."""
        count = self.num_parameters(exclude_embeddings=exclude_embeddings)
        return 6 * self.estimate_tokens(input_dict) * count

    def get_input_embeddings(self) -> nn.Module:
        """The module that the inputs go through first.

        Raises:
            NotImplementedError: The family has no embeddings (BiT, CvT).
        """
        embeddings = getattr(self.base_model, "embeddings", None)
        for name in ("word_embeddings", "patch_embeddings"):
            if embeddings is not None and hasattr(embeddings, name):
                return getattr(embeddings, name)
        raise NotImplementedError(f"{type(self).__name__} has no input embeddings")

    def set_input_embeddings(self, value: Any) -> None:
        """Replaces the module of the input embeddings."""
        old = self.get_input_embeddings()
        embeddings: Any = self.base_model.embeddings
        name = next(name for name, child in embeddings.named_children() if child is old)
        setattr(embeddings, name, value)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of a language model's scores; None for other networks."""
        return None

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Puts a module in the place of the output embeddings.

        Raises:
            NotImplementedError: The network has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no output embeddings")

    def prune_heads(self, heads_to_prune: Mapping[int, Any]) -> None:
        """Refuses: attention heads are never removed. An empty mapping is nothing to do.

        Raises:
            ConfigError: Some heads are to be removed.
        """
        if heads_to_prune:
            raise ConfigError(
                f"prune_heads({dict(heads_to_prune)!r:.80}): removing attention heads is not"
                " supported; pass head_mask= to silence them"
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> NoReturn:
        """Refuses: no code is saved with a checkpoint.

        Raises:
            ConfigError: Always; `AutoModel.register` is the alternative.
        """
        refuse_saved_code(cls.__name__, auto_class)

    def enable_input_require_grads(self) -> None:
        """Makes the outputs of the input embeddings need gradients, as adapters under gradient
        checkpointing require.
        """
        self.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Always true."""
        return True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return any(getattr(m, "gradient_checkpointing", False) for m in self.modules())

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int | None = None,
    ) -> None:
        """Recomputes blocks in the backward pass instead of keeping what they computed.

        Args:
            gradient_checkpointing_kwargs: Of `torch.utils.checkpoint.checkpoint`.
            every_n_layers: Recompute the first of every so many blocks; None is every block.
        """
        if every_n_layers is not None and every_n_layers < 1:
            raise ConfigError(f"every_n_layers={every_n_layers}; expected at least 1")
        lists = [m for m in self.modules() if isinstance(m, nn.ModuleList)]
        blocks = [block for each in lists for block in each if not _holds_list(block)]
        skipped = {b for i, b in enumerate(blocks) if i % (every_n_layers or 1)}
        self._set_checkpointing(True, skipped, gradient_checkpointing_kwargs or {})

    def gradient_checkpointing_disable(self) -> None:
        """Keeps what each block computed, as usual."""
        self._set_checkpointing(False, set(), {})

    def _set_checkpointing(
        self, value: bool, skipped: set[nn.Module], kwargs: Mapping[str, Any]
    ) -> None:
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing = value
                module._not_checkpointed = skipped
                module._checkpointing = {"use_reentrant": False, **kwargs}

    def run_block(self, block: Callable[..., Any], *args: Any) -> Any:
        """`block(*args)`, checkpointed if gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and block not in self._not_checkpointed:
            return checkpoint(block, *args, **self._checkpointing)
        return block(*args)

    def wants(self, name: str, value: bool | None) -> bool:
        """An output flag of a call, or the configuration's where it is None."""
        return bool(getattr(self.config, name)) if value is None else value

    def read(
        self, see: Callable[[Tensor | None], tuple[Tensor, Any]], pixel_values: Tensor | None
    ) -> tuple[Tensor, Any]:
        """What the classifier reads of images, (B, D), and the other outputs of the network.

        Args:
            see: Gives both for images (B, C, H, W).
            pixel_values: The images. Where the configuration says so, what is read is averaged
                with that of their mirror images.
        """
        pooled, out = see(pixel_values)
        if self.config.average_mirrored and pixel_values is not None:
            pooled = (pooled + see(pixel_values.flip(3))[0]) / 2
        return pooled, out

    def finish(self, output: outputs.ModelOutput, return_dict: bool | None) -> Any:
        """The output as the caller wants it: named, or a tuple (`return_dict=False`)."""
        named = self.config.use_return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    # Loading

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """A network with randomly initialized weights, as transformers' Auto classes make one."""
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        _, others = split_hub(kwargs)
        check_keywords(cls.config_class, others)
        return cls(config.from_dict(config.to_dict(), **others) if others else config).to(
            as_dtype(dtype or "auto")
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes the names that `state_dict()` gives, also under the prefix of a wrapper
        ("module."), and with or without the base model's own.

        Args:
            state_dict: Name → tensor.
            strict: Refuse missing and unexpected names.
            assign: Take the tensors themselves, as `nn.Module.load_state_dict` does.
        """
        own = self.state_dict(keep_vars=True)
        given: dict[str, Any] = dict(state_dict)
        if not given.keys() <= own.keys():
            names = self.name_table(self.config)
            if lead := names.lead(given, own):
                logger.info("%s", prefix_message("state_dict", type(self).__name__, lead))
            renamed = names.spelled(given, own)
            found = {name: given.pop(key) for name, key in renamed.items()}
            given = found | given
        # A shared tensor may be there under one of its names only.
        values = {id(own[name]): given[name] for name in own if name in given}
        given |= {k: values[id(v)] for k, v in own.items() if k not in given and id(v) in values}
        result = super().load_state_dict(given, strict=strict, assign=assign)
        self.tie_weights()
        return result

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: PreTrainedConfig | str | Path | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        compat: Compat | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        optimized: bool | None = None,
        strict: bool = False,
        device_map: Any = None,
        **config_overrides: Any,
    ) -> Any:
        """A network with the weights of a checkpoint, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, a file of any format, a Hub id, or an authors'
                name (`headstart models` lists them); None with `config` and `state_dict`.
            config: A configuration to use instead of the checkpoint's: itself, its file or folder.
            state_dict: Tensors to take instead of the checkpoint's.
            revision: Branch, tag or commit on the Hub.
            subfolder: Where in a local folder the checkpoint lies.
            cache_dir: Where downloads are kept; default the Hub's cache.
            token: Token of the Hub; default the one stored or in `HF_TOKEN`.
            local_files_only: Take only what is on disk.
            dtype: Type of the weights; default float32, "auto" is the file's.
            torch_dtype: Older name of `dtype`.
            device: Where to put the weights; default the CPU.
            compat: Whose arithmetic: "authors" or "transformers"; None follows
                `headstart.config.resolve_compat`.
            ignore_mismatched_sizes: Initialize parameters randomly whose shape differs in the file.
            output_loading_info: Also return what was missing, unexpected or of another shape.
            optimized: False loads the network itself from a folder that `headstart.optimize` made;
                by default its optimized form is loaded, unless another argument is given too.
            strict: Refuse tensors in the checkpoint that the network has no use for, which are
                otherwise left out with a warning.
            device_map: Where accelerate puts the modules: "auto", a device, or a dictionary.
            **config_overrides: Values of the configuration that win over the checkpoint's, such as
                `num_labels=10`.

        Raises:
            TypeError: A keyword that is neither an argument nor a configuration value.
            HubError: The name could not be turned into files (see its subclasses).
            FileFormatError: A file is damaged, unsafe or of an unknown format.
            WeightsError: The tensors do not fit the network; all misfits are listed.
        """
        from headstart.loading import load_checkpoint

        others = (
            config,
            dtype,
            torch_dtype,
            device,
            compat,
            ignore_mismatched_sizes,
            output_loading_info,
            config_overrides,
            strict,
            device_map,
            state_dict,
        )
        if optimized is not False and not any(others):
            marked = load_marked(within(pretrained_model_name_or_path or "", subfolder), cls)
            if marked is not None:
                return marked
        hub: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
        }
        older, config_overrides = split_hub(config_overrides)
        hub |= older
        check_keywords(cls.config_class, config_overrides)
        name = within(pretrained_model_name_or_path or "", subfolder)
        given = read_config(cls.config_class, config, hub, name)
        if state_dict is None:
            made, tensors = load_checkpoint(
                name, cls.config_class, given, compat, config_overrides, hub
            )
        else:
            if given is None:
                given = cls.config_class.from_pretrained(name, compat=compat, **hub)
            made, tensors = given.from_dict(given.to_dict(), **config_overrides), dict(state_dict)
        dtype = torch_dtype if dtype is None else dtype
        wanted = as_dtype(torch.float32 if dtype is None else dtype)
        with torch.device("meta"), NoInit():
            model = cls(made)
        resized = ignore_mismatched_sizes or bool(
            {"num_labels", "id2label"} & set(config_overrides)
        )
        info = model._assign(
            tensors, str(name), ignore_mismatched_sizes, resized, device or "cpu", wanted, strict
        )
        model._name_or_path = str(name)
        model.eval()
        if device_map is not None:
            model = dispatched(model, device_map)
        return (model, info) if output_loading_info else model

    def _assign(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        any_size: bool,
        head_size: bool,
        device: torch.device | str,
        dtype: torch.dtype | None,
        strict: bool,
    ) -> dict[str, list[Any]]:
        """Gives a network on the meta device its tensors.

        A head that the file lacks is randomly initialized, what does not fit raises.
        """
        own = self.state_dict(keep_vars=True)
        names = self.name_table(self.config)
        found, missing, unknown = names.to_ours(tensors, own)
        if lead := names.lead(tensors, own):
            logger.warning("%s", prefix_message(name, type(self).__name__, lead))
        # A parameter of two names is taken under either.
        shared = {id(own[n]): tensor for n, tensor in reversed(found.items())}
        found |= {n: shared[id(own[n])] for n in missing if id(own[n]) in shared}
        missing = [n for n in missing if n not in found]
        misfits = [
            (n, tuple(t.shape), tuple(own[n].shape))
            for n, t in found.items()
            if t.shape != own[n].shape
        ]
        allowed = [n for n, _, _ in misfits if any_size or (head_size and self.is_head(n))]
        for key in allowed:
            del found[key]
        lost = [n for n in missing if not self.is_head(n)]
        wrong = [each for each in misfits if each[0] not in allowed]
        if lost or wrong or (unknown and strict):
            raise WeightsError(misfit_message(name, type(self).__name__, lost, unknown, wrong))
        if unknown:
            logger.warning("%s", unused_message(name, type(self).__name__, unknown))
        for key, tensor in found.items():
            to = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            set_tensor(self, key, tensor.to(device, to))
        self._make_missing(device, dtype or torch.float32)
        self.tie_weights()
        fresh = sorted({*missing, *allowed})
        self.randomly_initialized = tuple(fresh)
        if fresh:
            logger.warning("%s", fresh_message(name, fresh))
        return {
            "missing_keys": missing,
            "unexpected_keys": unknown,
            "mismatched_keys": misfits,
            "error_msgs": [],
        }

    def is_head(self, name: str) -> bool:
        """Whether a checkpoint may lack this parameter: it is of a head, or of whatever a subclass
        puts beside the base model.
        """
        prefix = self.base_model_prefix
        if prefix in self._modules and not name.startswith(f"{prefix}."):
            return True
        return any(name == head or name.startswith(head + ".") for head in self.heads)

    @torch.no_grad()
    def _make_missing(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Initializes what is still on the meta device; recomputes buffers that no file holds."""
        if not any(t.is_meta for t in [*self.parameters(), *self.buffers()]):
            return
        for module in self.modules():
            direct = dict(module.named_parameters(recurse=False)) | dict(
                module.named_buffers(recurse=False)
            )
            absent = [n for n, t in direct.items() if t is not None and t.is_meta]
            if not absent:
                continue
            # loaded tensors are set aside so that initialization does not overwrite them
            for n, t in direct.items():
                kind = dtype if t.is_floating_point() else t.dtype
                set_tensor(module, n, torch.zeros(t.shape, dtype=kind, device=device))
            if hasattr(module, "reset_buffers"):
                module.reset_buffers()  # type: ignore[operator]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
            self._init_weights(module)
            for n, t in direct.items():
                if n not in absent:
                    set_tensor(module, n, t)

    # Saving

    @torch.no_grad()
    def published_tensors(self) -> dict[str, Tensor]:
        """What a file holds: published name → tensor, a shared one once."""
        state = self.state_dict(keep_vars=True)
        tensors = self.name_table(self.config).to_theirs(state)
        return {name: value.detach() for name, value in tensors.items()}

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        max_shard_size: str | int = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> None:
        """Writes a folder that `from_pretrained`, and transformers, read: `config.json` and
        `model.safetensors`, each atomically.

        Args:
            save_directory: Made if it does not exist.
            is_main_process: False writes nothing: another process does.
            state_dict: Tensors to write instead of the network's own, as `state_dict()` has them.
            max_shard_size: Above it the weights are split, as "5GB" or a number of bytes.
            safe_serialization: False writes one `pytorch_model.bin` instead.
            push_to_hub: Also upload the folder, to `repo_id` (default the folder's name).
            repo_id: Where to upload.
            **hub: `token`, `private`, `revision`, `commit_message`.

        Raises:
            TypeError: Another keyword.
        """
        check_upload(hub)
        if not is_main_process:
            return
        tensors = self.published_tensors()
        if state_dict is not None:
            tensors = {name: state_dict[name] for name in tensors}
        save_network(
            save_directory,
            self.config,
            tensors,
            type(self).__name__,
            max_shard_size,
            pickled=not safe_serialization,
        )
        upload_saved(save_directory, push_to_hub, repo_id, hub)

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Uploads the network to the Hub and returns its address.

        Args:
            repo_id: "owner/name".
            **hub: `token`, `private`, `revision`, `commit_message`.
        """
        return push_saved(self, repo_id, hub)


class Backbone(PreTrainedModel):
    """Base of the networks that give feature maps: which stages they are, and their channels.

    A network sets `num_features`, the channels of every stage.
    """

    num_features: list[int]

    @property
    def stage_names(self) -> list[str]:
        """Names of all stages, in their order."""
        return list(self.config.stage_names)

    @property
    def out_features(self) -> list[str]:
        """Names of the stages that are returned; setting them changes the configuration."""
        return list(self.config.out_features)

    @out_features.setter
    def out_features(self, names: list[str] | None) -> None:
        self.config.out_features = names

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages that are returned; setting them changes the configuration."""
        return list(self.config.out_indices)

    @out_indices.setter
    def out_indices(self, numbers: list[int] | None) -> None:
        self.config.out_indices = numbers

    @property
    def stages(self) -> list[int]:
        """Numbers of the stages that are returned, from 0."""
        names = self.stage_names
        return [names.index(name) for name in self.config.out_features]

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every stage, by its name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of the stages that are returned."""
        return [self.num_features[i] for i in self.stages]

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the network without the keywords that it does not take."""
        known = inspect.signature(self.forward).parameters
        return self(*args, **{key: value for key, value in kwargs.items() if key in known})


def _holds_list(module: nn.Module) -> bool:
    return any(isinstance(each, nn.ModuleList) for each in module.modules())
