"""Speculative sampling has the law of its autoregressive model, by enumeration.

The laws are sampled with 200,000 draws, for which total variation distances of about 0.006 over 81
sequences are expected. 0.012 is allowed.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from exact import MASK, L, TableCausalLM, TableDenoiser, V, distance
from exact_windows import WindowDenoiser, random_windows
from speculation import (
    DENOISERS,
    EMPTY,
    P_AR,
    TV,
    N,
    changed,
    combine,
    conditional,
    model,
    random_head,
    sample,
    with_head,
)

from edlm_hf.modeling.speculative_sampling import accept_or_replace


@pytest.mark.parametrize(
    ("denoiser", "draft_length"),
    [*itertools.product(["right marginals", "another model"], [1, 2, 3, 4, None]), ("uniform", 2)],
)
def test_the_law_is_that_of_the_autoregressive_model(denoiser, draft_length):
    tokens = sample(model(DENOISERS[denoiser]), EMPTY, draft_length=draft_length)
    assert distance(tokens, P_AR) < TV


@pytest.mark.parametrize(
    ("denoiser", "draft_length"),
    [*itertools.product(["another model"], [1, 2, 3, 4, None]), ("right marginals", 3)],
)
def test_the_law_is_the_same_with_a_draft_head(denoiser, draft_length):
    tokens = sample(model(DENOISERS[denoiser], head=random_head()), EMPTY, draft_length=draft_length)
    assert distance(tokens, P_AR) < TV


@pytest.mark.parametrize(("draft_length", "head"), [(1, None), (2, None), (2, random_head())])
@pytest.mark.parametrize("prompt", [(2,), (0, 1)])
def test_a_prompt_has_the_conditional_law(prompt, draft_length, head):
    ids = torch.tensor(prompt).expand(N, -1)
    new = L - len(prompt)
    tokens = sample(model(head=head), ids, max_new_tokens=new, draft_length=draft_length)
    assert torch.equal(tokens[:, : len(prompt)], ids)
    assert distance(tokens[:, len(prompt) :], conditional(prompt, new)) < TV


@pytest.mark.parametrize(
    ("side", "block_length", "prompts", "head"),
    [
        *itertools.product(["left", "right"], [None, 1], [[(), (1,), (2, 0)]], [None]),
        ("left", None, [(), (1,)], random_head()),
    ],
)
def test_rows_of_unequal_length_have_their_own_laws(side, block_length, prompts, head):
    """Prompts of no, one and two tokens in one batch, each of them finished at its own pace."""
    width = max(map(len, prompts))
    new_tokens = L - width

    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    real = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        begin = width - len(prompt) if side == "left" else 0
        ids[row, begin : begin + len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        real[row, begin : begin + len(prompt)] = 1

    denoiser = with_head(WindowDenoiser(random_windows(2)), head)
    network = combine(denoiser, TableCausalLM(P_AR))
    tokens = sample(
        network,
        ids.repeat(N // 2, 1),
        attention_mask=real.repeat(N // 2, 1),
        max_new_tokens=new_tokens,
        draft_length=2,
        block_length=block_length,
    )
    for row, prompt in enumerate(prompts):
        new = tokens[row :: len(prompts), width:]
        assert distance(new, conditional(prompt, new_tokens)) < TV


def test_masks_at_the_end_of_a_prompt_are_filled_too():
    ids = torch.tensor([[1, MASK]]).expand(N, -1)
    tokens = sample(model(), ids, max_new_tokens=2, draft_length=2)
    assert distance(tokens[:, 1:], conditional((1,), 3)) < TV


def test_temperature_and_filters_are_those_of_the_autoregressive_model():
    def two_likeliest_at_half_temperature(prefix, p):
        p = np.where(p >= np.sort(p)[-2], p**2, 0)
        return p / p.sum()

    for head in (None, random_head()):
        tokens = sample(model(head=head), EMPTY, temperature=0.5, top_k=2, draft_length=2)
        assert distance(tokens, changed(two_likeliest_at_half_temperature)) < TV
    assert distance(tokens, P_AR) > 10 * TV


def test_a_processor_changes_what_follows_a_prefix():
    """A token is less likely after itself: the processor finds it before the first mask."""

    def rarely_again(ids, scores):
        num_before = (ids != MASK).long().cumprod(-1).sum(-1)
        last = ids.gather(1, (num_before - 1).clamp_min(0).unsqueeze(1))
        penalty = torch.where(num_before > 0, 2.0, 0.0).to(scores.dtype).unsqueeze(1)
        return scores.scatter_add(1, last.clamp_max(scores.shape[1] - 1), -penalty)

    def law(prefix, p):
        if len(prefix):
            p = p * np.where(np.arange(V) == prefix[-1], math.exp(-2), 1)
        return p / p.sum()

    tokens = sample(model(), EMPTY, logits_processor=[rarely_again], draft_length=3)
    assert distance(tokens, changed(law)) < TV


def test_an_energy_over_masked_tokens_has_the_same_target():
    tokens = sample(
        model(energy_type="coar", energy_scope="revealed"),
        EMPTY,
        draft_length=2,
        num_candidates=1,
    )
    assert distance(tokens, P_AR) < TV


def test_acceptance_has_the_numbers_of_its_docstring():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
    drafts = torch.tensor([0, 1, 1, 2])
    uniforms = torch.tensor(
        [[0.999, 0.5], [0.499, 0.5], [0.501, 0.999], [0.999, 0.5]],
        dtype=torch.float64,
    )
    tokens, accepted = accept_or_replace(drafts, p.log().expand(4, 3), q.log().expand(4, 3), uniforms)
    assert tokens.tolist() == [0, 1, 0, 2]
    assert accepted.tolist() == [True, True, False, True]


def test_a_refused_draft_is_replaced_by_what_the_drafter_misses():
    """(p - q)+ = (.1, 0, .3), so that token 0 takes a quarter of the uniforms."""
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    q = torch.tensor([[0.1, 0.7, 0.2]], dtype=torch.float64).log()
    for second, expected in ((0.0, 0), (0.249, 0), (0.251, 2), (0.999, 2)):
        uniforms = torch.tensor([[0.43, second]], dtype=torch.float64)  # 3 / 7 = .4286 is less
        tokens, accepted = accept_or_replace(torch.tensor([1]), p, q, uniforms)
        assert (tokens.item(), accepted.item()) == (expected, False)


def test_without_a_draft_the_token_is_one_of_the_target():
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    nothing = torch.full_like(p, -torch.inf)
    for second, expected in ((0.199, 0), (0.201, 1), (0.499, 1), (0.501, 2)):
        uniforms = torch.tensor([[0.0, second]], dtype=torch.float64)
        tokens, accepted = accept_or_replace(torch.tensor([2]), p, nothing, uniforms)
        assert (tokens.item(), accepted.item()) == (expected, False)


def test_equal_distributions_accept_and_forbidden_drafts_are_refused():
    p = torch.tensor([[0.0, 0.4, 0.6]], dtype=torch.float64).log()
    last = torch.tensor([[1 - 2**-53, 1 - 2**-53]], dtype=torch.float64)
    assert accept_or_replace(torch.tensor([1]), p, p, last)[1].item()

    # Rounding may refuse a draft of equal distributions, of which (p - q)+ leaves nothing
    larger = p + 1e-9
    tokens, accepted = accept_or_replace(torch.tensor([1]), p, larger, last)
    assert (tokens.item(), accepted.item()) == (2, False)

    q = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64).log()
    tokens, accepted = accept_or_replace(
        torch.tensor([0]),
        p,
        q,
        torch.zeros(1, 2, dtype=torch.float64),
    )
    assert (tokens.item(), accepted.item()) == (1, False)


def test_a_generated_start_token_is_a_token_like_any_other():
    """The start token can be drawn. In a prompt it stands for itself, and no other one goes in front."""
    causal = TableCausalLM(P_AR)
    seen = []
    forward = causal.forward
    causal.forward = lambda input_ids, attention_mask=None: seen.append(input_ids) or forward(input_ids)
    causal.config.bos_token_id = 1
    network = combine(TableDenoiser(DENOISERS["uniform"]), causal, mask_token_id=MASK)
    tokens = sample(network, EMPTY[:500], draft_length=1)
    assert (tokens[:, 0] == 1).any()
    assert all((ids[:, 0] == 1).all() and ids.shape[1] <= L for ids in seen)
    assert distance(sample(network, EMPTY, draft_length=1), P_AR) < TV

    seen.clear()
    sample(network, torch.tensor([[1, MASK, MASK, MASK]]), draft_length=3)
    assert seen[0].shape[1] == L - 1
