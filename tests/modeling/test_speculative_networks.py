"""Speculative sampling of networks: the cache that is rolled back, greedy decoding, seeds and ends of texts."""

import pytest
import torch
from published import tiny_causal, tiny_denoiser
from speculation import sample
from speculative_networks import CAUSAL, MASK_ID, PROMPTS, RAGGED, with_causal

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.causal_log_probs import TokenScorer
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationConfig


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("block_length", [None, 7, 11])
def test_the_cache_that_is_rolled_back_changes_nothing(name, do_sample, block_length, monkeypatch):
    """Blocks of 11 end in a shorter one. Texts longer than the denoiser are seen through a window that moves."""
    network = with_causal(name)
    options = RAGGED | {
        "do_sample": do_sample,
        "block_length": block_length,
        "return_dict_in_generate": True,
    }
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
    out = sample(
        with_causal("mdlm"),
        PROMPTS[:1],
        max_new_tokens=30,
        draft_length=4,
        return_dict_in_generate=True,
    )
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


@pytest.mark.parametrize("draft_length", [10**6, 2**63 - 1, 10**30])
def test_drafts_may_be_longer_than_any_text(draft_length):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    options = {"max_length": 6, "sampler": "speculative", "return_dict_in_generate": True}
    out = model.generate(
        draft_length=draft_length,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    whole = model.generate(draft_length=6, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(out.sequences, whole.sequences)
