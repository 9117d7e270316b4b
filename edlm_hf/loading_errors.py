"""Loads with any `from_pretrained`, and says in one sentence why something cannot be loaded.

Damaged files make the libraries raise errors of every type, often without the name of the file. So
the files are checked, descriptions before loading and all of them after an error.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from edlm_hf.checkpoints import CHECKPOINTS, locate
from edlm_hf.errors import is_out_of_memory, one_line
from edlm_hf.files import fault_of
from edlm_hf.modeling.generation_edlm import EDLMGenerationConfig
from edlm_hf.published_denoisers import published_family

# These describe a model. Libraries pass over some of them where they are damaged
DESCRIPTIONS = ("config.json", "generation_config.json", "*.index.json")
MODEL_FILES = (
    *DESCRIPTIONS,
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "*.safetensors",
    "pytorch_model*.bin",
)


def load(loader: Callable, name: str, **kwargs):
    """Return `loader(name, **kwargs)`. An error of a library becomes a sentence that names the file.

    Args:
        loader: a `from_pretrained`.
        name: folder, repository of the Hub, or a checkpoint that ships.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    # 1. What can be told without the libraries
    path = locate(name)
    check_folder(path)
    check_files(path, DESCRIPTIONS)

    # 2. Their warnings are shown only if all goes well: beside an error they say the same again
    try:
        with warnings_held_back():
            loaded = loader(path, **kwargs)
            check_loaded(loaded)
    except Exception as error:  # damaged files make the libraries raise every type there is
        if is_out_of_memory(error):
            raise

        # The most precise reason comes first: a file, code for an older transformers, a configuration
        check_files(path)
        family = published_family(path, **kwargs)
        if family:
            raise ValueError(
                f"{name} is a {family} with code for transformers 4. Load it in Python with "
                "edlm_hf.load_published_denoiser, and save the whole (docs/published_models.md)."
            ) from error
        if loader != AutoConfig.from_pretrained:
            check_configurations(path)
        raise ValueError(why_not_loaded(error, loader, path, kwargs)) from error

    return loaded


def check_loaded(loaded) -> None:
    """Raise ValueError for values that the libraries accept from a file and would fail at later."""
    if isinstance(loaded, PreTrainedModel) and loaded.can_generate():
        loaded.generation_config.validate()

    longest = getattr(loaded, "model_max_length", 0)
    if not isinstance(longest, (int, float)):
        raise ValueError(f"model_max_length is {longest!r} in tokenizer_config.json, but it must be a number.")


def check_folder(path: str) -> None:
    """Raise ValueError if `path` is not the folder of a model and cannot be a repository of the Hub either."""
    # A mistyped path would otherwise be looked for on the Hub
    folder = Path(path)
    if not folder.exists() and not is_repository_name(path):
        raise ValueError(
            f"There is no folder {path}. Give the folder of a model, a repository of the Hub (user/name), or a "
            f"checkpoint that ships: {', '.join(CHECKPOINTS)}."
        )
    if folder.is_file():
        raise ValueError(f"{path} is a file, but a folder is needed as save_pretrained writes it.")

    has_adapter = (folder / "adapter_config.json").exists()
    if has_adapter and not (folder / "config.json").exists():
        raise ValueError(
            f"{path} is an adapter, not a model. Load its base in Python with PeftModel.from_pretrained, merge it "
            "(edlm_hf.training.merge_lora), and save the whole."
        )


def is_repository_name(name: str) -> bool:
    """Whether a repository of the Hub can have this name, which a path of a folder seldom is.

    >>> [is_repository_name(name) for name in ("gpt2", "user/model", "./model", "~/model", "a/b/c")]
    [True, True, False, False, False]
    """
    # `user/name`, or `name` as the oldest models have
    parts = name.split("/")
    return len(parts) <= 2 and all(re.fullmatch(r"\w[\w.-]*", part) for part in parts)


def check_files(folder: str | Path, patterns: tuple[str, ...] = MODEL_FILES) -> None:
    """Raise ValueError if a file of a model in a local folder cannot be read."""
    for pattern in patterns:
        for file in sorted(Path(folder).glob(pattern)):
            check_file(file)


def check_file(file: Path) -> None:
    """Raise ValueError if a file of a model cannot be read."""
    fault = fault_of(file)
    if fault:
        raise ValueError(f"{file} {fault}. Copy or download it again.")


def check_configurations(folder: str) -> None:
    """Raise ValueError if a configuration of the model in a local folder cannot be used."""
    # Loaded alone, a configuration gives an error that is about itself
    if Path(folder, "config.json").exists():
        load(AutoConfig.from_pretrained, folder)

    file = Path(folder, "generation_config.json")
    if file.exists():
        try:
            EDLMGenerationConfig(**json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} cannot be used: {one_line(error)}") from error


def why_not_loaded(error: Exception, loader: Callable, path: str, kwargs: dict) -> str:
    """Write a sentence with the name of the model and the reason of an error in it."""
    # A strict dataclass says which field, and its cause says why
    is_strict = isinstance(error, StrictDataclassError)
    reason = one_line(error.__cause__ if is_strict and error.__cause__ else error)

    # The type of an error is told where its text alone says little, as for a KeyError
    if "ignore_mismatched_sizes" in reason:
        reason = different_shape(loader, path, kwargs) or reason
    elif not is_strict and not isinstance(error, (ValueError, OSError, ImportError)):
        reason = f"{type(error).__name__}: {reason}"

    # Many reasons name the model themselves
    if re.search(rf"(?<!\w){re.escape(path)}(?!\w)", reason):
        return reason

    owner = getattr(loader, "__self__", None)
    parts = {AutoConfig: "The configuration of ", AutoTokenizer: "The tokenizer of "}
    return f"{parts.get(owner, '')}{path} cannot be loaded: {reason}"


def different_shape(loader: Callable, path: str, kwargs: dict) -> str | None:
    """Describe the first weight with another shape than the configuration says.

    The error of transformers does not name it, only its log.
    """
    with warnings_held_back(forget=True):
        _, info = loader(path, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    if not info["mismatched_keys"]:
        return None

    # (name, shape in the file, shape by the configuration): the first one by name
    weight, stored, expected = min(info["mismatched_keys"])
    return (
        f"the weights do not fit config.json: {weight} has the shape {tuple(stored)}, where the configuration "
        f"says {tuple(expected)}."
    )


@contextmanager
def warnings_held_back(forget: bool = False) -> Iterator[None]:
    """Hold back the log of transformers until all has gone well. After an error it does not appear.

    Args:
        forget: never show it.
    """
    # A level above all others: the buffer never empties itself into a handler
    logger = logging.getLogger("transformers")
    handlers = logger.handlers
    held_back = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.handlers = [held_back]
    try:
        yield
    finally:
        logger.handlers = handlers

    if not forget:
        for record in held_back.buffer:
            logger.handle(record)


__all__ = ["MODEL_FILES", "check_file", "load"]
