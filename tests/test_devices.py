"""Every use on a device that is not the CPU, by the rules of CUDA and of MPS, with the results of the CPU.

The device is a fake (tests/support/fake_device.py): it needs no hardware, and refuses what hardware refuses. With
EDLM_DEVICE=cuda it is one of this machine (tests/support/real_device.py).
"""

import contextlib
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import real_device
import torch
from exact import MASK as EXACT_MASK
from exact import (
    SEQUENCES,
    STATES,
    L,
    TableDenoiser,
    chain_law,
    marginals,
    perturbed,
    product_law,
    random_joint,
)
from published import (
    golden,
    randomised,
    tiny_causal,
    tiny_config,
    tiny_denoiser,
    tiny_gpt2,
    write_checkpoint,
)
from torch.utils import backend_registration
from training import rows_with_prompts, trainer_of
from transformers import BertConfig, BertForMaskedLM, FNetConfig, FNetForMaskedLM

import edlm_hf.evaluation as evaluation
from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.modeling.custom_generate import generate as custom_generate
from edlm_hf.modeling.sampler_choice import SAMPLERS

MASK = 12
HOLES = torch.tensor([[1, 2, MASK, MASK, 5, MASK], [3, MASK, 4, 0, 0, 0]])
REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
TEXTS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]])
RAGGED = {
    "input_ids": HOLES,
    "attention_mask": REAL,
    "max_new_tokens": 4,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
NOTHING = {"batch_size": 2, "max_length": 8}

# The other one draws from the autoregressive model of an energy
OF_DENOISERS = [name for name in SAMPLERS if name != "speculative"]

# Since torch 2.10
CAN_BE_FAKED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

build = EDLMForMaskedDiffusion.from_components


@pytest.fixture(scope="module")
def accelerator():
    """The module of the device: the fake one, which changes the whole process, or a real one if that is asked for."""
    if real_device.DEVICE is None and not CAN_BE_FAKED:
        pytest.skip(f"torch {torch.__version__} takes no device written in Python")
    elif real_device.DEVICE is None:
        import fake_device as module
    else:
        module = real_device
        reason = real_device.reason_to_skip()
        if reason is not None:
            pytest.skip(reason)

    with module.PlainAttention():
        yield module


@pytest.fixture
def fake(accelerator):
    """The fake device, for tests of itself."""
    if accelerator is real_device:
        pytest.skip("The fake device is tested without a real one")
    return accelerator


@pytest.fixture(params=["cuda", "mps"])
def rules(request, accelerator):
    """The rules of a device: without float64 (mps) or with it."""
    if accelerator is real_device and (request.param == "mps") != (accelerator.DEVICE == "mps"):
        pytest.skip("A device of this machine has rules of its own")
    with accelerator.no_float64() if request.param == "mps" else contextlib.nullcontext():
        yield request.param


def nce() -> EDLMEnergyModel:
    return randomised(EDLMEnergyModel(tiny_config()), seed=3)


def shared() -> EDLMForMaskedDiffusion:
    model = build(tiny_denoiser(), energy_type="nce", energy_weights="shared", energy_adapter_rank=2)
    randomised(model.energy_model, seed=4)
    return model


def foreign(network_class, config) -> EDLMForMaskedDiffusion:
    return build(randomised(network_class(config)), tiny_causal(bos_token_id=10), mask_token_id=MASK)


FOREIGN = {
    "vocab_size": 13,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
MODELS = {
    "mdlm": lambda: build(tiny_denoiser()),
    "time": lambda: build(tiny_denoiser(time_conditioning=True)),
    "ar": lambda: build(tiny_denoiser(), tiny_causal(bos_token_id=10)),
    "gpt2": lambda: build(tiny_denoiser(), tiny_gpt2()),
    "coar": lambda: build(tiny_denoiser(), tiny_causal(bos_token_id=10), energy_type="coar"),
    "nce": lambda: build(tiny_denoiser(), nce()),
    "revealed": lambda: build(tiny_denoiser(), nce(), energy_scope="revealed"),
    "shared": shared,
    "bert": lambda: foreign(BertForMaskedLM, BertConfig(**FOREIGN, num_attention_heads=2)),
    "sees padding": lambda: foreign(FNetForMaskedLM, FNetConfig(**FOREIGN)),
}


def both(accelerator, name: str) -> tuple[EDLMForMaskedDiffusion, EDLMForMaskedDiffusion]:
    """The same model on the CPU and on the device."""
    return MODELS[name](), accelerator.move(MODELS[name]())


def sample(model, **options):
    """What `generate()` gives for a seed."""
    return model.generate(generator=torch.Generator().manual_seed(0), **options)


def check_same_tokens(accelerator, on_cpu, on_device, **options) -> None:
    expected = sample(on_cpu, **options)
    tokens = sample(on_device, **options)
    assert tokens.device.type == accelerator.DEVICE
    assert tokens.tolist() == expected.tolist(), options


def value_of(result) -> float:
    """The number that an evaluation gives, or the sum of its numbers."""
    return result.value if hasattr(result, "value") else sum(entropy.value for entropy in result.entropies)


# -- The device itself


def test_the_fake_device_refuses_what_a_device_refuses(fake):
    x = fake.on_device(torch.ones(2, 3))
    refused = [
        lambda: x + torch.ones(3),
        lambda: x + fake.on_device(torch.ones(2, 3), 1),
        lambda: torch.ones(3)[fake.on_device(torch.tensor([0]))],
        lambda: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda: x.uniform_(generator=torch.Generator()),
        lambda: x.numpy(),
    ]

    for operation in refused:
        with pytest.raises(fake.WrongDevice):
            operation()
    assert (x + torch.tensor(1.0)).tolist() == [[2.0] * 3] * 2
    assert x[torch.tensor([0])].device == x.device


def test_the_fake_device_refuses_float64_where_mps_does(fake):
    x = fake.on_device(torch.ones(2))
    assert x.double().dtype == torch.float64
    with fake.no_float64(), pytest.raises(fake.WrongDevice):
        x.double()


def test_the_fake_device_counts_what_the_host_waits_for(fake):
    x = fake.on_device(torch.ones(2, 3))
    with fake.host_waits() as waits:
        _ = x + 1, x @ x.T, x[fake.on_device(torch.tensor([0]))], torch.ones(2).to(x.device, non_blocking=True)
    assert not waits

    waiting = [
        lambda: x[0, 0].item(),
        lambda: bool(x.any()),
        lambda: x.cpu(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.masked_select(x > 0),
        lambda: x.unique(),
        lambda: x.unique_consecutive(),
        lambda: x.unique(dim=0),
        lambda: x.repeat_interleave(fake.on_device(torch.tensor([1, 2])), 0),
        lambda: torch.where(x > 0),
        lambda: x.tolist(),
        lambda: torch.ones(2).to(x.device),
        lambda: torch.tensor([1], device=x.device),
    ]

    for operation in waiting:
        with fake.host_waits() as waits:
            operation()
        assert waits.total() == 1


# -- Generation

# How often the host waits for the device in a step of a model and a sampler
WAITS = {
    ("mdlm", "ancestral"): 1,
    ("mdlm", "first_hitting"): 1,
    ("mdlm", "spaced"): 5,
    ("ar", "ancestral"): 4,
    ("ar", "first_hitting"): 4,
    ("ar", "spaced"): 6,
    ("nce", "ancestral"): 3,
    ("nce", "first_hitting"): 3,
    ("nce", "spaced"): 5,
}


@pytest.mark.parametrize("name, sampler", WAITS)
def test_the_host_waits_a_few_times_in_a_step(fake, name, sampler):
    model = fake.move(MODELS[name]())

    def run(masks: int) -> tuple[int, int]:
        """How often the host waits in a call that fills so many masks, and the number of its steps."""
        steps = []
        options = {"sampler": sampler, "max_denoising_steps": 2 * masks, "num_candidates": 3}
        with fake.host_waits() as waits:
            sample(
                model,
                callback_on_step_end=lambda *step: steps.append(step),
                max_length=masks,
                **options,
            )
        return waits.total(), len(steps)

    # The waits of a call that do not belong to a step are the same in both calls
    few_waits, few_steps = run(masks=2)
    many_waits, many_steps = run(masks=8)
    assert many_steps > few_steps
    assert many_waits - few_waits == WAITS[name, sampler] * (many_steps - few_steps)


@pytest.mark.parametrize("name", MODELS)
def test_all_samplers_give_the_tokens_of_the_cpu(accelerator, rules, name):
    if rules == "mps" and name not in ("time", "ar", "nce", "bert"):
        pytest.skip("A denoiser and an energy of every kind are enough for the rules of MPS")
    on_cpu, on_device = both(accelerator, name)

    for number, sampler in enumerate(OF_DENOISERS):
        options = {"sampler": sampler, "max_denoising_steps": 2, "num_candidates": 2}
        if sampler in ("edit", "low_confidence"):
            options["num_candidates"] = 1

        # Every second sampler fills holes and blocks of ragged rows, the others rows from nothing
        prompt = RAGGED | {"block_length": 3} if number % 2 else NOTHING
        check_same_tokens(accelerator, on_cpu, on_device, **options, **prompt)


OPTIONS = {
    "greedy": {"do_sample": False},
    "greedy, one at a time": {"do_sample": False, "sampler": "first_hitting"},
    "filters": {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01},
    "guidance": {"guidance_scale": 2.0},
    "corrector": {"corrector_sweeps": 1.0},
    "window": {"energy_window": (0.2, 0.8)},
    "callable energy": {"energy": lambda ids, noisy, log_probs, real: log_probs.cpu()},
    "several rows": {"num_return_sequences": 2},
    "chunks": {"energy_chunk_size": 2},
}


@pytest.mark.parametrize("name", ["ar", "nce"])
def test_all_options_give_the_tokens_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    for options in OPTIONS.values():
        check_same_tokens(accelerator, on_cpu, on_device, num_candidates=2, max_denoising_steps=3, **options, **RAGGED)


@pytest.mark.parametrize("name", ["ar", "gpt2", "coar"])
def test_speculative_sampling_gives_the_tokens_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    options = {"sampler": "speculative", "draft_length": 2}
    prompts = {"input_ids": TEXTS, "attention_mask": REAL, "max_new_tokens": 4}
    for extra in (
        NOTHING,
        prompts,
        prompts | {"do_sample": False},
        prompts | {"block_length": 3, "temperature": 0.7},
    ):
        check_same_tokens(accelerator, on_cpu, on_device, **options, **extra)


def test_revealed_blocks_have_an_autoregressive_energy(accelerator, rules):
    on_cpu, on_device = both(accelerator, "ar")
    options = {
        "energy_scope": "revealed",
        "max_denoising_steps": 1,
        "block_length": 3,
        "num_candidates": 2,
    }
    check_same_tokens(accelerator, on_cpu, on_device, **options, **NOTHING)


@pytest.mark.parametrize("name", ["ar", "nce"])
def test_records_are_those_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    options = {"return_dict_in_generate": True, "output_history": True, "output_log_probs": True}
    options |= {"max_denoising_steps": 3, "num_candidates": 3} | NOTHING
    expected = sample(on_cpu, **options)
    output = sample(on_device, **options)

    assert output.sequences.tolist() == expected.sequences.tolist()
    assert len(output.history) == len(expected.history)
    for field in ("energies", "effective_sample_size", "log_probs"):
        of_device = output[field].cpu().float()
        torch.testing.assert_close(
            of_device,
            expected[field].float(),
            equal_nan=True,
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("energy", [None, tiny_gpt2, nce], ids=["no energy", "gpt2", "nce"])
def test_custom_generate_takes_prompts_of_the_cpu(accelerator, rules, energy):
    def tokens(place):
        denoiser = place(tiny_denoiser())
        energy_model = None if energy is None else place(energy())
        options = {"energy_model": energy_model, "energy_type": "nce" if energy is nce else None}
        generator = torch.Generator().manual_seed(0)
        sizes = {"max_denoising_steps": 3, "num_candidates": 2}
        return custom_generate(denoiser, generator=generator, **options, **sizes, **RAGGED).tolist()

    assert tokens(accelerator.move) == tokens(lambda network: network)


@pytest.mark.parametrize("name", ["ar", "gpt2", "coar", "nce", "revealed"])
def test_denoiser_and_energy_may_stand_on_two_devices(accelerator, rules, name):
    if torch.get_device_module(accelerator.DEVICE).device_count() < 2:
        pytest.skip("There is one device")
    on_cpu, on_device = MODELS[name](), MODELS[name]()
    accelerator.move(on_device.denoiser, 0)
    accelerator.move(on_device.energy_model, 1)

    for prompt in (NOTHING, RAGGED):
        check_same_tokens(
            accelerator,
            on_cpu,
            on_device,
            max_denoising_steps=3,
            num_candidates=2,
            **prompt,
        )
    if on_cpu.config.energy_type != "nce":
        check_same_tokens(accelerator, on_cpu, on_device, sampler="speculative", **NOTHING)

    bounds = [
        evaluation.sampler_bound(model, TEXTS, num_steps=3, num_candidates=2, num_samples=2).value
        for model in (on_cpu, on_device)
    ]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)


@pytest.mark.parametrize("name", ["mdlm", "ar", "nce", "shared"])
def test_energies_of_candidates_on_the_cpu_are_those_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    noisy = TEXTS.clone()
    noisy[:, 2:4] = MASK
    candidates = TEXTS.unsqueeze(1).repeat(1, 3, 1)
    candidates[:, 1, 2] = 1

    expected = on_cpu.energy(candidates, noisy, torch.ones_like(noisy))
    for place in (accelerator.on_device, lambda x: x):
        energies = on_device.energy(place(candidates), place(noisy), place(torch.ones_like(noisy)))
        assert energies.device.type == accelerator.DEVICE
        torch.testing.assert_close(energies.cpu().float(), expected.float(), rtol=1e-4, atol=1e-4)


# -- Published networks and exact distributions


@torch.no_grad()
def test_published_networks_have_their_recorded_logits_and_energies(accelerator, rules, tmp_path):
    data = golden("a_denoiser")
    denoiser = MDLMForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit"))
    logits = accelerator.move(denoiser)(accelerator.on_device(data["xt"])).logits.cpu()
    torch.testing.assert_close(logits, data["raw_logits_tc0"], rtol=0, atol=2e-4)

    data = golden("c_nce_energy")
    energy = EDLMEnergyModel.from_pretrained(write_checkpoint(tmp_path / "nce", "model_nce"))
    inputs = [accelerator.on_device(data[name]) for name in ("x0_data", "xt")]
    energies = accelerator.move(energy)(*inputs).energy.cpu()
    torch.testing.assert_close(energies, data["energy_data_tc0"], rtol=0, atol=1e-3)

    data = golden("b_ar_energy")
    causal = MDLMForCausalLM.from_pretrained(write_checkpoint(tmp_path / "ar", "model_ar", causal=True))
    logits = accelerator.move(causal)(accelerator.on_device(data["x"])).logits[..., :32].cpu()
    torch.testing.assert_close(logits.log_softmax(-1), data["ar_logprobs"][..., :32], rtol=0, atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_samples_have_their_enumerated_law(accelerator, num_steps):
    """20,000 texts, whose total variation distance is about 0.02 by chance."""
    table = perturbed(marginals(random_joint(seed=3)), seed=1)
    law = chain_law(np.stack([product_law(table, state) for state in range(len(STATES))]), num_steps)
    model = accelerator.move(build(TableDenoiser(table), mask_token_id=EXACT_MASK))

    # Random numbers of the device's own generator
    torch.manual_seed(0)
    empty = accelerator.on_device(torch.full((20_000, L), EXACT_MASK))
    texts = model.generate(empty, max_denoising_steps=num_steps).cpu().numpy()
    index = texts @ (3 ** np.arange(L)[::-1])
    frequencies = np.bincount(index, minlength=len(SEQUENCES)) / len(index)
    assert np.abs(frequencies - law).sum() / 2 < 0.04


# -- Likelihoods


BOUNDS = {
    "nelbo": [{}, {"importance_sampling": True}],
    "discrete_nelbo": [{"num_steps": 3}],
    "paper_nll": [{"log_partition": "one"}, {"log_partition": "upper", "partition_samples": 4}],
    "h_profile": [{"times": (0.5, 1.0)}],
    "sampler_bound": [
        {"num_steps": 3, "whole_path": True},
        {"num_steps": 3, "inner_copies": 2},
        {"num_steps": 3, "block_length": 3},
        *({"num_steps": 3, "sampler": name} for name in OF_DENOISERS if name not in ("low_confidence", "edit")),
    ],
}


@pytest.mark.parametrize("name", ["mdlm", "ar", "nce", "revealed"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_are_those_of_the_cpu(accelerator, rules, bound, name):
    if (bound, name) == ("paper_nll", "revealed"):
        pytest.skip("The paper's estimator takes the joint over all masks")
    on_cpu, on_device = both(accelerator, name)

    for options in BOUNDS[bound]:
        options = options | {"num_samples": 2}
        if bound == "sampler_bound":
            options["num_candidates"] = 2
        expected, value = (
            value_of(getattr(evaluation, bound)(model, TEXTS, **options)) for model in (on_cpu, on_device)
        )
        assert value == pytest.approx(expected, rel=1e-4), options


@pytest.mark.parametrize("network", [tiny_causal, tiny_gpt2], ids=["ours", "gpt2"])
def test_autoregressive_likelihoods_are_those_of_the_cpu(accelerator, rules, network):
    causal = network(bos_token_id=10)
    composite = build(tiny_denoiser(), copy.deepcopy(causal))
    for model in (causal, composite):
        expected = evaluation.autoregressive_nll(model, TEXTS).value
        value = evaluation.autoregressive_nll(accelerator.move(copy.deepcopy(model)), TEXTS).value
        assert value == pytest.approx(expected, rel=1e-5)


def test_bounds_of_log_z_take_energies_of_a_device(accelerator, rules):
    energies = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) / 10
    expected = evaluation.log_partition_bounds(energies)
    bounds = evaluation.log_partition_bounds(accelerator.on_device(energies))
    assert bounds.lower.value == pytest.approx(expected.lower.value)
    assert bounds.upper.value == pytest.approx(expected.upper.value)


# -- Training


@pytest.fixture
def trains_on(monkeypatch):
    """A function that makes a Trainer believe that a device is this machine's."""
    from accelerate.state import AcceleratorState, PartialState

    def set_device(trainer, device: torch.device) -> None:
        monkeypatch.setitem(vars(trainer.args), "_setup_devices", device)
        for state in (AcceleratorState, PartialState):
            monkeypatch.setitem(state._shared_state, "device", device)

    return set_device


TRAINERS = {
    "denoiser": ("denoiser", {}),
    "denoiser, importance sampling": ("denoiser", {"importance_sampling": True}),
    "autoregressive": ("autoregressive", {}),
    "energy": ("energy", {}),
    "energy of a sampler": ("energy", {"max_denoising_steps": 4, "sampler": "dilated", "nce_loss": "ranking"}),
}


# Set in the process of its own in which trainers are tested
OWN_PROCESS = "EDLM_OWN_PROCESS"


def test_trainers_pass_in_a_process_of_their_own(fake):
    """Autograd counts devices when it first runs, so that a process where it has run cannot use a new one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    chosen = f"{__file__}::test_training_and_evaluation_are_those_of_the_cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", chosen]
    done = subprocess.run(
        command,
        env=environment | {OWN_PROCESS: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    num_tests = 2 * len(TRAINERS)
    assert done.returncode == 0 and f"{num_tests} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    OWN_PROCESS not in os.environ and real_device.DEVICE is None,
    reason="runs in a process of its own",
)
@pytest.mark.parametrize("name", TRAINERS)
def test_training_and_evaluation_are_those_of_the_cpu(accelerator, rules, trains_on, tmp_path, name):
    kind, options = TRAINERS[name]
    losses = {}
    for place in ("cpu", "device"):
        rows = rows_with_prompts(8)
        torch.manual_seed(0)
        trainer = trainer_of(kind, tmp_path / place, rows, eval_rows=rows, max_steps=2, ema_decay=0.5, **options)
        if place == "device":
            trains_on(trainer, torch.device(accelerator.DEVICE, 0))
            accelerator.move(trainer.model)

        trainer.train()
        losses[place] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses[place].append(trainer.evaluate()["eval_loss"])

    # The places where a sampler's steps are drawn need all digits of float64
    if rules == "cuda" or "max_denoising_steps" not in options:
        assert losses["device"] == pytest.approx(losses["cpu"], rel=1e-3)
