"""The likelihood of causal language models."""

import pytest
import torch
from published import randomised, tiny_causal, tiny_denoiser, tiny_gpt2
from transformers import BertConfig, BertForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll


def nats(logits, ids):
    """-log p of every token (B, L) under logits (B, L, V)."""
    log_probs = logits.log_softmax(-1)
    return -log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def test_the_likelihood_of_a_causal_model_is_the_direct_one():
    gpt2 = tiny_gpt2()
    ids = torch.randint(0, 11, (5, 8), generator=torch.Generator().manual_seed(0))
    started = torch.nn.functional.pad(ids, (1, 0), value=11)
    with torch.no_grad():
        with_start = nats(gpt2(started).logits[:, :-1].double(), ids).mean()
        without_start = nats(gpt2(ids[:, :-1]).logits.double(), ids[:, 1:]).mean()

    gpt2.config.bos_token_id = None
    result = autoregressive_nll(gpt2, ids)
    assert result.value == pytest.approx(float(without_start), abs=1e-6)

    gpt2.config.bos_token_id = 11
    result = autoregressive_nll(gpt2, ids, batch_size=2)
    assert result.value == pytest.approx(float(with_start), abs=1e-6)
    assert result.standard_error == 0
    assert result.text_standard_error > 0

    # The start token is there
    result = autoregressive_nll(gpt2, started)
    assert result.value == pytest.approx(float(with_start), abs=1e-6)


def test_our_own_causal_model_never_expects_the_mask():
    causal = tiny_causal(bos_token_id=0)
    ids = torch.randint(1, 12, (3, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = causal(torch.nn.functional.pad(ids, (1, 0))).logits

    expected = nats(logits[:, :-1, :12], ids).mean()
    result = autoregressive_nll(causal, ids)
    assert result.value == pytest.approx(float(expected), abs=1e-5)


def not_causal(kind):
    """A model that sees later tokens too."""
    if kind == "bert":
        config = BertConfig(
            vocab_size=13,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
        return randomised(BertForMaskedLM(config))
    if kind == "denoiser":
        return tiny_denoiser()
    if kind == "none":
        return EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    return EDLMForMaskedDiffusion.from_components(tiny_denoiser(), energy_type=kind)


@pytest.mark.parametrize("kind", ["denoiser", "none", "nce", "bert"])
def test_a_model_that_is_not_causal_has_no_autoregressive_likelihood(kind):
    with pytest.raises(ValueError, match="from later ones too.*nelbo"):
        autoregressive_nll(not_causal(kind), [[1, 2, 3]])
