"""The rounds of speculative sampling: which drafts are accepted, and what is recorded of them."""

import itertools

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, STATES, L, V, marginals
from published import tiny_causal, tiny_denoiser
from speculation import EMPTY, P_AR, TableHead, model, sample
from speculative_networks import MASK_ID, PROMPTS, RAGGED, with_causal

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll
from edlm_hf.modeling.drafting import Speculative


@pytest.mark.parametrize(("draft_length", "rounds"), [(1, 2), (2, 2), (3, 1), (None, 1)])
def test_drafts_of_the_target_itself_are_all_accepted(draft_length, rounds):
    """Independent tokens, for which marginals are the whole distribution."""
    independent = np.prod([np.array([0.5, 0.3, 0.2])[SEQUENCES[:, i]] for i in range(L)], axis=0)
    network = model(marginals(independent), independent)
    out = sample(network, EMPTY[:20_000], draft_length=draft_length, return_dict_in_generate=True)
    assert (out.num_denoiser_calls == rounds).all() and (out.num_energy_calls == rounds).all()
    assert torch.equal(out.num_drafts, out.num_accepted_drafts)
    assert (out.num_accepted_drafts == L - rounds).all()
    assert (out.tokens_per_forward == L / rounds).all() and out.energies is None


@pytest.mark.parametrize("draft_length", [2, 3, None])
def test_a_head_that_knows_the_chain_has_all_its_drafts_accepted(draft_length):
    """Every token depends on two: the denoiser knows what follows the text, the head what follows drafts."""
    # p(v | u, u') of a token after u after u'. Index V stands for no token.
    follows = np.random.default_rng(0).dirichlet(np.ones(V), size=(V + 1, V + 1))
    padded = np.pad(SEQUENCES, ((0, 0), (2, 0)), constant_values=V)
    chain = np.prod(
        [follows[padded[:, i + 1], padded[:, i], SEQUENCES[:, i]] for i in range(L)],
        axis=0,
    )

    # (256, L, V): p where the tokens before are visible, uniform after a mask
    table = np.full((len(STATES), L, V), 1 / V)
    visible = np.pad(STATES, ((0, 0), (2, 0)), constant_values=V)
    for i in range(L):
        known = (STATES[:, :i] != MASK).all(-1)
        table[known, i] = follows[visible[known, i + 1], visible[known, i]]

    assert MASK == V
    head = TableHead(np.pad(np.log(follows), ((0, 0), (0, 0), (0, 1))) + np.log(V))
    options = {"draft_length": draft_length, "return_dict_in_generate": True}
    out = sample(model(table, chain, head), EMPTY[:20_000], **options)
    assert torch.equal(out.num_drafts, out.num_accepted_drafts) and (out.num_drafts > 0).all()

    without = sample(model(table, chain), EMPTY[:20_000], **options)
    assert (without.num_drafts - without.num_accepted_drafts).double().mean() > 0.1


def test_a_head_that_knows_nothing_changes_nothing():
    network = with_causal("mdlm")
    network.denoiser.add_draft_head(3)
    for options in ({"draft_length": 4}, {}, {"do_sample": False}, {"temperature": 0.7, "top_k": 5}):
        with_head = sample(network, PROMPTS, **RAGGED | options)
        head, network.denoiser.draft_head = network.denoiser.draft_head, None
        assert torch.equal(with_head, sample(network, PROMPTS, **RAGGED | options))
        network.denoiser.draft_head = head


def test_every_round_gives_its_accepted_drafts_and_one_token_more():
    network = model()
    out = sample(network, EMPTY[:5000], draft_length=2, return_dict_in_generate=True)
    assert torch.equal(out.num_accepted_drafts + out.num_denoiser_calls, torch.full((5000,), L))
    assert (out.num_accepted_drafts <= out.num_drafts).all()
    assert len(out.num_denoiser_calls.unique()) > 1
    assert network.denoiser.calls == out.num_denoiser_calls.max()  # all rows in one call


def test_other_samplers_have_no_drafts():
    out = model().generate(EMPTY[:2], max_denoising_steps=2, return_dict_in_generate=True)
    assert out.num_drafts is None and out.num_accepted_drafts is None


def test_log_probabilities_add_up_to_the_likelihood_of_the_text():
    network = model()
    out = sample(
        network,
        EMPTY[:50],
        draft_length=2,
        return_dict_in_generate=True,
        output_log_probs=True,
    )
    index = out.sequences.numpy() @ (V ** np.arange(L)[::-1])
    np.testing.assert_allclose(out.log_probs.sum(-1).numpy(), np.log(P_AR[index]), atol=1e-5)
    value = autoregressive_nll(network, out.sequences.tolist()).value
    assert abs(value * L + out.log_probs.sum(-1).mean().item()) < 1e-5


def test_the_number_of_drafts_follows_their_acceptance():
    tested = torch.tensor([0, 10, 10, 98])
    accepted = torch.tensor([0, 10, 0, 79])
    # a = 1/2, 11/12, 1/12 and .8: the largest n with a^n >= 1/50, one at least
    assert Speculative().num_drafts(tested, accepted).tolist() == [5, 44, 1, 17]
    assert Speculative(5).num_drafts(tested, accepted).tolist() == [5, 5, 5, 5]


def test_streamers_callbacks_and_history_see_every_round():
    drafts, steps, finished = [], [], []

    class Streamer:
        def put(self, value):
            finished.extend(value.flatten().tolist())

        def put_draft(self, value):
            drafts.append(value)

        def end(self):
            finished.append("end")

    network = with_causal("mdlm")
    out = sample(
        network,
        PROMPTS[:1],
        max_new_tokens=12,
        draft_length=2,
        streamer=Streamer(),
        callback_on_step_end=lambda model, step, t, values: steps.append((step, float(t))),
        return_dict_in_generate=True,
        output_history=True,
    )
    rounds = int(out.num_denoiser_calls)

    assert finished == [*out.sequences[0].tolist(), "end"]
    assert len(drafts) == len(steps) == len(out.history) - 1 == rounds
    assert [step for step, _ in steps] == list(range(rounds)) and steps[0][1] == 1
    for before, after in itertools.pairwise(out.history):
        assert (after == MASK_ID).sum() < (before == MASK_ID).sum()
        assert torch.equal(after[before != MASK_ID], before[before != MASK_ID])


def test_a_text_without_holes_has_no_drafts():
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    out = model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=0,
        sampler="speculative",
        return_dict_in_generate=True,
    )
    assert out.num_drafts.tolist() == out.num_accepted_drafts.tolist() == [0]
