"""What needs the speed or the compiler of a real device: `make gpu`, with tests/devices."""

import json

import pytest
import real_device
import torch
from published import randomised, tiny_denoiser
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.cli import app


@pytest.fixture(autouse=True)
def device() -> str:
    """The name of the device, `cuda` unless EDLM_DEVICE says another."""
    reason = real_device.reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    return real_device.DEVICE


def test_the_quick_benchmark_of_speed_runs(device, tmp_path):
    words = ["benchmark", "speed", "--quick", "--modes", "mdlm,ar", "--device", device, "--output", str(tmp_path)]
    done = CliRunner().invoke(app, words, prog_name="edlm")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["device"] == device


@torch.no_grad()
def test_a_shared_energy_that_is_compiled_is_the_plain_one(device):
    choices = {"energy_type": "nce", "energy_weights": "shared", "energy_adapter_rank": 2}
    model = real_device.move(
        randomised(
            EDLMForMaskedDiffusion.from_components(
                tiny_denoiser(),
                **choices,
            )
        )
    )
    noisy = torch.full((2, 8), 12)
    candidates = torch.randint(0, 12, (2, 3, 8), generator=torch.Generator().manual_seed(0))
    inputs = {
        "input_ids": real_device.on_device(noisy),
        "candidate_ids": real_device.on_device(candidates),
    }

    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).energy, model(**inputs).energy, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_half_precision_generates_and_keeps_energies_in_float32(device):
    choices = {"energy_type": "nce", "energy_weights": "shared"}
    model = real_device.move(
        randomised(
            EDLMForMaskedDiffusion.from_components(
                tiny_denoiser(),
                **choices,
            )
        ).bfloat16()
    )
    options = {"num_candidates": 2, "max_denoising_steps": 4, "return_dict_in_generate": True}
    torch.manual_seed(0)
    output = model.generate(batch_size=4, max_length=12, **options)
    assert output.sequences.device.type == device and (output.sequences != 12).all()
    assert output.energies.dtype == torch.float32
