"""The fake device refuses what hardware refuses, and counts what the host waits for."""

import pytest
import torch
from device_models import MODELS, sample


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
