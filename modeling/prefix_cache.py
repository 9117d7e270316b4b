"""Key/value caches of a common prefix, and the models for which they are exact.

Several texts that begin alike read their beginning once. That is exact where the cache of a model
is ordinary: it holds the keys and values of every token that was read. Models with convolutions or
recurrent states, with windows of attention shorter than the text, or with frequencies that depend
on its length, keep something else or too little: they read every text as a whole.
"""

import copy
import inspect
import math
import weakref
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Names of the cache, as an argument and in the output of a model: since transformers 5.24, before
CACHE_NAMES = ("cache", "past_key_values")

# Rotary frequencies that are the same for a text and for its beginning
FIXED_FREQUENCIES = {"default", "linear", "llama3", "yarn", "proportional"}

# Model -> the longest text that it may read in two parts, as far as is known: 0 for none
LONGEST_TEXT = weakref.WeakKeyDictionary()


def cache_argument(module: nn.Module) -> str | None:
    """The parameter of the forward of `module` that takes a cache, None if there is none."""
    parameters = inspect.signature(module.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    return None


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
    for name in CACHE_NAMES:
        cache = getattr(output, name, None)
        if cache is not None:
            return cache
    return None


def is_ordinary(cache: Cache | None, rows: int, columns: int, length: int) -> bool:
    """Whether a cache has all that later tokens need, in texts of up to `length` tokens.

    Args:
        cache: returned by a model for ids (rows, columns).
    """
    # A subclass may keep something else, and an offloaded cache moves its layers while it is read
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False) or not cache.layers:
        return False
    return all(holds_every_token(layer, rows, columns, length) for layer in cache.layers)


def holds_every_token(layer, rows: int, columns: int, length: int) -> bool:
    """Whether a layer has the keys and values of all tokens, in texts of up to `length` tokens."""
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or not layer.is_initialized:
        return False
    if type(layer) is DynamicSlidingWindowLayer and length >= layer.sliding_window:
        return False

    # (rows, heads, columns, head_dim)
    states = (layer.keys, layer.values)
    for x in states:
        if x.dim() != 4 or (x.shape[0], x.shape[2]) != (rows, columns):
            return False
    return True


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """A copy of an ordinary cache with the given rows, which may repeat. The cache itself stays."""
    # The layers are copied but not their tensors, which the selection makes anew
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def keep_columns(cache: Cache, columns: int) -> Cache:
    """Crop an ordinary cache, in place, to its first columns."""
    surplus = cache.get_seq_length() - columns
    if surplus > 0:
        cache.crop(-surplus)
    return cache


def longest_text_with_fixed_frequencies(model: nn.Module) -> float:
    """The length of a text up to which the rotary frequencies of a model do not depend on it."""
    config = getattr(model, "config", None)
    parameters = getattr(config, "rope_parameters", None) or {}

    # One set of parameters, or one for each type of layer
    sets = [parameters]
    sets += [inner for inner in parameters.values() if isinstance(inner, dict)]

    longest = math.inf
    for rope in sets:
        kind = rope.get("rope_type") or "default"
        if kind in FIXED_FREQUENCIES:
            continue
        limit = rope.get("original_max_position_embeddings")
        longest = min(longest, limit or getattr(config, "max_position_embeddings", 0))
    return longest


def continues_exactly(read: Callable, ids: torch.LongTensor) -> bool:
    """Whether a model computes the same for the second half of texts with the first from its cache.

    Args:
        read: (ids, cache, keep_cache) -> features (N, L, D) of ids (N, L), and the cache.
        ids: (N, 2 n) texts of any tokens.
    """
    half = ids.shape[1] // 2
    first = ids[:, :half]
    second = ids[:, half:]

    # 1. The second half in whole texts, and the cache of the first half
    features, _ = read(ids, None, False)
    whole = features[:, half:]
    _, cache = read(first, None, True)
    if not is_ordinary(cache, *first.shape, ids.shape[1]):
        return False

    # 2. The second half after the cache, rows in another order: rows are chosen from caches
    rows = torch.arange(len(ids), device=ids.device).flip(0)
    continued, _ = read(second[rows], select_rows(cache, rows), False)
    error = (whole[rows] - continued).abs().max()

    # 3. The effect of the first half on the second is the measure of what may be lost.
    alone, _ = read(second, None, False)
    effect = (whole - alone).abs().max()

    # Matrix products in TF32 round like those in half precision
    in_half = whole.dtype in (torch.float16, torch.bfloat16)
    rounded = in_half or torch.get_float32_matmul_precision() != "highest"
    tolerance = 0.05 if rounded else 1e-3
    return bool(error <= tolerance * effect)
