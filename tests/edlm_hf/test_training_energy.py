"""Training of energies: what they start from, what they learn, what they leave alone, what they weigh."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, STATES, L, TableDenoiser, V, agrees, marginals, product_law
from peft import LoraConfig, get_peft_model
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from torch import nn
from training import arguments, blocks, logged, mean_and_error, random_blocks
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.evaluation import discrete_nelbo, sampler_bound
from edlm_hf.training import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES, EnergyArguments, EnergyTrainer
from edlm_hf.training.memory import sizes_in_bytes
from edlm_hf.training.objectives import ranking_nce_loss

WAYS = {
    "full": {},
    "lora": {"energy_weights": "shared", "energy_adapter_rank": 2},
    "head": {"energy_weights": "shared"},
}
WAY = pytest.mark.parametrize("way", WAYS)


def new_energy(way="full", seed=0, denoiser=None, **options) -> EDLMForMaskedDiffusion:
    torch.manual_seed(seed)
    denoiser = tiny_denoiser() if denoiser is None else denoiser
    return EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce", **WAYS[way], **options)


def energy_trainer(folder, model, rows=None, eval_rows=None, **changes) -> EnergyTrainer:
    args = arguments(folder, EnergyArguments, **changes)
    rows = random_blocks(32) if rows is None else rows
    return EnergyTrainer(model, args, train_dataset=rows, eval_dataset=eval_rows)


def states(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------ the start


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


# --------------------------------------------------------------------------------------------------------- the denoiser


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


def test_a_shared_energy_leaves_the_proposals_bare():
    model, denoiser = new_energy("lora"), tiny_denoiser()
    for parameter in model.energy_model.parameters():
        nn.init.normal_(parameter, std=0.5)
    noisy = torch.tensor([[3, 12, 5, 0, 12, 7]])

    with torch.no_grad():
        energy = model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy)
        assert torch.equal(model(noisy).logits, denoiser(noisy).logits)
        model.energy_model.get_submodule("blocks.1.mlp.2").up.zero_()
        assert (model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy) - energy).abs() > 1e-4
        model.denoiser.backbone.blocks[0].mlp[0].weight.mul_(2)  # one set of weights
        assert (model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy) - energy).abs() > 1e-3


def test_calls_of_a_shared_energy_from_several_threads_do_not_meet():
    model = new_energy("lora")
    for parameter in model.energy_model.parameters():
        nn.init.normal_(parameter, std=0.5)
    noisy = torch.tensor([[3, 12, 5, 0, 12, 7]])
    candidates = noisy.masked_fill(noisy == 12, 4).unsqueeze(1)
    with torch.no_grad():
        expected = model.energy(candidates, noisy), model(noisy).logits

    @torch.no_grad()
    def call(i):
        return model.energy(candidates, noisy) if i % 2 == 0 else model(noisy).logits

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected[i % 2]) for i, found in enumerate(pool.map(call, range(40))))


@WAY
def test_shared_ways_add_a_tenth_of_the_denoiser_to_it_and_a_head(way):
    config = MDLMConfig(
        vocab_size=29,
        hidden_dim=128,
        cond_dim=16,
        n_blocks=6,
        n_heads=4,
        model_length=64,
    )
    sizes = sizes_in_bytes(new_energy(way, denoiser=MDLMForMaskedLM(config)))
    assert sizes["energy_overhead"] > 1.9 if way == "full" else sizes["energy_overhead"] <= 1.1
    assert sizes["head_bytes"] == 4 * (2 * 128 * 128 + 128 + 2 * (128 * 128 + 128) + 128)
    assert sizes["bytes"] <= (2.1 if way == "full" else 1.1) * sizes["denoiser_bytes"] + sizes["head_bytes"]


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


# ------------------------------------------------------------------------------------------------------- what is learnt


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


# --------------------------------------------------------------------------------------------------------- what it sees


class Watched(EDLMEnergyModel):
    def forward(self, candidate_ids, noisy_ids, **kwargs):
        self.seen.append((candidate_ids, noisy_ids))
        return super().forward(candidate_ids, noisy_ids, **kwargs)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_pairs_of_either_scope(tmp_path, scope):
    energy = Watched(tiny_config(bos_token_id=11))
    energy.seen = []
    denoiser = tiny_denoiser(bos_token_id=11)
    model = EDLMForMaskedDiffusion.from_components(
        denoiser,
        energy,
        energy_type="nce",
        energy_scope=scope,
    )
    ids = np.random.default_rng(0).integers(0, 11, (16, 12))
    ids[:, 0] = 11
    trainer = energy_trainer(tmp_path, model, blocks(ids), max_steps=20, num_negatives=2)
    trainer.train()
    candidates, noisy = (torch.cat(x) for x in zip(*energy.seen, strict=True))
    positive, negative = candidates[:, 0], candidates[:, 1:]
    masked, hidden = noisy == 12, positive == 12
    assert candidates.shape == (160, 3, 12) and (noisy[:, 0] == 11).all()
    assert (candidates == noisy.unsqueeze(1))[~masked.unsqueeze(1).expand_as(candidates)].all()
    assert ((negative == 12) == hidden.unsqueeze(1)).all()

    rows = {tuple(row) for row in ids.tolist()}
    complete = [tuple(row) for row in positive[~hidden.any(-1)].tolist()]
    assert len(complete) > 10 and set(complete) <= rows

    share = (masked & ~hidden).sum() / masked.sum()
    assert share == 1 if scope == "sequence" else 0.4 < share < 0.6
    assert hidden[~masked].sum() == 0


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
@pytest.mark.parametrize("sampler", ["ancestral", "dilated", "spaced"])
def test_the_ranking_loss_of_a_step_is_the_bound_of_the_sampler(tmp_path, scope, sampler):
    """-log(k w_1) per step against the change of `sampler_bound` by the energy: 4 standard errors, 1 in 10,000."""
    T, k, copies = 3, 4, 32
    energy = randomised(EDLMEnergyModel(tiny_config()), seed=3)
    for weight in energy.energy_head.parameters():
        weight.data *= 6
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(),
        energy,
        energy_type="nce",
        energy_scope=scope,
    )
    ids = torch.tensor(np.stack(random_blocks(8)["input_ids"])).long()
    trainer = energy_trainer(
        tmp_path, model, num_negatives=k - 1, nce_loss="ranking", max_denoising_steps=T, sampler=sampler
    )
    many, losses, changes = ids.repeat(copies, 1), [], []
    shapes = (len(many),), many.shape, (len(many),), (*many.shape, k if scope == "sequence" else k - 1)

    for seed in range(16):
        noise = torch.Generator().manual_seed(seed)
        uniforms = [torch.rand(shape, generator=noise) for shape in shapes]
        with torch.no_grad():
            found = trainer.energies(trainer.model, {"input_ids": many, "labels": many}, *uniforms)
        losses.append(float(ranking_nce_loss(*found).mean()) - math.log(k))
        options = {
            "num_steps": T,
            "num_samples": copies,
            "seed": seed,
            "batch_size": 64,
            "energy_scope": scope,
        }
        options |= {"sampler": sampler, **({"score": "random"} if sampler == "spaced" else {})}
        ours = sampler_bound(model, ids, num_candidates=k, **options).sequence_nats
        theirs = sampler_bound(model, ids, num_candidates=1, **options).sequence_nats
        changes.append(float(np.mean(np.subtract(ours, theirs))) / T)

    (loss, error), (change, spread) = mean_and_error(losses), mean_and_error(changes)
    assert abs(loss - change) < 4 * math.hypot(error, spread)
    assert change > 5 * math.hypot(error, spread)  # else any loss would do


def test_pairs_are_those_of_samplers_that_see_masks_alone(tmp_path):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), energy_type="nce")
    with pytest.raises(ValueError, match="top_k.*looks at the proposal.*dilated"):
        energy_trainer(tmp_path, model, sampler="top_k", max_denoising_steps=4)
    with pytest.raises(ValueError, match="sampler is 'dilated'.*Pass the T"):
        energy_trainer(tmp_path, model, sampler="dilated")
    with pytest.raises(ValueError, match="must be one of ancestral"):
        energy_trainer(tmp_path, model, sampler="dilatet", max_denoising_steps=4)


# ---------------------------------------------------------------------------------------------- evaluation, checkpoints


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
