"""Files of a published model, from a folder or the Hub: nothing is executed, and weights are only listed."""

import json
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(name: str, where: dict) -> dict:
    """The contents of config.json.

    Raises:
        ValueError: there is none.
    """
    published, _ = PreTrainedConfig.get_config_dict(name, **where)
    if not published:
        raise ValueError(f"{name} has no config.json, which says what the model is.")
    return published


def weight_files(name: str, where: dict) -> dict[str, str]:
    """The names of the weights, each with the file that it is in.

    Raises:
        ValueError: there are no weights in the safetensors format.
    """
    # Large models are in several files, with an index {weight: file}
    index = find_file(name, INDEX, where)
    if index is not None:
        content = json.loads(Path(index).read_text(encoding="utf-8"))
        return content["weight_map"]

    single = find_file(name, WEIGHTS, where)
    if single is None:
        raise ValueError(
            f"{name} has neither {INDEX} nor {WEIGHTS}. Weights in the format of PyTorch (.bin) are not "
            "read, since they can hold code: convert them with safetensors first."
        )

    # The header of the file alone
    with safe_open(single, framework="pt") as weights:
        return dict.fromkeys(weights.keys(), WEIGHTS)


def rows_of(name: str, weights: dict[str, str], weight: str, where: dict) -> int:
    """The number of rows of a weight, of which nothing else is read.

    Raises:
        ValueError: there is no such weight.
    """
    if weight not in weights:
        raise ValueError(f"The weights of {name} have no {weight}, the embedding of the vocabulary.")

    # (V, width). A slice that is not indexed reads no numbers
    path = find_file(name, weights[weight], where)
    with safe_open(path, framework="pt") as file:
        shape = file.get_slice(weight).get_shape()
    return shape[0]


def find_file(name: str, file: str, where: dict) -> str | None:
    """The path of a file of a folder or repository, None where it has no such file."""
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)


__all__ = ["find_file", "read_config", "rows_of", "weight_files"]
