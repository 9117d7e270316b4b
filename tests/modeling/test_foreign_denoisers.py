"""Denoisers of others: shifted logits, a mask of their own, decoders of transformers without a causal mask."""

import copy

import foreign_models as foreign
import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_gpt2
from transformers import LlamaConfig, LlamaForCausalLM, PerceiverConfig, PerceiverForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion

MASK, PAD = 12, 10
PROMPT = torch.tensor([[3, 12, 5, 0, 12, 7], [1, 2, 12, 12, 4, 9]])  # position 0 is known
build = EDLMForMaskedDiffusion.from_components


def llada():
    return foreign_model(foreign.LLaDAModelLM, foreign.LLaDAConfig)


def dream():
    """The same weights as `llada`, with logits one position to the left."""
    return foreign_model(foreign.DreamModel, foreign.DreamConfig)


def foreign_model(model_class, config_class):
    torch.manual_seed(0)
    return model_class(config_class(pad_token_id=PAD))


def decoder(**changes):
    sizes = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 32, "pad_token_id": PAD}
    tokens = {"bos_token_id": None, "eos_token_id": None, "mask_token_id": MASK}
    return randomised(LlamaForCausalLM(LlamaConfig(**(sizes | tokens | changes))))


def test_shift_of_dream_is_known():
    expected, shifted = build(llada()), build(dream())
    assert (expected.config.logits_shift, shifted.config.logits_shift) == (0, 1)
    tokens = shifted.generate(PROMPT, generator=seed())
    assert torch.equal(tokens, expected.generate(PROMPT, generator=seed()))


def test_shift_is_that_of_the_argument_then_of_the_configuration():
    stated = decoder(is_causal=False, logits_shift=1)
    assert build(stated).config.logits_shift == 1
    assert build(stated, logits_shift=0).config.logits_shift == 0
    assert build(dream(), logits_shift=0).config.logits_shift == 0
    # A composite has undone its own
    assert build(build(dream()), mask_token_id=MASK).config.logits_shift == 0


def test_dream_gets_the_mask_of_ragged_rows_in_its_own_form():
    ids = torch.tensor([[3, 4, MASK, 6], [5, 4, 2, PAD]])
    model = build(dream())
    likeliest = {"max_new_tokens": 2, "do_sample": False, "sampler": "first_hitting"}
    both = model.generate(ids, attention_mask=(ids != PAD).long(), **likeliest)
    first, second = (model.generate(row, **likeliest) for row in (ids[:1], ids[1:, :3]))
    assert torch.equal(both[:1], first)
    assert torch.equal(both[1:, 4:], second[:, 3:])

    again = build(model.denoiser, logits_shift=1)  # as it was wrapped
    assert torch.equal(again.generate(ids, attention_mask=(ids != PAD).long(), **likeliest), both)


@torch.no_grad()
@pytest.mark.parametrize("make", [decoder, lambda **changes: tiny_gpt2(vocab_size=13, mask_token_id=MASK, **changes)])
def test_a_decoder_without_causal_mask_is_a_denoiser_that_can_be_saved(make, tmp_path):
    bidirectional = make(is_causal=False, logits_shift=1, bos_token_id=None, eos_token_id=None)
    causal = make(bos_token_id=None, eos_token_id=None)
    causal.load_state_dict(bidirectional.state_dict())
    with pytest.raises(ValueError, match="causal language model"):
        build(causal)

    model = build(bidirectional, tiny_causal(bos_token_id=0))
    model.save_pretrained(tmp_path)
    again = EDLMForMaskedDiffusion.from_pretrained(tmp_path)
    assert again.config.logits_shift == 1
    torch.testing.assert_close(again(PROMPT).logits, model(PROMPT).logits)
    assert torch.equal(again.generate(PROMPT, generator=seed()), model.generate(PROMPT, generator=seed()))


def test_a_denoiser_that_would_come_back_causal_is_not_saved(tmp_path):
    model = build(decoder(is_causal=False))
    model.denoiser.config.is_causal = True
    with pytest.raises(ValueError, match="could not denoise.*is_causal = False"):
        model.save_pretrained(tmp_path)

    config = copy.deepcopy(model.config)
    with pytest.raises(ValueError, match="causal language model .*llama"):
        EDLMForMaskedDiffusion(config)


def test_a_denoiser_that_reads_one_length_alone_is_refused_for_others():
    sizes = {
        "vocab_size": 13,
        "d_model": 8,
        "d_latents": 8,
        "num_latents": 4,
        "num_self_attends_per_block": 1,
    }
    perceiver = PerceiverForMaskedLM(PerceiverConfig(**sizes, max_position_embeddings=8))
    model = build(perceiver.eval(), mask_token_id=MASK)
    with pytest.raises(ValueError, match=r"PerceiverForMaskedLM.* 8, 13\) for ids of shape .* 6\)"):
        model.generate(PROMPT, max_new_tokens=0)
    assert model.generate(max_length=8, generator=seed()).shape == (1, 8)
