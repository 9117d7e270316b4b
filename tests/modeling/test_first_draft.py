"""The first draft of a round, which reads the states of the target: its formula, its place in a round, and its law."""

import numpy as np
import pytest
import torch
from exact import SEQUENCES, L, V, distance
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from speculation import combine, sample
from speculative_networks import PROMPTS, RAGGED, with_causal
from training import same
from transformers import AutoModelForMaskedLM

from edlm_hf import MDLMConfig, MDLMForMaskedLM, MDLMModel

IDS = torch.tensor([[3, 12, 5, 0, 12, 12], [1, 2, 12, 12, 12, 12]])
AT = torch.tensor([[False, True, False, False, True, False], [False, False, False, False, False, True]])
PAIRS = torch.tensor([[3, 12], [0, 5], [12, 12]])


HEADS = {"draft_width": 6, "draft_target_dim": 16}


@torch.no_grad()
def test_the_first_draft_is_corrected_by_its_formula():
    first = randomised(tiny_denoiser(draft_width=5, draft_target_dim=7)).first_draft
    torch.manual_seed(0)
    hidden, states, embeddings = torch.randn(2, 16), 5 * torch.randn(2, 7), 3 + 4 * torch.randn(2, 2, 16)
    found = first(hidden, states, embeddings)

    of_denoiser, of_target = first.shares
    for n in range(2):
        inputs = [states[n], *embeddings[n]]
        normed = torch.cat([(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in inputs])
        inner = first.enter.weight @ normed + first.enter.bias
        expert = first.leave.weight @ (inner * inner.sigmoid())
        torch.testing.assert_close(found[n], of_denoiser * hidden[n] + of_target * expert)


@torch.no_grad()
def test_states_correct_the_first_position_of_every_row_and_the_head_the_others():
    denoiser = tiny_denoiser(draft_width=5, draft_target_dim=7)
    states = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    found = denoiser(IDS, logits_at=AT, previous_ids=PAIRS, target_hidden=states).logits

    hidden = denoiser.hidden_at(AT, IDS)
    expected = denoiser.hidden_of_drafts(hidden, PAIRS)
    is_first = [0, 2]
    expected[is_first] = denoiser.hidden_of_drafts(hidden[is_first], PAIRS[is_first], states)
    torch.testing.assert_close(found, denoiser.projection()(expected))
    for left_out in ({"logits_at": None}, {"previous_ids": None}):
        given = {"logits_at": AT, "previous_ids": PAIRS, "target_hidden": states} | left_out
        with pytest.raises(ValueError, match="target_hidden needs logits_at, previous_ids and a head"):
            denoiser(IDS, **given)


@torch.no_grad()
def test_a_new_one_leaves_the_denoiser_and_its_head_as_they_are():
    denoiser = tiny_denoiser(draft_width=3).to(torch.bfloat16)
    plain = denoiser(IDS, logits_at=AT).logits
    later = denoiser(IDS, logits_at=AT, previous_ids=PAIRS).logits
    denoiser.add_first_draft(7)
    found = denoiser(IDS, logits_at=AT, previous_ids=PAIRS, target_hidden=torch.randn(2, 7)).logits

    assert denoiser.config.draft_target_dim == 7 and denoiser.first_draft.enter.weight.dtype == torch.bfloat16
    assert torch.equal(found[[0, 2]], plain[[0, 2]]) and torch.equal(found[1], later[1])
    denoiser.add_draft_head(3)
    assert denoiser.first_draft is None and denoiser.config.draft_target_dim == 0


def test_sizes_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="needs a draft head: call add_draft_head"):
        tiny_denoiser().add_first_draft(7)
    with pytest.raises(ValueError, match="target_dim is 0, but it must be the hidden size of the target"):
        tiny_denoiser(draft_width=2).add_first_draft(0)
    with pytest.raises(ValueError, match="draft_target_dim is -1, but it must be the hidden size"):
        tiny_config(draft_target_dim=-1, draft_width=2)


def test_a_configuration_without_a_head_is_one_without_a_first_draft():
    """So that the sizes of a denoiser with both may be those of a causal model with `draft_width` at 0."""
    sizes = tiny_config(draft_width=2, draft_target_dim=7).to_dict()
    config = MDLMConfig(**sizes | {"causal": True, "draft_width": 0})
    assert config.draft_target_dim == 0
    assert MDLMForMaskedLM(MDLMConfig(**sizes | {"draft_width": 0})).first_draft is None


def test_it_is_saved_and_loaded_and_starts_new_on_a_trunk(tmp_path):
    denoiser = tiny_denoiser(draft_width=2, draft_target_dim=7)
    denoiser.save_pretrained(tmp_path / "denoiser")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "denoiser")
    assert same(denoiser, loaded)
    assert loaded.first_draft.enter.in_features == 7 + 2 * 16

    trunk = MDLMModel.from_pretrained(tmp_path / "denoiser")
    trunk.save_pretrained(tmp_path / "trunk")
    new = MDLMForMaskedLM.from_pretrained(tmp_path / "trunk")
    assert (new.first_draft.leave.weight == 0).all() and (new.first_draft.shares == 1).all()


@pytest.mark.parametrize("draft_length", [1, 3, None])
@pytest.mark.parametrize("block_length", [None, 8])
def test_the_states_are_those_by_which_the_target_gave_the_last_tokens(draft_length, block_length):
    network = with_causal("mdlm", **HEADS)
    read = []
    correct = network.denoiser.hidden_of_drafts

    def watched(hidden, previous_ids, target_hidden=None):
        if target_hidden is not None:
            read.append((previous_ids, target_hidden))
        return correct(hidden, previous_ids, target_hidden)

    network.denoiser.hidden_of_drafts = watched
    out = sample(
        network,
        torch.tensor([[0, 3], [7, 5], [4, 8]]),
        max_new_tokens=30,
        draft_length=draft_length,
        block_length=block_length,
        return_dict_in_generate=True,
    )

    # (B, L, G) at the column before every token. Two prompts need a start token in front
    texts = out.sequences
    needed = (texts[:, :1] != 0).long()
    with_start = torch.where(needed.bool(), torch.nn.functional.pad(texts[:, :-1], (1, 0)), texts)
    states = network.energy_model.backbone(input_ids=with_start).last_hidden_state

    # Every state that was read belongs to a place with the tokens that stood before the draft
    assert len(read) >= 10
    for pairs, found in read:
        for (last, one_before), state in zip(pairs.tolist(), found, strict=True):
            same = torch.isclose(states, state, atol=1e-9).all(-1).nonzero().tolist()
            places = [(row, column + 1 - int(needed[row])) for row, column in same]
            assert any(
                texts[row, column] == last and (column == 0 or texts[row, column - 1] == one_before)
                for row, column in places
            )


def test_a_target_of_another_size_leaves_the_first_draft_to_the_denoiser():
    with_first = with_causal("llama", **HEADS)
    without = with_causal("llama", draft_width=6)
    without.load_state_dict(with_first.state_dict(), strict=False)
    options = {"draft_length": 3, **RAGGED}
    assert torch.equal(sample(with_first, PROMPTS, **options), sample(without, PROMPTS, **options))


@torch.no_grad()
@pytest.mark.parametrize(
    ("draft_length", "options"),
    [(1, {}), (2, {}), (3, {}), (4, {}), (None, {}), (2, {"temperature": 0.5, "top_k": 2})],
)
def test_the_law_is_that_of_the_target_with_a_first_draft_that_learnt_something_else(draft_length, options):
    """50,000 draws, for which a total variation distance of about 0.012 over 81 sequences is expected."""
    sizes = {"vocab_size": V + 2, "mask_token_id": V, "model_length": L + 1, "absent_token_ids": [[V + 1, V + 1]]}
    causal = tiny_causal(**sizes, bos_token_id=V + 1)
    network = combine(tiny_denoiser(**sizes, draft_width=4, draft_target_dim=16), causal)

    # p_AR of every text over the tokens that the denoiser can emit, with the filters
    texts = torch.tensor(SEQUENCES)
    logits = causal(input_ids=torch.nn.functional.pad(texts, (1, 0), value=V + 1)).logits[:, :-1, :V].double()
    logits = logits / options.get("temperature", 1)
    least = logits.topk(options.get("top_k", V), dim=-1).values[..., -1:]
    log_p = logits.masked_fill(logits < least, -torch.inf).log_softmax(-1)
    law = log_p.gather(-1, texts.unsqueeze(-1)).sum((1, 2)).exp().numpy()

    tokens = sample(network, torch.full((50_000, L), V), draft_length=draft_length, **options)
    assert distance(tokens, law / law.sum()) < 0.024
    uniform = np.full(len(law), 1 / len(law))
    assert np.abs(law - uniform).sum() / 2 > 0.1


def test_without_sampling_the_text_is_that_of_greedy_decoding():
    network = with_causal("mdlm", **HEADS)
    with_heads = sample(network, PROMPTS, do_sample=False, **RAGGED)
    network.denoiser.draft_head = None
    assert torch.equal(with_heads, sample(network, PROMPTS, do_sample=False, **RAGGED))
