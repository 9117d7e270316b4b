"""Losses of training and evaluation on a device are those of the CPU."""

import os
import subprocess
import sys

import pytest
import real_device
import torch
from training import rows_with_prompts, trainer_of


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
