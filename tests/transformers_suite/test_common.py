"""transformers' own common model tests on our three model classes.

The suite comes from the sdist of the installed transformers (`fetch.py`, run by `make test`). Tests that are switched
off are listed here with their reasons.
"""

import unittest

from transformers_suite import CompositeTester, OnOurModels, upstream

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM, MDLMModel

common = upstream("test_modeling_common")

# The suite knows which class computes which loss from these tables of the library's own models.
common.MODEL_MAPPING_NAMES["mdlm"] = "MDLMModel"
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES["mdlm"] = "MDLMForMaskedLM"
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES["edlm"] = "EDLMForMaskedDiffusion"
common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["mdlm"] = "MDLMForCausalLM"

EVERYWHERE = {
    "test_generation_tester_mixin_inheritance": "asks whether a test class has the mixin that test_generation.py has",
    "test_bc_cache_name_forward": "asks for a warning where the cache is called past_key_values, which is not an old "
    "name here: versions before 5.24 have no other, and both are tested (test_cached_decoding_equals_the_full_pass)",
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without any weight, which ours refuses: "
    "a missing key is an error (tests/modeling/test_checkpoints.py)",
}
COMPOSITE = {
    "test_model_base_model_prefix": "a denoiser and an energy: there is no single base model",
    "test_tied_weights_keys": "sets tie_word_embeddings on the composite, but each part has its own",
}


class Suite(OnOurModels, common.ModelTesterMixin):
    switched_off = EVERYWHERE

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
    model_tester_class = CompositeTester
    test_all_params_have_gradient = False  # the energy does not enter the denoiser's loss
    _is_composite = True
