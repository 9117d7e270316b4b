"""The draft head of a denoiser: its term, how it is made, resized, saved and loaded, and that rank 0 is as before."""

import json

import pytest
import torch
from published import tiny_causal, tiny_config, tiny_denoiser
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM, MDLMModel
from edlm_hf.modeling.draft_head import DraftHead

IDS = torch.tensor([[3, 12, 5, 0, 12, 7]])
PAIR = torch.tensor([3, 7])


def same(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    return all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())


@torch.no_grad()
def test_the_term_is_bilinear_and_in_single_precision_at_least():
    head = tiny_denoiser(draft_rank=2).draft_head
    term = head.previous.weight[PAIR] @ head.next.weight.T
    torch.testing.assert_close(head(PAIR), term)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert head.to(dtype)(PAIR).dtype == expected
    torch.testing.assert_close(head(PAIR).float(), term, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_the_denoiser_gives_the_logits_of_drafts():
    denoiser = tiny_denoiser(draft_rank=2)
    at = torch.tensor([[False, True, False, False, True, False]])
    plain = denoiser(IDS, logits_at=at).logits
    drafts = denoiser(IDS, logits_at=at, previous_ids=PAIR).logits
    torch.testing.assert_close(drafts, plain + denoiser.draft_head(PAIR))
    with pytest.raises(ValueError, match="previous_ids needs a draft head"):
        tiny_denoiser()(IDS, logits_at=at, previous_ids=PAIR)


@torch.no_grad()
def test_a_new_head_is_zero_and_leaves_the_denoiser_as_it_is():
    denoiser = tiny_denoiser().to(torch.bfloat16)
    embedding = denoiser.get_input_embeddings().weight
    embedding[4] = embedding[9]
    before = denoiser(IDS).logits
    denoiser.add_draft_head(3)
    head = denoiser.draft_head
    assert torch.equal(head.previous.weight[4], head.previous.weight[9])  # tokens that are alike
    assert denoiser.config.draft_rank == 3 and head.previous.weight.dtype == torch.bfloat16
    assert (head(PAIR) == 0).all() and head.previous.weight.std() > 0.1
    assert torch.equal(denoiser(IDS).logits, before)
    with pytest.raises(ValueError, match="rank of a draft head is 0, but it must be at least 1"):
        denoiser.add_draft_head(0)


def test_a_head_from_a_configuration_starts_in_the_same_way():
    torch.manual_seed(0)
    with_head = MDLMForMaskedLM(tiny_config(draft_rank=3))
    torch.manual_seed(0)
    without = MDLMForMaskedLM(tiny_config())
    assert (with_head.draft_head.next.weight == 0).all() and with_head.draft_head.previous.weight.std() > 0.1
    assert same(with_head.backbone, without.backbone)


@pytest.mark.parametrize("changes", [{"draft_rank": -1}, {"draft_rank": 2, "causal": True}])
def test_a_rank_without_a_meaning_is_refused(changes):
    with pytest.raises(ValueError, match="draft_rank is .*a causal model drafts nothing"):
        tiny_config(**changes)


def test_without_a_head_nothing_of_it_is_saved(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.save_pretrained(tmp_path)
    assert denoiser.draft_head is None
    assert json.loads((tmp_path / "config.json").read_text())["draft_rank"] == 0
    assert not any("draft" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_head_is_saved_and_loaded_with_its_denoiser_alone_and_in_a_composite(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.add_draft_head(2)
    torch.nn.init.normal_(denoiser.draft_head.next.weight)
    denoiser.save_pretrained(tmp_path / "denoiser")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "denoiser")
    assert same(denoiser, loaded)

    causal = tiny_causal(bos_token_id=0)
    whole = EDLMForMaskedDiffusion.from_components(loaded, causal)
    assert whole.config.denoiser_config.draft_rank == 2
    whole.save_pretrained(tmp_path / "whole")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole")
    assert same(whole, again) and again.denoiser.config.draft_rank == 2
    assert same(denoiser, MDLMForMaskedLM.from_pretrained(tmp_path / "whole"))

    options = {"sampler": "speculative", "max_length": 10}
    first = whole.generate(generator=torch.Generator().manual_seed(0), **options)
    second = again.generate(generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(first, second)


def test_a_trunk_goes_without_the_head_and_a_head_may_start_new_on_a_trunk(tmp_path):
    denoiser = tiny_denoiser(draft_rank=2)
    denoiser.save_pretrained(tmp_path / "denoiser")
    trunk = MDLMModel.from_pretrained(tmp_path / "denoiser")
    trunk.save_pretrained(tmp_path / "trunk")
    new = MDLMForMaskedLM.from_pretrained(tmp_path / "trunk")
    assert (new.draft_head.next.weight == 0).all()
    assert torch.equal(new.backbone.blocks[0].attn_qkv.weight, denoiser.backbone.blocks[0].attn_qkv.weight)


def test_an_energy_starts_from_a_denoiser_with_a_head(tmp_path):
    for weights in ("own", "shared"):
        whole = EDLMForMaskedDiffusion.from_components(
            tiny_denoiser(draft_rank=2), energy_type="nce", energy_weights=weights
        )
        assert not any("draft" in name for name, _ in whole.energy_model.named_parameters())
        whole.save_pretrained(tmp_path / weights)
        assert same(whole, AutoModelForMaskedLM.from_pretrained(tmp_path / weights))


@torch.no_grad()
@pytest.mark.parametrize("vocab_size", [20, 13])
def test_a_head_has_the_vocabulary_of_its_denoiser(tmp_path, vocab_size):
    denoiser = tiny_denoiser(draft_rank=2)
    before = denoiser.draft_head(PAIR)
    denoiser.resize_token_embeddings(vocab_size, mean_resizing=False)
    after = denoiser.draft_head(PAIR)
    assert after.shape == (2, vocab_size) and torch.equal(after[:, :13], before) and (after[:, 13:] == 0).all()
    denoiser.save_pretrained(tmp_path)
    assert same(denoiser, MDLMForMaskedLM.from_pretrained(tmp_path))


def test_fewer_tokens_leave_the_others_as_they_are():
    head = DraftHead(5, 2)
    torch.nn.init.normal_(head.next.weight)
    before = head(PAIR[:1])
    head.resize(4)
    assert torch.equal(head(PAIR[:1]), before[:, :4])
