"""Modules of others as energies run a common prompt once only where that is exact."""

from types import SimpleNamespace

import pytest
import torch
from autoregressive_energies import by_definition, shapes_read
from cached_networks import (
    LENGTH,
    PROMPT,
    SIZES,
    build,
    candidates,
    with_energy,
)
from torch import nn
from transformers.cache_utils import DynamicCache

from edlm_hf.modeling.prefix_cache import cache_argument, returned_cache


class Foreign(nn.Module):
    """Somebody's own module around a Llama."""

    def __init__(self, sizes: dict | None = None):
        super().__init__()
        self.inner = build("Llama", SIZES | (sizes or {}))
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


class CountsFromZero(Foreign):
    """With a cache its positions begin again."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        return self.inner(
            input_ids=input_ids, position_ids=positions, past_key_values=past_key_values, use_cache=use_cache
        )


class KeepsAState(Foreign):
    """The mean of all tokens so far enters the logits, and the cache knows nothing of it."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        count = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        means = self.inner.get_input_embeddings()(input_ids).cumsum(1) / count
        output.logits = output.logits + self.inner.lm_head(means)
        return output


class ReturnsPairs(Foreign):
    """Its cache is a tuple of keys and values."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        pairs = ((torch.zeros(len(input_ids), 2, input_ids.shape[1], 8),) * 2,) if use_cache else None
        return SimpleNamespace(logits=output.logits, past_key_values=pairs)


class ReturnsNone(Foreign):
    """It takes a cache and gives none back."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        return SimpleNamespace(logits=self.inner(input_ids=input_ids, use_cache=False).logits)


class OwnClass(DynamicCache):
    pass


class ReturnsItsOwnClass(Foreign):
    """Its cache has a class of its own."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        if past_key_values is None and use_cache:
            past_key_values = OwnClass()
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


class NamesNothing(Foreign):
    """As wrappers do: its signature says nothing."""

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class CalledCache(Foreign):
    """As models are since transformers 5.24."""

    def forward(self, input_ids, attention_mask=None, cache=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=cache, use_cache=use_cache)
        return SimpleNamespace(logits=output.logits, cache=output.past_key_values)


@torch.no_grad()
@pytest.mark.parametrize(
    "module", [CountsFromZero, KeepsAState, ReturnsPairs, ReturnsNone, ReturnsItsOwnClass, NamesNothing]
)
def test_modules_of_others_that_cannot_go_on_exactly_read_whole_texts(module):
    model = with_energy(module())
    ids, noisy = candidates()
    for _ in range(2):
        shapes = shapes_read(model.energy_model)
        torch.testing.assert_close(
            model.energy(ids, noisy),
            by_definition(model, ids, noisy),
            rtol=0,
            atol=1e-3,
        )
    assert shapes[0] == (6, LENGTH)


@torch.no_grad()
@pytest.mark.parametrize("module", [Foreign, CalledCache])
def test_modules_of_others_that_go_on_exactly_read_a_common_prompt_once(module):
    model = with_energy(module())
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    model.energy(ids, noisy)  # measured once
    shapes = shapes_read(model.energy_model)
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


def test_both_names_of_the_cache_are_known():
    assert cache_argument(CalledCache()) == "cache"
    assert cache_argument(Foreign()) == "past_key_values"
    assert cache_argument(NamesNothing()) is None
    cache = DynamicCache()
    for name in ("cache", "past_key_values"):
        assert returned_cache(SimpleNamespace(**{name: cache})) is cache
    assert returned_cache(SimpleNamespace(past_key_values=None)) is None
