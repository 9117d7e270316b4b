"""What several texts begin with runs once: key/value caches, and where they give exactly what whole texts give.

An ordinary cache holds the keys and values of every token that was read. Models with convolutions or recurrent states,
with windows of attention shorter than the text, or with frequencies that depend on its length, keep something else or
too little: they read every text as a whole.
"""

import copy
import inspect
import math
import weakref
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# What the cache is called as an argument and in the output of a model: since transformers 5.24, and before.
CACHE_NAMES = ("cache", "past_key_values")

# Rotary frequencies that are the same for a text and for what it begins with.
FIXED_FREQUENCIES = {"default", "linear", "llama3", "yarn", "proportional"}

# Model -> the longest text that may be cut in two for it, as far as is known: 0 for none.
LONGEST_TEXT = weakref.WeakKeyDictionary()


def cache_argument(module: nn.Module) -> str | None:
    """The parameter of the forward of `module` that takes a cache; None if it names none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a caller gave under one of its two names.

    Raises:
        ValueError: both were given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("Both cache and past_key_values were given, two names of one argument. Pass one of them.")
    return past_key_values if cache is None else cache


def returned_cache(output) -> Cache | None:
    """The cache in the output of a model."""
    caches = (getattr(output, name, None) for name in CACHE_NAMES)
    return next((cache for cache in caches if cache is not None), None)


def is_ordinary(cache: Cache | None, rows: int, columns: int, length: int) -> bool:
    """Whether a cache has all that tokens after it need, up to a text of `length` tokens.

    Args:
        cache: what a model returned for ids (rows, columns).
    """
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False) or not cache.layers:
        return False
    return all(holds_every_token(layer, rows, columns, length) for layer in cache.layers)


def holds_every_token(layer, rows: int, columns: int, length: int) -> bool:
    """Whether a layer has keys and values (rows, heads, columns, head_dim), and no window shorter than the text."""
    if type(layer) is DynamicSlidingWindowLayer:
        known = length < layer.sliding_window
    else:
        known = type(layer) is DynamicLayer
    if not known or not layer.is_initialized:
        return False
    return all(x.dim() == 4 and (x.shape[0], x.shape[2]) == (rows, columns) for x in (layer.keys, layer.values))


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """A copy of an ordinary cache with the given rows, each as often as it is named; the cache stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def longest_text_with_fixed_frequencies(model: nn.Module) -> float:
    """Up to which length the rotary frequencies of a model do not depend on the length of the text."""
    config = getattr(model, "config", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    # one set of parameters, or one for each type of layer
    sets = [parameters, *(inner for inner in parameters.values() if isinstance(inner, dict))]
    changing = [x for x in sets if (x.get("rope_type") or "default") not in FIXED_FREQUENCIES]
    limits = [
        x.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", 0) for x in changing
    ]
    return min(limits, default=math.inf)


def continues_exactly(read: Callable, ids: torch.LongTensor) -> bool:
    """Whether a model computes the same for the second half of texts when the first comes from its cache.

    Args:
        read: (ids, cache, keep_cache) -> what the model makes of ids (N, L, D), and its cache.
        ids: (N, 2 n) texts of any tokens.
    """
    half = ids.shape[1] // 2
    first, second = ids[:, :half], ids[:, half:]
    whole = read(ids, None, False)[0][:, half:]
    cache = read(first, None, True)[1]
    if not is_ordinary(cache, *first.shape, ids.shape[1]):
        return False

    # every row once more in another order: rows are chosen from a cache
    rows = torch.arange(len(ids), device=ids.device).flip(0)
    continued = read(second[rows], select_rows(cache, rows), False)[0]
    without = read(second, None, False)[0]

    # what the first half changes in the second is the measure of what may be lost
    effect = (whole - without).abs().max()
    lost = (whole[rows] - continued).abs().max()
    rounded = whole.dtype in (torch.float16, torch.bfloat16) or torch.get_float32_matmul_precision() != "highest"
    return bool(lost <= (0.05 if rounded else 1e-3) * effect)
