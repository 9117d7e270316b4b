"""Scorers for an evaluation harness, of tiny random networks and of the exact test-bed."""

from functools import cache

import torch
from exact import MASK, SEQUENCES, L, TableDenoiser, marginals, perturbed, random_joint
from published import randomised, tiny_causal, tiny_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.evaluation.scorer import EDLMScorer
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 12
TABLE = perturbed(marginals(random_joint()), seed=1)
TEXTS = ["".join("abc"[token] for token in row) for row in SEQUENCES]


@cache
def letters(**special) -> PreTrainedTokenizerFast:
    """a, b, c and the mask, as in the exact test-bed, and an end-of-text "." if wanted."""
    symbols = ["a", "b", "c", "[MASK]", *special.values()]
    backend = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **special)


def exact_scorer(energy=None, **options) -> EDLMScorer:
    model = EDLMForMaskedDiffusion.from_components(TableDenoiser(TABLE), energy, mask_token_id=MASK)
    return EDLMScorer(model, letters(), **({"batch_size": 512, "max_length": L} | options))


def tiny_scorer(start_token=True, energy=False, tokenizer=None, scale=1, **options) -> EDLMScorer:
    tokenizer = tokenizer or text8_tokenizer(LENGTH, start_token=start_token)
    sizes = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "model_length": LENGTH,
    }
    sizes["mask_token_id"] = tokenizer.mask_token_id
    model = randomised(MDLMForMaskedLM(tiny_config(**sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale

    if energy:
        model = EDLMForMaskedDiffusion.from_components(model, tiny_causal(**sizes), energy_type="ar")
    return EDLMScorer(model, tokenizer, **({"num_samples": 2, "num_steps": 4} | options))


def varied_scorer(**options) -> EDLMScorer:
    """One whose greedy text is more than one letter."""
    return tiny_scorer(start_token=False, scale=3, **options)
