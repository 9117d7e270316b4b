"""Saving and loading: code that goes along with a model, and weights that a file must hold."""

import re
from functools import partial

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_mdlm import MDLMConfig

# The projection of a model with a head, which a trunk lacks
HEAD_KEYS = (
    r"(output_layer\.linear\.(weight|bias)|(draft_head|first_draft)\.(enter|leave)\.(weight|bias)|first_draft\.shares)$"
)

# Keys that a message names
NUM_EXAMPLES = 8

# Arguments of from_pretrained by which a configuration is found
CONFIG_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)


class CheckpointingMixin:
    """Saves and pushes by way of the package where it is installed.

    It also switches checkpointing of activations off completely: transformers lets the embeddings
    require gradients when it is switched on, and leaves that so afterwards.
    """

    # Saves and pushes with a model card. The package sets it, code beside a checkpoint has none.
    sharing = None
    card_facts = None

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        if not enable and hasattr(self, "_require_grads_hook"):
            self.disable_input_require_grads()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, by way of the package where it is installed."""
        save = super().save_pretrained
        if self.sharing is not None:
            save = partial(self.sharing.save, self, save)
        save(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """`PreTrainedModel.push_to_hub`, by way of the package where it is installed."""
        if self.sharing is not None:
            return self.sharing.push(self, repo_id, **kwargs)
        return super().push_to_hub(repo_id, **kwargs)


def set_auto_map(model: PreTrainedModel) -> None:
    """Name the code for all auto classes that load a model. transformers itself names it for one."""
    if model._auto_class is not None:
        model.config.auto_map = auto_map(type(model), type(model.config))


def auto_map(
    model_class: type[PreTrainedModel],
    config_class: type[PreTrainedConfig],
) -> dict[str, str]:
    """Auto class -> the place of the code, `file.Class`."""
    file = config_class.__module__.split(".")[-1]
    return {"AutoConfig": f"{file}.{config_class.__name__}"} | model_class._auto_map


def composite_part(cls: type[PreTrainedModel], path, kwargs: dict) -> dict:
    """Arguments of `from_pretrained` that load one part of an EDLM composite, none for other paths.

    Args:
        cls: the class of the part `cls._composite_part`, `denoiser` or `energy_model`.
        kwargs: the other arguments of `from_pretrained`.

    Raises:
        ValueError: the composite has another kind of part.
    """
    # 1. Is the path a composite?
    if "config" in kwargs or kwargs.get("gguf_file"):
        return {}
    location = {name: kwargs[name] for name in CONFIG_ARGUMENTS if name in kwargs}
    stored, _ = MDLMConfig.get_config_dict(path, **location)
    if stored.get("model_type") != "edlm":
        return {}

    # 2. The configuration of the part inside the one of the whole
    part = cls._composite_part
    config_name = "denoiser_config" if part == "denoiser" else "energy_config"
    config = stored.get(config_name) or {}
    is_mdlm = config.get("model_type") == MDLMConfig.model_type
    if not is_mdlm or config.get("causal", False) != cls._composite_part_is_causal:
        raise ValueError(
            f"{path} is an EDLM composite, but its {part} is not a {cls.__name__}. Load the whole "
            f"with EDLMForMaskedDiffusion.from_pretrained and take `.{part}` of it."
        )

    # 3. Its keys are the keys of the whole without the name of the part in front.
    without_prefix = {rf"^{part}\.": ""}
    return {
        "config": MDLMConfig(**config),
        "key_mapping": without_prefix | (kwargs.get("key_mapping") or {}),
    }


def check_loaded_keys(model: PreTrainedModel, info: dict, path, of_composite: bool) -> None:
    """Refuse a file that left a weight at its random start, or that has a weight too many.

    Allowed are a trunk that leaves the head of a checkpoint unused, a head that starts new on a
    complete trunk, and the other part of a composite.

    Args:
        info: `missing_keys` and `unexpected_keys` of `from_pretrained`.
        path: the name that the message says.
        of_composite: the file is a whole composite, and the model one part of it.

    Raises:
        ValueError: a key is missing or unexpected.
    """
    head = {name for name in model.state_dict() if re.search(HEAD_KEYS, name)}
    missing = set(info["missing_keys"])
    unexpected = set(info["unexpected_keys"])

    # The differences that are allowed
    if of_composite:
        of_parts = r"(denoiser|energy_model)\."
        unexpected = {name for name in unexpected if not re.match(of_parts, name)}
    if not head:
        unexpected = {name for name in unexpected if not re.search(HEAD_KEYS, name)}
    elif missing == head and model.config.architectures == ["MDLMModel"]:
        missing = set()

    if missing or unexpected:
        raise ValueError(
            f"The weights of {path} do not fit {type(model).__name__}: "
            f"{list_keys('missing', missing)}{list_keys('not part of the model', unexpected)} "
            "Check that the configuration (causal, n_blocks, ...) belongs to this file, or convert "
            "it with `edlm convert`."
        )


def list_keys(label: str, keys: set[str]) -> str:
    """`label: a, b, c and 5 more. ` for an error message, or nothing if there are no keys.

    A file may have names that steer a terminal: such names are escaped.
    """
    if not keys:
        return ""
    names = [key if key.isprintable() else ascii(key) for key in sorted(keys)]
    shown = names[:NUM_EXAMPLES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{label}: {', '.join(shown)}{more}. "
