"""Saving and loading: what every model does, which code goes along, and which weights a file must hold."""

import re
from functools import partial

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_mdlm import MDLMConfig

# The projection of a headed model; a trunk lacks it.
HEAD_KEYS = r"output_layer\.linear\.(weight|bias)$"


class CheckpointingMixin:
    """Switches checkpointing of activations off as a whole, and saves with what the package adds where it is there.

    transformers lets the embeddings require gradients when it is switched on, and leaves that so afterwards.
    """

    # Saves and pushes with a model card. The package sets it, and code that travels with a checkpoint has none
    sharing = None
    card_facts = None

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        if not enable and hasattr(self, "_require_grads_hook"):
            self.disable_input_require_grads()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, by way of the package where it is there."""
        save = super().save_pretrained
        if self.sharing is not None:
            save = partial(self.sharing.save, self, save)
        save(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """`PreTrainedModel.push_to_hub`, by way of the package where it is there."""
        if self.sharing is not None:
            return self.sharing.push(self, repo_id, **kwargs)
        return super().push_to_hub(repo_id, **kwargs)


def set_auto_map(model: PreTrainedModel) -> None:
    """Tell every auto class that knows this model where its code is (transformers records a single one by itself)."""
    if model._auto_class is not None:
        model.config.auto_map = auto_map(type(model), type(model.config))


def auto_map(model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """Auto class -> where the code is, `file.Class`."""
    return {"AutoConfig": f"{config_class.__module__.split('.')[-1]}.{config_class.__name__}"} | model_class._auto_map


def composite_part(cls: type[PreTrainedModel], path, kwargs: dict) -> dict:
    """Arguments of `from_pretrained` that load `cls._composite_part` if `path` is an EDLM composite, else none."""
    if "config" in kwargs or kwargs.get("gguf_file"):
        return {}
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    stored, _ = MDLMConfig.get_config_dict(path, **{key: kwargs[key] for key in hub if key in kwargs})
    if stored.get("model_type") != "edlm":
        return {}
    part = cls._composite_part
    config = stored.get("denoiser_config" if part == "denoiser" else "energy_config") or {}
    if (
        config.get("model_type") != MDLMConfig.model_type
        or config.get("causal", False) != cls._composite_part_is_causal
    ):
        raise ValueError(
            f"{path} is an EDLM composite, but its {part} is not a {cls.__name__}. "
            f"Load the whole with EDLMForMaskedDiffusion.from_pretrained and take `.{part}` of it."
        )
    return {
        "config": MDLMConfig(**config),
        "key_mapping": {rf"^{part}\.": ""} | (kwargs.get("key_mapping") or {}),
    }


def check_loaded_keys(model: PreTrainedModel, info: dict, path, of_composite: bool) -> None:
    """Raise ValueError if loading left a weight at its random start or a stored weight unused.

    Allowed are a trunk that leaves the head of a checkpoint unused, a head that starts new on a complete trunk, and
    the other part of a composite.
    """
    head = {name for name in model.state_dict() if re.search(HEAD_KEYS, name)}
    missing = set(info["missing_keys"])
    unexpected = set(info["unexpected_keys"])
    if of_composite:
        unexpected = {name for name in unexpected if not re.match(r"(denoiser|energy_model)\.", name)}
    if not head:
        unexpected = {name for name in unexpected if not re.search(HEAD_KEYS, name)}
    elif missing == head and model.config.architectures == ["MDLMModel"]:
        missing = set()
    if missing or unexpected:
        raise ValueError(
            f"The weights of {path} do not fit {type(model).__name__}: {list_keys('missing', missing)}"
            f"{list_keys('not part of the model', unexpected)} Check that the configuration (causal, n_blocks, ...) "
            "belongs to this file, or convert it with `edlm convert`."
        )


def list_keys(label: str, keys: set[str], shown: int = 8) -> str:
    """`label: a, b, c and 5 more.`, or nothing if there are no keys; a file may name them to steer a terminal."""
    names = [key if key.isprintable() else ascii(key) for key in sorted(keys)]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{label}: {', '.join(names[:shown])}{more}. " if names else ""
