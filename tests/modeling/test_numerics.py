"""Numerics of the sampler: entropy of the draws, half precision, tiles, and memory.

Invariants C16 and C17. The functions are the shipped ones.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from published import golden, write_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.modeling.energies import Candidates
from edlm_hf.modeling.energy_edlm import linear_log_probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [16, 256, 4096])
@pytest.mark.parametrize("candidates", [1, 3])
def test_drawn_tokens_keep_the_entropy_of_the_proposal(dtype, steps, candidates):
    """V = 50,000 Zipf: E[-log p(token)] is the entropy whatever T and the model's precision are (C16)."""
    vocab_size, mask = 50_000, 49_999

    class Zipf(torch.nn.Module):
        config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=64)

        def __init__(self):
            super().__init__()
            self.register_buffer(
                "logits",
                -torch.log(torch.arange(1, vocab_size + 1).double()).to(dtype),
            )

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))

    model = EDLMForMaskedDiffusion.from_components(Zipf(), mask_token_id=mask)
    constant = lambda c, *rest: torch.zeros(c.shape[:2])  # noqa: E731
    rows = 64 if candidates == 1 else 4
    tokens = model.generate(
        batch_size=rows,
        max_denoising_steps=steps,
        energy=constant,
        num_candidates=candidates,
        energy_scope="revealed",
        generator=torch.Generator().manual_seed(steps),
    )
    log_p = model.denoiser.logits[:mask].double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum()
    surprise = -log_p[tokens.flatten()]
    error = surprise.std() / len(surprise) ** 0.5
    assert abs(surprise.mean() - entropy) < 5 * error
    assert error < 0.25  # a float32 Gumbel draw loses 1 to 2 nats at T = 1024


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ar", "coar", "nce"])
def test_energies_in_half_precision_stay_near_single_precision(tmp_path, kind):
    """abs(dE) < 0.05 sqrt(L) nats (C17), with the networks of the golden data."""
    data = golden("b_ar_energy")
    candidates, noisy = data["x0_candidates"].transpose(0, 1), data["xt"]
    write_checkpoint(tmp_path / "denoiser", "model_dit")
    write_checkpoint(tmp_path / "ar", "model_ar", causal=True)
    write_checkpoint(tmp_path / "nce", "model_nce")

    energies = {}
    for dtype in (torch.float32, torch.bfloat16):
        denoiser = AutoModelForMaskedLM.from_pretrained(tmp_path / "denoiser", dtype=dtype)
        loader = EDLMEnergyModel if kind == "nce" else AutoModelForCausalLM
        energy = loader.from_pretrained(tmp_path / ("nce" if kind == "nce" else "ar"), dtype=dtype)
        model = EDLMForMaskedDiffusion.from_components(denoiser, energy, energy_type=kind)
        proposal = model.propose(noisy, noisy == 32)
        energy = model.own_energy("sequence")
        energies[dtype] = energy(Candidates(candidates, proposal.log_probs(candidates)), proposal)
        assert energies[dtype].dtype == torch.float32

    difference = (energies[torch.bfloat16] - energies[torch.float32]).abs().max()
    assert 0 < difference < 0.05 * 24**0.5


MEMORY = """
import torch
from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM

def status(name):  # VmHWM is the ru_maxrss of this program alone: that of getrusage starts at the parent's
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 2**20

torch.manual_seed(0)
sizes = dict(vocab_size=50258, hidden_dim=64, cond_dim=16, n_blocks=2, n_heads=2, model_length=1024)
model = EDLMForMaskedDiffusion.from_components(
    MDLMForMaskedLM(MDLMConfig(**sizes)),
    MDLMForCausalLM(MDLMConfig(**sizes, causal=True, bos_token_id=50256)),
    energy_type="coar",
)
model.generate(max_length=1, max_denoising_steps=1, num_candidates=2)
before = status("VmRSS")
tokens = model.generate(max_length=1024, max_denoising_steps=1, num_candidates=16)
assert tokens.shape == (1, 1024)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_sixteen_candidates_of_a_large_vocabulary_fit_in_little_memory():
    """k = 16, L = 1024, V = 50,258: (k B, L, V) logits alone would be 3.3 GB, and are never built."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert float(result.stdout.split()[-1]) < 1.2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, vocab_size", [(3, 7), (513, 4096), (1030, 9001)])
def test_the_tiled_softmax_of_a_head_is_the_softmax_over_what_is_not_excluded(rows, vocab_size, bias):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, vocab_size, bias=bias).double()
    hidden = torch.randn(rows, 16, generator=generator, dtype=torch.float64)
    excluded = torch.zeros(vocab_size, dtype=torch.bool)
    excluded[[0, vocab_size // 2, vocab_size - 1]] = True
    targets = torch.randint(1, vocab_size // 2, (rows,), generator=generator)
    targets[0] = 0  # excluded: probability zero
    expected = head(hidden).masked_fill(excluded, -torch.inf).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(
        linear_log_probs(hidden, head, targets, excluded),
        expected,
        rtol=0,
        atol=1e-12,
    )

    in_half = linear_log_probs(hidden.bfloat16(), head.bfloat16(), targets, excluded)
    assert in_half.dtype == torch.float32
