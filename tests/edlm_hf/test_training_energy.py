"""Training of energies: what they start from, what they learn, what they leave alone, and their checkpoints."""

import itertools
import math

import numpy as np
import pytest
import torch
from energy_training import WAY, energy_trainer, new_energy
from exact import MASK, SEQUENCES, STATES, L, TableDenoiser, V, agrees, marginals, product_law
from peft import LoraConfig, get_peft_model
from published import tiny_causal, tiny_config, tiny_denoiser
from training import arguments, blocks, logged, random_blocks
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.evaluation import discrete_nelbo, sampler_bound
from edlm_hf.training import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES, EnergyArguments, EnergyTrainer


def states(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@WAY
@pytest.mark.parametrize("negatives", [1, 3])
def test_the_first_loss_is_that_of_a_constant_energy(tmp_path, way, negatives):
    model = new_energy(way)
    noisy = torch.full((1, 12), 12)
    with torch.no_grad():
        c = model.energy(torch.zeros(1, 1, 12, dtype=torch.long), noisy).item()
    assert c != 0

    trainer = energy_trainer(tmp_path, model, max_steps=1, num_negatives=negatives)
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(2 * math.log(2) + 2 * math.log(math.cosh(c / 2)), abs=1e-5)
    assert logged(trainer, "energy_data")[0] == pytest.approx(c, abs=1e-5)


@WAY
@pytest.mark.parametrize("loss", ["binary", "ranking"])
def test_every_trainable_part_has_a_gradient_within_two_steps(tmp_path, way, loss):
    model = new_energy(way, denoiser=tiny_denoiser(time_conditioning=True))
    seen = set()
    for name, parameter in model.energy_model.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.add(name) if grad.any() else None)
    trainer = energy_trainer(
        tmp_path,
        model,
        max_steps=2,
        nce_loss=loss,
        num_negatives=2,
        max_grad_norm=0,
    )
    trainer.train()
    # the embedding under `vocab_proj` is that of the denoiser where weights are shared
    assert seen == {name for name, _ in model.energy_model.named_parameters()}


class Dropping(MDLMForMaskedLM):
    """A denoiser that notes the mode in which it is called."""

    def forward(self, *args, **kwargs):
        self.modes.append([module.training for module in self.modules()])
        return super().forward(*args, **kwargs)


@WAY
def test_negatives_come_from_the_frozen_denoiser_in_eval_mode(tmp_path, way):
    denoiser = Dropping(tiny_config(dropout=0.5))
    denoiser.modes = []
    model = new_energy(way, denoiser=denoiser)
    before = states(denoiser)
    trainer = energy_trainer(tmp_path, model, max_steps=5)
    trainer.train()

    assert len(denoiser.modes) == 5 and not any(itertools.chain(*denoiser.modes))
    assert all(torch.equal(before[name], weight) for name, weight in denoiser.state_dict().items())
    assert model.energy_model.training  # the energy itself drops out


def test_energies_that_are_no_network_are_refused(tmp_path):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    with pytest.raises(ValueError, match="energy_type is 'ar'.*only 'nce'"):
        energy_trainer(tmp_path, model)
    with pytest.raises(ValueError, match="candidate_ids was given, but energy_type is 'ar'"):
        model(torch.zeros(1, 3, dtype=torch.long), candidate_ids=torch.zeros(1, 1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="energy_type is None.*only 'nce'"):
        energy_trainer(tmp_path, tiny_denoiser())

    for wrong in ({"num_negatives": 0}, {"max_denoising_steps": 0}, {"nce_loss": "hinge"}):
        name, value = wrong.popitem()
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            arguments(tmp_path, EnergyArguments, **{name: value})

    with pytest.raises(ValueError, match="args is EDLMTrainingArguments, but EnergyTrainer takes EnergyArguments"):
        EnergyTrainer(new_energy(), arguments(tmp_path), train_dataset=random_blocks(8))
    with pytest.raises(ValueError, match="energy_adapter_rank is 2 with energy_weights='own'"):
        new_energy(energy_adapter_rank=2)


def pairs_of_all_states(joint, table):
    """(P(x_t), q, p, x_t, sequences) of every masked state, x_t by uniform t: n masks have the chance 1 / (L + 1)."""
    for s, state in enumerate(STATES):
        possible, masks = agrees(state), int((state == MASK).sum())
        if masks:
            chance = joint[possible].sum() / ((L + 1) * math.comb(L, masks))
            q = joint[possible] / joint[possible].sum()
            yield chance, q, product_law(table, s)[possible], state, SEQUENCES[possible]


def test_a_trained_energy_approaches_the_analytic_one_on_a_short_chain(tmp_path):
    """Four tokens that repeat their neighbour nine times in ten. Proposals are the exact marginals."""
    torch.manual_seed(0)
    transition = 0.04 + 0.88 * np.eye(V)
    joint = np.prod([transition[SEQUENCES[:, i], SEQUENCES[:, i + 1]] for i in range(L - 1)], axis=0) / V
    table = marginals(joint)
    sizes = {"vocab_size": V + 1, "hidden_dim": 48, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "model_length": L}
    energy = EDLMEnergyModel(MDLMConfig(**sizes, mask_token_id=MASK, dropout=0.0))

    # There is no trained denoiser to start from: open the gates and spread the embeddings
    with torch.no_grad():
        energy.vocab_embed.embedding.mul_(5)
        for block in energy.blocks:
            block.adaLN_modulation.bias.view(6, -1)[[2, 5]] = 1.0

    model = EDLMForMaskedDiffusion.from_components(
        TableDenoiser(table, torch.float32), energy, energy_type="nce", mask_token_id=MASK
    )
    rows = blocks(SEQUENCES[np.random.default_rng(0).choice(81, size=20_000, p=joint)])
    trainer = energy_trainer(
        tmp_path, model, rows, max_steps=300, per_device_train_batch_size=128, learning_rate=3e-3, ema_decay=0.98,
        lr_scheduler_type="cosine", warmup_steps=20, logging_steps=100,
    )  # fmt: skip
    trainer.train()

    chances, analytic, trained, optimum, reached = [], [], [], 0.0, 0.0
    with trainer.averaged_weights(), torch.no_grad():
        model.eval()
        for chance, q, p, state, sequences in pairs_of_all_states(joint, table):
            found = model.energy(torch.tensor(sequences)[None], torch.tensor(state)[None])[0].double().numpy()
            best = -np.log(q / p)
            optimum += chance * (q @ np.logaddexp(0, best) + p @ np.logaddexp(0, -best))
            reached += chance * (q @ np.logaddexp(0, found) + p @ np.logaddexp(0, -found))
            analytic.extend(best), trained.extend(found), chances.extend(chance * (q + p) / 2)

    correlation = np.cov(analytic, trained, aweights=chances)
    correlation = correlation[0, 1] / math.sqrt(correlation[0, 0] * correlation[1, 1])
    start = 2 * math.log(2) * L / (L + 1)  # of E = 0; without masks there is nothing to tell
    assert correlation > 0.9
    assert optimum < reached < optimum + 0.2 * (start - optimum)


@WAY
def test_a_checkpoint_is_the_composite_and_agrees_with_the_evaluation(tmp_path, way):
    rows = random_blocks(8)
    options = {
        "save_strategy": "steps",
        "save_steps": 10,
        "eval_num_candidates": 4,
        "eval_max_denoising_steps": 6,
    }
    trainer = energy_trainer(tmp_path, new_energy(way), eval_rows=rows, learning_rate=1e-2, **options)
    trainer.train()
    metrics = trainer.evaluate()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-10")
    ids = torch.tensor(np.stack(rows["input_ids"])).long()
    common = {"num_steps": 6, "num_samples": 1, "seed": trainer.args.seed}
    bound = sampler_bound(loaded, ids, num_candidates=4, **common).value
    change = bound - discrete_nelbo(loaded, ids, **common).value
    assert metrics["eval_sampler_bound"] == pytest.approx(bound, abs=1e-6)
    assert metrics["eval_sampler_bound_change"] == pytest.approx(change, abs=1e-6) and change != 0
    assert 1 <= metrics["eval_effective_sample_size"] <= 4
    assert metrics["eval_jensen_shannon"] == pytest.approx(math.log(2) - metrics["eval_nce_loss"] / 2, abs=1e-6)

    again = energy_trainer(tmp_path, loaded, eval_rows=rows, **options).evaluate()
    for name in ("eval_loss", "eval_energy_draws_sd", "eval_effective_sample_size"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-6)


@WAY
def test_a_resumed_run_continues_bitwise(tmp_path, way):
    def start():
        model = new_energy(way, denoiser=tiny_denoiser(dropout=0.1))
        return energy_trainer(
            tmp_path,
            model,
            save_strategy="steps",
            save_steps=4,
            max_steps=8,
            num_negatives=2,
        )

    whole, resumed = start(), start()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed) == logged(whole) and len(logged(whole)) == 8

    final = states(whole.model)
    assert all(torch.equal(final[name], weight) for name, weight in resumed.model.state_dict().items())


def test_lora_of_peft_trains_the_energy_alone(tmp_path):
    config = LoraConfig(r=2, target_modules=LORA_TARGET_MODULES, modules_to_save=LORA_MODULES_TO_SAVE)
    model = get_peft_model(new_energy(), config)
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted and all(".energy_model." in name for name in adapted)
    energy_trainer(tmp_path, model, max_steps=3).train()
    with torch.no_grad():
        noisy = torch.tensor([[3, 12, 5, 0, 12, 7]])
        assert torch.equal(model(noisy).logits, tiny_denoiser()(noisy).logits)
