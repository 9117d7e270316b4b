"""Speculative sampling has the law of its autoregressive model, by enumeration, and what it costs.

The laws are sampled with 200,000 draws, for which total variation distances of about 0.006 over 81
sequences are expected. 0.012 is allowed.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import transformers as hf
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    TableCausalLM,
    TableDenoiser,
    V,
    WindowDenoiser,
    marginals,
    perturbed,
    random_joint,
    random_windows,
)
from published import randomised, tiny_causal, tiny_denoiser
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll, sampler_bound
from edlm_hf.modeling.causal_log_probs import TokenScorer
from edlm_hf.modeling.drafting import Speculative
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationConfig
from edlm_hf.modeling.speculative_sampling import accept_or_replace
from edlm_hf.training.energy_arguments import EnergyArguments

N, TV = 200_000, 0.012
P_AR = 0.6 * random_joint(seed=3) + 0.4 * random_joint(seed=11)
DENOISERS = {
    "right marginals": marginals(P_AR),
    "another model": perturbed(marginals(random_joint(seed=5)), seed=1, scale=2),
    "uniform": np.full((256, L, V), 1 / V),
}
EMPTY = torch.full((N, L), MASK)
combine = EDLMForMaskedDiffusion.from_components


def model(table=DENOISERS["another model"], p_ar=P_AR, head=None, **choices):
    denoiser = with_head(TableDenoiser(table), head)
    return combine(denoiser, TableCausalLM(p_ar), mask_token_id=MASK, **choices)


class TableHead(nn.Module):
    """A draft head that adds terms (V + 1, V + 1, V + 1) of the two tokens before to logits."""

    def __init__(self, terms):
        super().__init__()
        self.register_buffer("terms", torch.as_tensor(terms, dtype=torch.float64))

    def forward(self, hidden, previous_ids):
        return hidden + self.terms[previous_ids[:, 0], previous_ids[:, 1]]


def with_head(denoiser, head):
    denoiser.draft_head = denoiser.hidden_of_drafts = head
    return denoiser


def random_head(scale=2.0):
    """A head that was trained for something else: terms of up to several nats for every pair of tokens."""
    generator = torch.Generator().manual_seed(7)
    return TableHead(scale * torch.randn(V + 1, V + 1, V + 1, generator=generator))


def sample(network, ids=None, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return network.generate(ids, generator=generator, sampler="speculative", **options)


def distance(tokens, law):
    """Total variation of sequences (N, n) over three tokens and a law (3^n,)."""
    assert tokens.min() >= 0 and tokens.max() < V and abs(law.sum() - 1) < 1e-12
    index = tokens.numpy() @ (V ** np.arange(tokens.shape[1])[::-1])
    return np.abs(np.bincount(index, minlength=len(law)) / len(index) - law).sum() / 2


def conditional(prompt, new, joint=P_AR):
    """The law of `new` tokens after a prompt: (3^new,)."""
    begins = (SEQUENCES[:, : len(prompt)] == np.array(prompt, dtype=int)).all(-1)
    continuation = SEQUENCES[:, len(prompt) : len(prompt) + new] @ (V ** np.arange(new)[::-1])
    law = np.bincount(continuation, weights=np.where(begins, joint, 0), minlength=V**new)
    return law / law.sum()


def changed(change):
    """The law of texts whose next token has the distribution `change(prefix, p_AR(. | prefix))`."""
    law = np.ones(len(SEQUENCES))
    for s, text in enumerate(SEQUENCES):
        for i, token in enumerate(text):
            law[s] *= change(text[:i], conditional(text[:i], 1))[token]
    return law


# ------------------------------------------------------------------------------------------------------------ the law


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
    tokens = sample(model(energy_type="coar", energy_scope="revealed"), EMPTY, draft_length=2, num_candidates=1)
    assert distance(tokens, P_AR) < TV


# -------------------------------------------------------------------------------------------------------- the rule


def test_acceptance_has_the_numbers_of_its_docstring():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
    drafts = torch.tensor([0, 1, 1, 2])
    uniforms = torch.tensor([[0.999, 0.5], [0.499, 0.5], [0.501, 0.999], [0.999, 0.5]], dtype=torch.float64)
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
    tokens, accepted = accept_or_replace(torch.tensor([0]), p, q, torch.zeros(1, 2, dtype=torch.float64))
    assert (tokens.item(), accepted.item()) == (1, False)


# ------------------------------------------------------------------------------------------- rounds and their records


@pytest.mark.parametrize(("draft_length", "rounds"), [(1, 2), (2, 2), (3, 1), (None, 1)])
def test_drafts_of_the_target_itself_are_all_accepted(draft_length, rounds):
    """Independent tokens, for which marginals are the whole distribution."""
    independent = np.prod([np.array([0.5, 0.3, 0.2])[SEQUENCES[:, i]] for i in range(L)], axis=0)
    network = model(marginals(independent), independent)
    out = sample(network, EMPTY[:20_000], draft_length=draft_length, return_dict_in_generate=True)
    assert (out.num_denoiser_calls == rounds).all() and (out.num_energy_calls == rounds).all()
    assert torch.equal(out.num_drafts, out.num_accepted_drafts) and (out.num_accepted_drafts == L - rounds).all()
    assert (out.tokens_per_forward == L / rounds).all() and out.energies is None


@pytest.mark.parametrize("draft_length", [2, 3, None])
def test_a_head_that_knows_the_chain_has_all_its_drafts_accepted(draft_length):
    """Every token depends on two: the denoiser knows what follows the text, the head what follows drafts."""
    # p(v | u, u') of a token after u after u'. Index V stands for no token.
    follows = np.random.default_rng(0).dirichlet(np.ones(V), size=(V + 1, V + 1))
    padded = np.pad(SEQUENCES, ((0, 0), (2, 0)), constant_values=V)
    chain = np.prod([follows[padded[:, i + 1], padded[:, i], SEQUENCES[:, i]] for i in range(L)], axis=0)

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
    assert (out.num_accepted_drafts <= out.num_drafts).all() and len(out.num_denoiser_calls.unique()) > 1
    assert network.denoiser.calls == out.num_denoiser_calls.max()  # all rows in one call


def test_other_samplers_have_no_drafts():
    out = model().generate(EMPTY[:2], max_denoising_steps=2, return_dict_in_generate=True)
    assert out.num_drafts is None and out.num_accepted_drafts is None


def test_log_probabilities_add_up_to_the_likelihood_of_the_text():
    network = model()
    out = sample(network, EMPTY[:50], draft_length=2, return_dict_in_generate=True, output_log_probs=True)
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


# ------------------------------------------------------------------------------------- networks, with and without cache

VOCABULARY, LENGTH, MASK_ID = 17, 40, 16
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
CAUSAL = {
    "mdlm": lambda: tiny_causal(vocab_size=VOCABULARY, mask_token_id=MASK_ID, model_length=LENGTH, bos_token_id=0),
    "llama": lambda: randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)), seed=2),
    "window": lambda: randomised(hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=8)), seed=3),
}
PROMPTS = torch.tensor([[0, 3, 5, 1, 9, 2], [7, 0, 0, 0, 0, 0], [4, 8, 8, 2, 0, 0]])
RAGGED = {
    "attention_mask": torch.tensor([[1] * 6, [1] + [0] * 5, [1] * 4 + [0] * 2]),
    "max_new_tokens": 30,
    "eos_token_id": None,
    "pad_token_id": 15,
}


def with_causal(name, **choices):
    sizes = {"vocab_size": VOCABULARY, "mask_token_id": MASK_ID, "model_length": LENGTH} | choices
    return combine(tiny_denoiser(**sizes), CAUSAL[name]()).double()


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("block_length", [None, 7, 11])
def test_the_cache_that_is_rolled_back_changes_nothing(name, do_sample, block_length, monkeypatch):
    """Blocks of 11 end in a shorter one. Texts longer than the denoiser are seen through a window that moves."""
    network = with_causal(name)
    options = RAGGED | {"do_sample": do_sample, "block_length": block_length, "return_dict_in_generate": True}
    if block_length == 7:
        options["max_new_tokens"] = 45
    num_read = count_columns(monkeypatch)
    with_cache = sample(network, PROMPTS, draft_length=3, **options)
    columns_with_cache = sum(num_read)

    num_read.clear()
    monkeypatch.setattr(TokenScorer, "may_continue", lambda *given: False)
    without = sample(network, PROMPTS, draft_length=3, **options)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert torch.equal(with_cache.num_accepted_drafts, without.num_accepted_drafts)
    if name == "window":  # its cache holds too little
        assert columns_with_cache == sum(num_read)
    else:
        assert columns_with_cache < 0.8 * sum(num_read)


def test_one_row_reads_every_token_once_and_its_refused_drafts(monkeypatch):
    num_read = count_columns(monkeypatch)
    out = sample(with_causal("mdlm"), PROMPTS[:1], max_new_tokens=30, draft_length=4, return_dict_in_generate=True)
    # All of the text but its last token, which is predicted and not read, and what was drafted in vain
    in_vain = int(out.num_drafts - out.num_accepted_drafts)
    assert sum(num_read) <= out.sequences.shape[1] + in_vain


def count_columns(monkeypatch) -> list[int]:
    """A list that gets the number of columns of every reading."""
    read = TokenScorer.read
    num_read = []

    def counted(self, input_ids, *given):
        num_read.append(input_ids.numel())
        return read(self, input_ids, *given)

    monkeypatch.setattr(TokenScorer, "read", counted)
    return num_read


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(("draft_length", "draft_width"), [(1, 0), (4, 0), (4, 3), (None, 0)])
def test_without_sampling_it_is_greedy_decoding(name, draft_length, draft_width):
    network = with_causal(name, draft_width=draft_width)
    text = PROMPTS[:1]
    for _ in range(20):
        logits = network.energy_model(input_ids=text).logits[:, -1, :MASK_ID]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    tokens = sample(network, PROMPTS[:1], max_new_tokens=20, draft_length=draft_length, do_sample=False)
    assert torch.equal(tokens, text)


@pytest.mark.parametrize("draft_width", [0, 3])
def test_the_same_seed_gives_the_same_tokens_and_a_row_its_own_greedy_text(draft_width):
    network = with_causal("mdlm", draft_width=draft_width)
    assert torch.equal(sample(network, PROMPTS, **RAGGED), sample(network, PROMPTS, **RAGGED))
    assert not torch.equal(sample(network, PROMPTS, **RAGGED), sample(network, PROMPTS, seed=1, **RAGGED))

    together = sample(network, PROMPTS, do_sample=False, **RAGGED)
    alone = sample(network, PROMPTS[1:2, :1], do_sample=False, max_new_tokens=30)
    assert torch.equal(together[1, 6:], alone[0, 1:])


def test_a_row_ends_at_its_end_of_text():
    network = with_causal("mdlm")
    options = RAGGED | {"eos_token_id": 5, "pad_token_id": 15, "return_dict_in_generate": True}
    out = sample(network, PROMPTS.repeat(20, 1), draft_length=2, **options | {"attention_mask": None})
    new = out.sequences[:, 6:]
    ended = (new == 5).long().cumsum(-1) - (new == 5).long() > 0
    assert ended.any() and (new[ended] == 15).all() and (out.sequences != MASK_ID).all()
    early = ended.sum(-1) > 20
    assert early.any() and out.num_denoiser_calls[early].max() < out.num_denoiser_calls.max()


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


def test_its_configuration_is_saved_and_loaded(tmp_path):
    network = with_causal("mdlm")
    network.generation_config = EDLMGenerationConfig(sampler="speculative", draft_length=3)
    network.save_pretrained(tmp_path)
    loaded = EDLMForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.float64)
    assert (loaded.generation_config.sampler, loaded.generation_config.draft_length) == ("speculative", 3)

    generator = torch.Generator().manual_seed(0)
    tokens = loaded.generate(PROMPTS[:1], max_new_tokens=8, generator=generator)
    assert torch.equal(tokens, sample(network, PROMPTS[:1], max_new_tokens=8, draft_length=3))
    assert torch.equal(tokens, network.generate(PROMPTS[:1], max_new_tokens=8, generator=generator.manual_seed(0)))
    assert loaded.count_steps(PROMPTS[:1], max_new_tokens=8) == 8


# ------------------------------------------------------------------------------------------------------------ refusals


def test_it_needs_an_autoregressive_energy():
    with pytest.raises(ValueError, match="there is no energy. Combine"):
        sample(combine(TableDenoiser(DENOISERS["uniform"]), mask_token_id=MASK), EMPTY[:2])
    with pytest.raises(ValueError, match="NoiseContrastiveEnergy. Combine"):
        sample(combine(tiny_denoiser(), energy_type="nce"), max_length=8)
    with pytest.raises(ValueError, match="CallableEnergy. Combine"):
        sample(model(), EMPTY[:2], energy=lambda *given: given[2])


@pytest.mark.parametrize("row", [[MASK, MASK, 0, MASK], [1, MASK, 2, 0], [MASK, 1, MASK, MASK]])
def test_holes_before_a_text_are_refused(row):
    network = model()
    with pytest.raises(ValueError, match="from left to right.*masks stand at their end"):
        sample(network, torch.tensor([[1, MASK, MASK, MASK], row]))
    assert network.denoiser.calls == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"draft_length": 0}, "draft_length is 0.*at least 1"),
        ({"draft_length": 2.5}, "draft_length is 2.5.*whole number"),
        ({"draft_length": True}, "draft_length is True"),
        ({"threshold": 0.5}, "'speculative' has no threshold: it takes draft_length"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0.*only change the drafts"),
        ({"corrector_sweeps": 1.0}, "corrector_sweeps is 1.0.*corrector would replace"),
    ],
)
def test_options_without_a_meaning_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        sample(model(), EMPTY[:2], **options)


def test_a_draft_length_belongs_to_this_sampler_alone():
    with pytest.raises(ValueError, match="'spaced' has no draft_length"):
        model().generate(EMPTY[:2], sampler="spaced", draft_length=2)


def test_a_text_from_nothing_needs_a_start_token():
    network = combine(TableDenoiser(DENOISERS["uniform"]), TableCausalLM(P_AR, start=None), mask_token_id=MASK)
    with pytest.raises(ValueError, match="no bos_token_id.*Give a prompt"):
        sample(network, EMPTY[:2])
    tokens = sample(network, torch.full((N, 1), 2), max_new_tokens=3, draft_length=2)
    assert distance(tokens[:, 1:], conditional((2,), 3)) < TV


def test_a_generated_start_token_is_a_token_like_any_other():
    """The start token can be drawn. In a prompt it stands for itself, and no other one goes in front."""
    causal = TableCausalLM(P_AR)
    seen = []
    forward = causal.forward
    causal.forward = lambda input_ids, attention_mask=None: seen.append(input_ids) or forward(input_ids)
    causal.config.bos_token_id = 1
    network = combine(TableDenoiser(DENOISERS["uniform"]), causal, mask_token_id=MASK)
    tokens = sample(network, EMPTY[:500], draft_length=1)
    assert (tokens[:, 0] == 1).any() and all((ids[:, 0] == 1).all() and ids.shape[1] <= L for ids in seen)
    assert distance(sample(network, EMPTY, draft_length=1), P_AR) < TV

    seen.clear()
    sample(network, torch.tensor([[1, MASK, MASK, MASK]]), draft_length=3)
    assert seen[0].shape[1] == L - 1


def test_another_vocabulary_and_too_short_a_model_are_refused():
    sizes = {"vocab_size": VOCABULARY, "mask_token_id": MASK_ID, "model_length": LENGTH}
    fewer = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES | {"vocab_size": VOCABULARY - 3}))
    with pytest.raises(ValueError, match="only 14 rows|vocabulary"):
        sample(combine(tiny_denoiser(**sizes), fewer), max_length=8)

    shorter = tiny_causal(vocab_size=VOCABULARY, mask_token_id=MASK_ID, model_length=20, bos_token_id=0)
    network = combine(tiny_denoiser(**sizes), shorter)
    with pytest.raises(ValueError, match="reads at most 20 tokens"):
        sample(network, max_length=30)
    assert sample(network, PROMPTS, max_new_tokens=14).shape == (3, 20)


def test_it_has_no_bound_and_trains_no_energy():
    with pytest.raises(ValueError, match="call autoregressive_nll"):
        sampler_bound(model(), SEQUENCES[:4].tolist(), num_steps=4, sampler="speculative")
    with pytest.raises(ValueError, match="sampler is 'speculative'.*sees masks alone"):
        EnergyArguments(output_dir="unused", sampler="speculative", max_denoising_steps=4)


@pytest.mark.parametrize("draft_length", [10**6, 2**63 - 1, 10**30])
def test_drafts_may_be_longer_than_any_text(draft_length):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    options = {"max_length": 6, "sampler": "speculative", "return_dict_in_generate": True}
    out = model.generate(draft_length=draft_length, generator=torch.Generator().manual_seed(0), **options)
    whole = model.generate(draft_length=6, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(out.sequences, whole.sequences)


def test_a_text_without_holes_has_no_drafts():
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    out = model.generate(torch.tensor([[1, 2]]), max_new_tokens=0, sampler="speculative", return_dict_in_generate=True)
    assert out.num_drafts.tolist() == out.num_accepted_drafts.tolist() == [0]
