"""The draft head of a denoiser: its formula, how it is made, saved and loaded, and that width 0 is as before."""

import json

import pytest
import torch
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from safetensors.torch import load_file
from training import same
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM, MDLMModel
from edlm_hf.modeling.draft_head import tokens_before

IDS = torch.tensor([[3, 12, 5, 0, 12, 7]])
AT = torch.tensor([[False, True, False, False, True, False]])
PAIRS = torch.tensor([[3, 12], [0, 5]])


@torch.no_grad()
def test_the_head_corrects_hidden_states_by_its_formula():
    head = randomised(tiny_denoiser(draft_width=5)).draft_head
    torch.manual_seed(0)
    size = head.leave.out_features
    hidden, embeddings = torch.randn(2, size), 3 + 4 * torch.randn(2, 2, size)
    found = head(hidden, embeddings)

    for n in range(2):
        inputs = [hidden[n], *embeddings[n]]
        normed = torch.cat([(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in inputs])
        inner = head.enter.weight @ normed + head.enter.bias
        torch.testing.assert_close(found[n], hidden[n] + head.leave.weight @ (inner * inner.sigmoid()))


@torch.no_grad()
def test_the_denoiser_gives_the_logits_of_drafts_from_corrected_states():
    denoiser = randomised(tiny_denoiser(draft_width=2))
    hidden = denoiser.hidden_at(AT, IDS)
    plain = denoiser(IDS, logits_at=AT).logits
    drafts = denoiser(IDS, logits_at=AT, previous_ids=PAIRS).logits
    corrected = denoiser.draft_head(hidden, denoiser.get_input_embeddings()(PAIRS))

    torch.testing.assert_close(drafts, denoiser.projection()(corrected))
    assert (drafts - plain).abs().amax(-1).min() > 1e-3
    with pytest.raises(ValueError, match="previous_ids needs a draft head"):
        tiny_denoiser()(IDS, logits_at=AT, previous_ids=PAIRS)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_head_computes_in_its_precision_and_keeps_that_of_the_states(dtype):
    denoiser = randomised(tiny_denoiser(draft_width=5))
    expected = denoiser.hidden_of_drafts(denoiser.hidden_at(AT, IDS), PAIRS)
    denoiser.to(dtype)
    found = denoiser.hidden_of_drafts(denoiser.hidden_at(AT, IDS), PAIRS)
    assert found.dtype == denoiser.hidden_at(AT, IDS).dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_new_head_is_zero_and_leaves_the_denoiser_as_it_is():
    denoiser = tiny_denoiser().to(torch.bfloat16)
    before = denoiser(IDS).logits
    denoiser.add_draft_head(3)
    head = denoiser.draft_head

    assert denoiser.config.draft_width == 3 and head.enter.weight.dtype == torch.bfloat16
    assert (head.leave.weight == 0).all() and head.enter.weight.std() > 0.05
    assert torch.equal(denoiser(IDS).logits, before)
    assert torch.equal(denoiser(IDS, logits_at=AT, previous_ids=PAIRS).logits, denoiser(IDS, logits_at=AT).logits)
    with pytest.raises(ValueError, match="width of a draft head is 0, but it must be at least 1"):
        denoiser.add_draft_head(0)


def test_a_head_from_a_configuration_starts_in_the_same_way():
    torch.manual_seed(0)
    with_head = MDLMForMaskedLM(tiny_config(draft_width=3))
    torch.manual_seed(0)
    without = MDLMForMaskedLM(tiny_config())
    assert (with_head.draft_head.leave.weight == 0).all()
    assert with_head.draft_head.enter.weight.std() > 0.05
    assert same(with_head.backbone, without.backbone)


def test_the_two_tokens_before_a_place_are_the_mask_where_a_text_begins():
    ids = torch.tensor([[7, 8, 9], [4, 5, 6]])
    rows, columns = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 2])
    assert tokens_before(ids, rows, columns, 12).tolist() == [[12, 12], [7, 12], [8, 7], [5, 4]]


@pytest.mark.parametrize("changes", [{"draft_width": -1}, {"draft_width": 2, "causal": True}])
def test_a_width_without_a_meaning_is_refused(changes):
    with pytest.raises(ValueError, match="draft_width is .*a causal model drafts nothing"):
        tiny_config(**changes)


def test_without_a_head_nothing_of_it_is_saved(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.save_pretrained(tmp_path)
    assert denoiser.draft_head is None
    assert json.loads((tmp_path / "config.json").read_text())["draft_width"] == 0
    assert not any("draft" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_head_is_saved_and_loaded_with_its_denoiser_alone_and_in_a_composite(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.add_draft_head(2)
    denoiser.add_first_draft(16)
    for head in (denoiser.draft_head, denoiser.first_draft):
        torch.nn.init.normal_(head.leave.weight)
    denoiser.save_pretrained(tmp_path / "denoiser")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "denoiser")
    assert same(denoiser, loaded)

    causal = tiny_causal(bos_token_id=0)
    whole = EDLMForMaskedDiffusion.from_components(loaded, causal)
    assert whole.config.denoiser_config.draft_width == 2

    whole.save_pretrained(tmp_path / "whole")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole")
    assert same(whole, again) and again.denoiser.config.draft_width == 2
    assert same(denoiser, MDLMForMaskedLM.from_pretrained(tmp_path / "whole"))

    options = {"sampler": "speculative", "max_length": 10}
    first = whole.generate(generator=torch.Generator().manual_seed(0), **options)
    second = again.generate(generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(first, second)


def test_a_trunk_goes_without_the_head_and_a_head_may_start_new_on_a_trunk(tmp_path):
    denoiser = tiny_denoiser(draft_width=2)
    denoiser.save_pretrained(tmp_path / "denoiser")
    trunk = MDLMModel.from_pretrained(tmp_path / "denoiser")
    trunk.save_pretrained(tmp_path / "trunk")
    new = MDLMForMaskedLM.from_pretrained(tmp_path / "trunk")
    assert (new.draft_head.leave.weight == 0).all()
    assert torch.equal(new.backbone.blocks[0].attn_qkv.weight, denoiser.backbone.blocks[0].attn_qkv.weight)


def test_an_energy_starts_from_a_denoiser_with_a_head(tmp_path):
    for weights in ("own", "shared"):
        denoiser = tiny_denoiser(draft_width=2, draft_target_dim=7)
        whole = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce", energy_weights=weights)
        assert not any("draft" in name for name, _ in whole.energy_model.named_parameters())
        whole.save_pretrained(tmp_path / weights)
        assert same(whole, AutoModelForMaskedLM.from_pretrained(tmp_path / weights))


@torch.no_grad()
@pytest.mark.parametrize("vocab_size", [20, 13])
def test_another_vocabulary_leaves_the_head_as_it_is(tmp_path, vocab_size):
    denoiser = tiny_denoiser(draft_width=2, draft_target_dim=7)
    before = denoiser(IDS, logits_at=AT, previous_ids=PAIRS).logits
    denoiser.resize_token_embeddings(vocab_size, mean_resizing=False)
    after = denoiser(IDS, logits_at=AT, previous_ids=PAIRS).logits
    assert after.shape == (2, vocab_size) and torch.equal(after[:, :13], before)
    denoiser.save_pretrained(tmp_path)
    assert same(denoiser, MDLMForMaskedLM.from_pretrained(tmp_path))
