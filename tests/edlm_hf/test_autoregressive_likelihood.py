"""The likelihood of causal language models."""

import pytest
import torch
from published import randomised, tiny_causal, tiny_denoiser, tiny_gpt2
from transformers import BertConfig, BertForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll


def test_the_likelihood_of_a_causal_model_is_the_direct_one():
    gpt2, ids = tiny_gpt2(), torch.randint(0, 11, (5, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        started = torch.nn.functional.pad(ids, (1, 0), value=11)
        direct = -gpt2(started).logits[:, :-1].double().log_softmax(-1).gather(-1, ids[..., None]).sum() / ids.numel()
        gpt2.config.bos_token_id = None
        without = -gpt2(ids[:, :-1]).logits.double().log_softmax(-1).gather(-1, ids[:, 1:, None]).sum() / (5 * 7)

    result = autoregressive_nll(gpt2, ids)
    assert result.value == pytest.approx(float(without), abs=1e-6)
    gpt2.config.bos_token_id = 11
    result = autoregressive_nll(gpt2, ids, batch_size=2)

    assert result.value == pytest.approx(float(direct), abs=1e-6)
    assert result.standard_error == 0 and result.text_standard_error > 0
    # The start token is there
    assert autoregressive_nll(gpt2, started).value == pytest.approx(float(direct), abs=1e-6)


def test_our_own_causal_model_never_expects_the_mask():
    causal, ids = tiny_causal(bos_token_id=0), torch.randint(1, 12, (3, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = causal(torch.nn.functional.pad(ids, (1, 0))).logits[:, :-1, :12]
    direct = -logits.log_softmax(-1).gather(-1, ids[..., None]).mean()
    assert autoregressive_nll(causal, ids).value == pytest.approx(float(direct), abs=1e-5)


@pytest.mark.parametrize("kind", ["denoiser", "none", "nce", "bert"])
def test_a_model_that_is_not_causal_has_no_autoregressive_likelihood(kind):
    if kind == "bert":
        sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        network = randomised(BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)))
    else:
        options = {"energy_type": "nce"} if kind == "nce" else {}
        network = tiny_denoiser()
        if kind != "denoiser":
            network = EDLMForMaskedDiffusion.from_components(network, **options)

    with pytest.raises(ValueError, match="from later ones too.*nelbo"):
        autoregressive_nll(network, [[1, 2, 3]])
