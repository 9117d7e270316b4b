"""Options of `generate()` that are yes or no, as Python, NumPy, torch and stored files say them."""

import json

import numpy as np
import pytest
import torch
from composites import IDS
from published import seed, tiny_denoiser
from transformers import AutoModelForMaskedLM, GenerationConfig

from edlm_hf import EDLMGenerationConfig


def draws(model, **options):
    """Whether different seeds give different texts."""
    texts = {str(model.generate(max_length=12, max_denoising_steps=2, generator=seed(n), **options)) for n in range(4)}
    return len(texts) > 1


NO = [False, 0, np.False_, np.int64(0), np.array(False), torch.tensor(False), torch.tensor([0])]
YES = [True, 1, np.True_, np.int32(1), np.array([True]), torch.tensor(True), torch.tensor(1)]


@pytest.mark.parametrize(("values", "yes"), [(NO, False), (YES, True)])
def test_yes_and_no_of_python_numpy_and_torch(values, yes, capsys):
    model = tiny_denoiser()
    for value in values:
        assert draws(model, do_sample=value) is yes
        assert EDLMGenerationConfig(do_sample=value).do_sample is yes
        out = model.generate(IDS, return_dict_in_generate=value)
        assert torch.is_tensor(out) is not yes

        out = model.generate(IDS, return_dict_in_generate=True, output_history=value)
        assert (out.history is not None) is yes
        assert model.generate(IDS, use_cache=value).shape == (2, 3)

        capsys.readouterr()
        model.generate(IDS, progress_bar=value)
        assert ("denoising" in capsys.readouterr().err) is yes


@pytest.mark.parametrize(
    "name", ["do_sample", "return_dict_in_generate", "output_history", "use_cache", "progress_bar"]
)
@pytest.mark.parametrize(
    "value", ["no", "False", "", 2, -1, 0.0, [], (0,), torch.tensor([0, 1]), np.zeros(2), object()]
)
def test_what_is_neither_yes_nor_no_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, but it must be True or False"):
        tiny_denoiser().generate(IDS, **{name: value})


def test_a_stored_configuration_says_yes_or_no(tmp_path):
    tiny_denoiser().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    for value, samples in ((0, False), (False, False), (1, True), (True, True)):
        path.write_text(json.dumps({"do_sample": value}))
        assert draws(AutoModelForMaskedLM.from_pretrained(tmp_path)) is samples
        assert EDLMGenerationConfig.from_pretrained(tmp_path).do_sample is samples

    path.write_text(json.dumps({"do_sample": "no"}))
    with pytest.raises(ValueError, match="do_sample is 'no', but it must be True or False"):
        AutoModelForMaskedLM.from_pretrained(tmp_path).generate(IDS)

    plain = GenerationConfig(do_sample=0)
    assert not draws(tiny_denoiser(), generation_config=plain) and plain.do_sample == 0
