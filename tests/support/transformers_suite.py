"""The test-suite of the installed transformers (tests/transformers_suite/fetch.py), and our models in its terms."""

import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
import torch
from published import tiny_config
from torch import nn
from transformers import initialization

from edlm_hf import EDLMConfig
from edlm_hf.modeling.mdlm_pretrained import MDLMPreTrainedModel

SUITE = Path(__file__).parents[2] / ".cache" / f"transformers-{version('transformers')}"
PUBLISHED_START = MDLMPreTrainedModel._init_weights


def upstream(module: str):
    """A module of the suite. Without the suite the tests that ask for it are skipped."""
    if not SUITE.exists():
        pytest.skip(
            f"{SUITE.name} is not there: run tests/transformers_suite/fetch.py (needs a package index)",
            allow_module_level=True,
        )
    if str(SUITE) not in sys.path:
        sys.path.append(str(SUITE))
    return importlib.import_module(f"transformers_tests.{module}")


def start_at_random(model, module):
    """Start with random numbers where new models have zeros or small ones, on which all kinds of attention agree."""
    PUBLISHED_START(model, module)
    if isinstance(module, (nn.Linear, nn.Embedding)):
        initialization.normal_(module.weight, std=0.3)
    if getattr(module, "bias", None) is not None:
        initialization.normal_(module.bias, std=0.3)


class Tester:
    """What the suite asks of a model tester: small sizes, a configuration and inputs."""

    is_training = True
    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 16, 2, 2, 40

    def __init__(self, parent, causal):
        self.parent, self.causal = parent, causal

    def get_config(self):
        return tiny_config(
            causal=self.causal,
            pad_token_id=0,
            vocab_size=self.vocab_size,
            model_length=64,
        )

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.seq_length)
        ids = torch.randint(1, self.vocab_size - 1, shape, generator=generator)
        if not self.causal:
            # Masked positions are the only ones with something to predict
            ids[:, ::2] = self.vocab_size - 1
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class CompositeTester(Tester):
    def get_config(self):
        denoiser = super().get_config()
        energy = tiny_config(causal=True, pad_token_id=0, vocab_size=self.vocab_size, model_length=64)
        return EDLMConfig(denoiser_config=denoiser, energy_config=energy, energy_type="ar")


class OnOurModels:
    """A mixin of the suite on models of this package, with random weights, without the tests that are switched off."""

    causal = False
    model_tester_class = Tester
    switched_off: dict[str, str] = {}

    def setUp(self):
        self.model_tester = self.model_tester_class(self, self.causal)
        reasons = [reason for name, reason in self.switched_off.items() if self._testMethodName.startswith(name)]
        if reasons:
            self.skipTest(f"switched off: {reasons[0]}")

        torch.manual_seed(0)
        random_start = mock.patch.object(MDLMPreTrainedModel, "_init_weights", start_at_random)
        random_start.start()
        self.addCleanup(random_start.stop)
