"""transformers' own generation tests on our three model classes.

They are not in the sdist: `fetch.py` takes them from a git repository of transformers that TRANSFORMERS_REPOSITORY
names, and without them they are skipped. Tests that are switched off are listed here with their reasons.
"""

import unittest

import pytest
from transformers_suite import CompositeTester, OnOurModels, upstream

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM

common = upstream("test_modeling_common")
generation = upstream("generation.test_utils")
if not hasattr(generation.GenerationTesterMixin, "test_greedy_generate"):
    pytest.skip(
        "transformers' generation tests are not in its sdist: run tests/transformers_suite/fetch.py with "
        "TRANSFORMERS_REPOSITORY=PATH, a git repository of transformers",
        allow_module_level=True,
    )


REFUSED = "hands over options of autoregressive decoding, which masked diffusion refuses by name (docs/bad_inputs.md)"
NO_BEAMS = "searches with beams, which continue a text token by token"
NO_CACHE = "continues a text from a key/value cache, which a bidirectional network does not have"
NO_EMBEDDINGS = "begins with embeddings, and masks are found among token ids"
MASKED_DIFFUSION = {
    "test_greedy_generate": REFUSED,
    "test_sample_generate": REFUSED,
    "test_generate_compile_model_forward_fullgraph": REFUSED,
    "test_generate_compilation_all_outputs": REFUSED,
    "test_assisted_decoding": "lets a smaller model write ahead, which is for texts that grow at their end",
    "test_beam": NO_BEAMS,
    "test_generate_with_static_cache": NO_CACHE,
    "test_static_cache": NO_CACHE,
    "test_generate_from_inputs_embeds": NO_EMBEDDINGS,
    "test_generate_from_random_inputs_embeds": NO_EMBEDDINGS,
    "test_generate_with_and_without_position_ids": "counts positions outside, and generate() counts real tokens itself",
    "test_custom_4d_attention_mask": "compares a text with its beginnings, which only a causal network predicts alike",
}

TESTS_OF_MODELS = unittest.TestLoader().getTestCaseNames(common.ModelTesterMixin)
TESTS_OF_GENERATION = unittest.TestLoader().getTestCaseNames(generation.GenerationTesterMixin)


class Suite(OnOurModels, generation.GenerationTesterMixin, common.ModelTesterMixin):
    """The tests of generation. They use helpers of the model tests, which run in test_common.py."""

    vars().update({name: None for name in TESTS_OF_MODELS if name not in TESTS_OF_GENERATION})


class MDLMForCausalLMTest(Suite, unittest.TestCase):
    all_model_classes = all_generative_model_classes = (MDLMForCausalLM,)
    causal = True


class MDLMForMaskedLMTest(Suite, unittest.TestCase):
    all_model_classes = all_generative_model_classes = (MDLMForMaskedLM,)
    switched_off = MASKED_DIFFUSION


class EDLMForMaskedDiffusionTest(Suite, unittest.TestCase):
    all_model_classes = all_generative_model_classes = (EDLMForMaskedDiffusion,)
    model_tester_class = CompositeTester
    switched_off = MASKED_DIFFUSION
    _is_composite = True
