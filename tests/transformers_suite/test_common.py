"""transformers' own common model tests on our three model classes.

The suite comes from the sdist of the installed transformers (`fetch.py`, run by `make test`). Tests that are switched
off are listed here with their reasons.
"""

import importlib
import sys
import unittest
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
import torch
from published import tiny_config
from torch import nn
from transformers import initialization

from edlm_hf import EDLMConfig, EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM, MDLMModel
from edlm_hf.modeling.mdlm_pretrained import MDLMPreTrainedModel

SUITE = Path(__file__).parents[2] / ".cache" / f"transformers-{version('transformers')}"
if not SUITE.exists():
    pytest.skip(
        f"{SUITE.name} is not there: run tests/transformers_suite/fetch.py (needs a package index)",
        allow_module_level=True,
    )
sys.path.append(str(SUITE))
common = importlib.import_module("transformers_tests.test_modeling_common")

# The suite knows which class computes which loss from these tables of the library's own models.
common.MODEL_MAPPING_NAMES["mdlm"] = "MDLMModel"
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES["mdlm"] = "MDLMForMaskedLM"
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES["edlm"] = "EDLMForMaskedDiffusion"
common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["mdlm"] = "MDLMForCausalLM"

PUBLISHED_START = MDLMPreTrainedModel._init_weights

EVERYWHERE = {
    "test_generation_tester_mixin_inheritance": "generate() has its own tests; the sdist lacks GenerationTesterMixin",
    "test_bc_cache_name_forward": "asks for a warning where the cache is called past_key_values, which is not an old "
    "name here: versions before 5.24 have no other, and both are tested (test_cached_decoding_equals_the_full_pass)",
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without any weight, which ours refuses: "
    "a missing key is an error (tests/modeling/test_checkpoints.py)",
}
COMPOSITE = {
    "test_model_base_model_prefix": "a denoiser and an energy: there is no single base model",
    "test_tied_weights_keys": "sets tie_word_embeddings on the composite, but each part has its own",
}


class Tester:
    """What the suite asks of a model tester: small sizes, a configuration and inputs."""

    is_training = True
    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 16, 2, 2, 40

    def __init__(self, parent, causal):
        self.parent, self.causal = parent, causal

    def get_config(self):
        return tiny_config(causal=self.causal, pad_token_id=0, vocab_size=self.vocab_size, model_length=64)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.seq_length)
        ids = torch.randint(1, self.vocab_size - 1, shape, generator=generator)
        if not self.causal:
            ids[:, ::2] = self.vocab_size - 1  # masked positions, the only ones with something to predict
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class CompositeTester(Tester):
    def get_config(self):
        denoiser = super().get_config()
        energy = tiny_config(causal=True, pad_token_id=0, vocab_size=self.vocab_size, model_length=64)
        return EDLMConfig(denoiser_config=denoiser, energy_config=energy, energy_type="ar")


def start_at_random(model, module):
    """Start with random numbers where new models have zeros or small ones, on which all kinds of attention agree."""
    PUBLISHED_START(model, module)
    if isinstance(module, (nn.Linear, nn.Embedding)):
        initialization.normal_(module.weight, std=0.3)
    if getattr(module, "bias", None) is not None:
        initialization.normal_(module.bias, std=0.3)


class Suite(common.ModelTesterMixin):
    causal = False
    switched_off = EVERYWHERE

    def setUp(self):
        self.model_tester = Tester(self, self.causal)
        if self._testMethodName in self.switched_off:
            self.skipTest(f"switched off: {self.switched_off[self._testMethodName]}")

        torch.manual_seed(0)
        random_start = mock.patch.object(MDLMPreTrainedModel, "_init_weights", start_at_random)
        random_start.start()
        self.addCleanup(random_start.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and not self.causal and "labels" in inputs:
            inputs["labels"][:, 1::2] = -100
        return inputs


class MDLMForMaskedLMTest(Suite, unittest.TestCase):
    all_model_classes = (MDLMModel, MDLMForMaskedLM)


class MDLMForCausalLMTest(Suite, unittest.TestCase):
    all_model_classes = (MDLMForCausalLM,)
    causal = True


class EDLMForMaskedDiffusionTest(Suite, unittest.TestCase):
    all_model_classes = (EDLMForMaskedDiffusion,)
    switched_off = EVERYWHERE | COMPOSITE
    test_all_params_have_gradient = False  # the energy does not enter the denoiser's loss
    _is_composite = True

    def setUp(self):
        super().setUp()
        self.model_tester = CompositeTester(self, False)
