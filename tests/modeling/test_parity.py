"""Parity with recorded outputs of the published networks, from checkpoints in the published layout."""

import pytest
import torch
from published import golden, write_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.modeling.masked_diffusion import make_schedule, subs_log_probs, token_log_probs

LOGITS, ENERGY = 2e-4, 1e-3


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() < tolerance


@pytest.fixture(params=[False, True], ids=["time_conditioning_off", "time_conditioning_on"])
def conditioned(request):
    return request.param


@pytest.fixture
def denoiser(tmp_path, conditioned):
    return AutoModelForMaskedLM.from_pretrained(
        write_checkpoint(tmp_path / "dit", "model_dit", time_conditioning=conditioned)
    )


@pytest.fixture
def causal(tmp_path):
    return AutoModelForCausalLM.from_pretrained(
        write_checkpoint(
            tmp_path / "ar",
            "model_ar",
            causal=True,
        )
    )


@torch.no_grad()
def test_denoiser_logits_and_subs_log_probabilities(denoiser, conditioned):
    data, tag = golden("a_denoiser"), "tc1" if conditioned else "tc0"
    logits = denoiser(data["xt"], timesteps=data["sigma"] if conditioned else None).logits
    close(logits, data[f"raw_logits_{tag}"], LOGITS)

    expected = data[f"subs_logp_{tag}"]
    possible = expected > -9e5
    subs = subs_log_probs(logits, data["xt"], mask_token_id=32)
    assert torch.equal(subs.isneginf(), ~possible)
    close(subs[possible], expected[possible], LOGITS)
    if not conditioned:
        close(logits.log_softmax(-1), data["d3pm_logp_tc0"], LOGITS)


@torch.no_grad()
def test_mask_id_in_the_middle_of_the_vocabulary(tmp_path):
    data = golden("a_denoiser")
    folder = write_checkpoint(tmp_path, "model_dit", mask_token_id=5)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.mask_token_id == 5

    logits = model(data["alt_xt"]).logits
    close(logits, data["alt_raw_logits"], LOGITS)
    expected = data["alt_subs_logp"]
    possible = expected > -9e5
    close(subs_log_probs(logits, data["alt_xt"], 5)[possible], expected[possible], LOGITS)


@torch.no_grad()
def test_autoregressive_log_probabilities(causal):
    data = golden("b_ar_energy")
    log_probs = token_log_probs(causal(data["x"]).logits, mask_token_id=32)
    close(log_probs[..., :32], data["ar_logprobs"][..., :32], LOGITS)
    close(log_probs[:, :-1, :32], data["ar_logprobs_inputs"][..., :32], LOGITS)
    per_token = log_probs[:, :-1].gather(-1, data["x"][:, 1:, None]).squeeze(-1)
    close(per_token, data["ar_token_logp"], LOGITS)
    close(per_token.sum(-1), data["ar_seq_logp"], ENERGY)
    close(per_token[:, :2].sum(-1), data["ar_seq_logp_len3"], ENERGY)


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_autoregressive_energies_and_importance_weights(tmp_path, causal, energy_type):
    denoiser = AutoModelForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit"))
    data = golden("b_ar_energy")
    model = EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type=energy_type)

    # The reference never scores position 0 and neither does ours where it is visible.
    visible = data["xt"][:, 0] != 32
    assert visible.sum() >= 3

    candidates = data["x0_candidates"].transpose(0, 1)
    energy = model.energy(candidates, data["xt"])
    close(energy[visible], data[f"energy_{energy_type}_cand"].T[visible], ENERGY)
    close((-energy).softmax(-1)[visible], data[f"is_weights_{energy_type}_paper"][visible], ENERGY)

    of_data = model.energy(data["x"].unsqueeze(1), data["xt"]).squeeze(1)
    close(of_data[visible], data[f"energy_{energy_type}_data"][visible], ENERGY)
    # Where it is masked, the reference keeps the proposal's log-probability of token 0, which ours cancels.
    first = data["log_p_x0"][:, 0].gather(-1, candidates[..., 0])
    close(energy[~visible], (data[f"energy_{energy_type}_cand"].T - first)[~visible], ENERGY)


@torch.no_grad()
def test_nce_energies(tmp_path, conditioned):
    data, tag = golden("c_nce_energy"), "tc1" if conditioned else "tc0"
    model = EDLMEnergyModel.from_pretrained(
        write_checkpoint(tmp_path / "nce", "model_nce", time_conditioning=conditioned)
    )
    sigma = data["sigma"] if conditioned else None
    output = model(data["x0_data"], data["xt"], timesteps=sigma)
    close(output.energy, data[f"energy_data_{tag}"], ENERGY)
    close(output.pooler_output, data[f"pooled_data_{tag}"], LOGITS)

    candidates = data["x0_candidates"].transpose(0, 1)
    close(model(candidates, data["xt"], timesteps=sigma).energy, data[f"energy_cand_{tag}"].T, ENERGY)


@pytest.mark.parametrize(
    ("prefix", "name", "params"),
    [
        ("loglinear", "loglinear", {}),
        ("cosine", "cosine", {}),
        ("cosinesqr", "cosinesqr", {}),
        ("geometric_1e-3_1", "geometric", {"sigma_min": 1e-3, "sigma_max": 1.0}),
        ("geometric_1e-4_20", "geometric", {"sigma_min": 1e-4, "sigma_max": 20.0}),
        ("linear_1e-3_7", "linear", {"sigma_min": 1e-3, "sigma_max": 7.0}),
    ],
)
def test_noise_schedules(prefix, name, params):
    data = golden("h_noise")
    schedule, t = make_schedule(name, **params), data["t"].double()
    torch.testing.assert_close(schedule.total(t).float(), data[f"{prefix}.total"], rtol=1e-4, atol=1e-6)
    # atol: the recorded sin(pi t) of cosinesqr is float32, so its rate at t = 1 is 1.4e-4 instead of 0.
    torch.testing.assert_close(schedule.rate(t).float(), data[f"{prefix}.rate"], rtol=1e-4, atol=2e-4)
    if f"{prefix}.importance_t" in data:
        times = schedule.importance_time(t).float()
        torch.testing.assert_close(times, data[f"{prefix}.importance_t"], rtol=1e-4, atol=1e-6)


def test_ends_of_the_log_linear_noise():
    data, schedule = golden("h_noise"), make_schedule("loglinear")
    ends = schedule.total(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends[1].item() == pytest.approx(data["loglinear.sigma_max"].item(), rel=1e-5)
    assert ends[0].item() + schedule.eps == pytest.approx(data["loglinear.sigma_min"].item(), rel=1e-6)


def test_full_size_model_has_the_published_tensors():
    published = {"n_blocks": 12, "hidden_dim": 768, "n_heads": 12, "cond_dim": 128, "vocab_size": 50258}
    with torch.device("meta"):
        model = MDLMForMaskedLM(MDLMConfig(**published, model_length=1024, dropout=0.1))
    assert model.num_parameters() == 169_627_218
    assert len(model.state_dict()) == 131 - 1  # the rotary frequencies are computed, not stored
    stored = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert stored["backbone.vocab_embed.embedding"] == stored["backbone.output_layer.linear.weight"] == (50258, 768)
    assert stored["backbone.blocks.11.adaLN_modulation.weight"] == (4608, 128)
