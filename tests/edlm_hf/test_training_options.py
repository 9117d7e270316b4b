"""Options of transformers' Trainer that are honoured, each by what it changes and what it leaves alone."""

import numpy as np
import pytest
import torch
from checkpointing import CHECKPOINTING
from datasets import Dataset, IterableDataset
from published import tiny_config, tiny_denoiser
from training import (
    KIND,
    arguments,
    denoiser_trainer,
    logged,
    random_blocks,
    rows_with_prompts,
    same,
    trainer_of,
)

from edlm_hf import MDLMForMaskedLM
from edlm_hf.evaluation import nelbo
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import EnergyArguments, MaskedDiffusionArguments, MaskedDiffusionTrainer


def test_without_arguments_there_are_those_of_the_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(MaskedDiffusionTrainer(tiny_denoiser()).args) is MaskedDiffusionArguments


@KIND
@pytest.mark.parametrize(
    "options, error",
    [
        ({"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 1}, None),
        ({"include_num_input_tokens_seen": "non_padding"}, 0),
        ({"average_tokens_across_devices": False}, 0),
        ({"remove_unused_columns": False}, 0),
        ({"dataloader_num_workers": 1}, 0),
        ({CHECKPOINTING: True}, 1e-5),
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-5),
        ({"bf16": True}, 0.1),
    ],
)
def test_how_a_step_is_computed_changes_its_loss_by_rounding_alone(tmp_path, kind, options, error):
    rows = rows_with_prompts(16)
    plain, other = (trainer_of(kind, tmp_path, rows, max_steps=2, **changes) for changes in ({}, options))
    for trainer in (plain, other):
        trainer.train()
    torch._dynamo.reset()

    if error is None:  # the same rows in another order
        assert len(logged(other)) == 2 and min(logged(other)) > 0
    else:
        assert logged(other) == pytest.approx(logged(plain), abs=error)
    if "include_num_input_tokens_seen" in options:
        assert other.state.num_input_tokens_seen == sum(map(len, rows["input_ids"]))


@KIND
def test_a_model_made_by_model_init_is_trained_like_one_that_is_given(tmp_path, kind):
    trainer = trainer_of(kind, tmp_path, rows_with_prompts(), max_steps=2)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    calls = []

    def make():
        calls.append(torch.rand(3))
        model = trainer_of(kind, tmp_path, random_blocks(8)).model
        model.requires_grad_(True).train()  # the trainer freezes what it has to
        model.load_state_dict(start)
        torch.manual_seed(5)
        return model

    trainer.train()
    other = type(trainer)(args=trainer.args, model_init=make, train_dataset=rows_with_prompts())
    for _ in range(2):  # each training starts anew
        other.train()
        assert logged(other) == logged(trainer) and same(other.model, trainer.model)
        assert all(torch.equal(a, b) for a, b in zip(other.average.shadow, trainer.average.shadow, strict=True))

    assert len(calls) == 3


def test_trials_change_what_muon_learns_with(tmp_path):
    trainer = trainer_of(
        "denoiser",
        tmp_path,
        random_blocks(8),
        muon=True,
        max_steps=1,
        lr_scheduler_type="constant",
    )
    trainer.args.learning_rate = 0.5  # as a search for hyperparameters sets it
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5}


def test_an_optimizer_of_the_user_is_taken(tmp_path):
    model = tiny_denoiser()
    given = {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.25), None)}
    trainer = trainer_of("denoiser", tmp_path, random_blocks(8), model=model, given=given, max_steps=1)
    trainer.train()
    assert trainer.optimizer.optimizer is given["optimizers"][0]


@KIND
def test_rows_that_stream_are_those_of_a_set(tmp_path, kind):
    rows = rows_with_prompts()
    stream = IterableDataset.from_generator(lambda: iter(rows))
    order = {"train_sampling_strategy": "sequential", "max_steps": 2}
    runs = [trainer_of(kind, tmp_path, each, each, **order) for each in (rows, stream)]
    for trainer in runs:
        trainer.train()
    assert logged(runs[0]) == logged(runs[1])

    losses = [trainer.evaluate()["eval_loss"] for trainer in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@KIND
def test_a_batch_that_is_too_large_is_found_and_rows_keep_their_noise(tmp_path, kind):
    """With half the rows per step the run is that of half the batch size."""

    def train(**options):
        trainer = trainer_of(kind, tmp_path, rows_with_prompts(), max_steps=2, **options)
        forward = trainer.model.forward

        def limited(input_ids=None, **kwargs):
            if len(input_ids) > 7:
                raise RuntimeError("CUDA out of memory. Tried to allocate all of it.")
            return forward(input_ids=input_ids, **kwargs)

        trainer.model.forward = limited
        trainer.train()
        return trainer

    found = train(auto_find_batch_size=True)
    assert found.rows_per_step == 7
    assert logged(found) == pytest.approx(logged(train(per_device_train_batch_size=7)), abs=1e-6)


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive"])
def test_neftune_adds_noise_while_training(tmp_path, kind):
    rows = random_blocks(16)
    plain, noisy = (trainer_of(kind, tmp_path, rows, rows, max_steps=1, **o) for o in ({}, {"neftune_noise_alpha": 5}))
    assert noisy.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    plain.train(), noisy.train()
    assert logged(noisy) != logged(plain)


def test_the_tokenizer_does_not_change_which_tokens_count(tmp_path):
    """It names a start token, which the model does not."""
    tokenizer, rows = text8_tokenizer(12), random_blocks(8, vocabulary=28)
    model = MDLMForMaskedLM(tiny_config(vocab_size=29, mask_token_id=28))
    args = arguments(tmp_path, MaskedDiffusionArguments, max_steps=2, learning_rate=1e-2)
    sets = {"train_dataset": rows, "eval_dataset": rows}
    trainer = MaskedDiffusionTrainer(model, args, processing_class=tokenizer, **sets)
    trainer.train()
    named = [model.config.bos_token_id, model.config.pad_token_id, model.generation_config.bos_token_id]
    assert tokenizer.bos_token_id == 27 and named == [None] * 3

    trainer.save_model()
    loaded = MDLMForMaskedLM.from_pretrained(tmp_path)
    bound = nelbo(loaded, np.stack(rows["input_ids"]), num_samples=2, seed=args.seed)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(bound.value, abs=1e-6)


def test_columns_that_the_collator_reads_reach_it(tmp_path):
    """Whatever the model's forward has: a composite of others takes no labels by that name."""

    class Bare(MDLMForMaskedLM):
        def forward(self, input_ids, attention_mask=None, timesteps=None):
            return super().forward(input_ids, attention_mask, timesteps)

    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "other": "x"}] * 8)
    batch = next(iter(denoiser_trainer(tmp_path, Bare(tiny_config()), rows).get_train_dataloader()))
    assert batch["labels"].tolist() == [[-100, -100, 3]] * 8

    masks = Dataset.from_list([{"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]}] * 8)
    batch = next(iter(denoiser_trainer(tmp_path, rows=masks).get_train_dataloader()))
    assert batch["labels"].tolist() == [[-100, 2, 3]] * 8


def test_options_by_their_old_names_are_taken_with_a_warning(tmp_path):
    with pytest.warns(FutureWarning, match=r"denoising_steps \(now max_denoising_steps\), eval_denoising_steps"):
        args = EnergyArguments(str(tmp_path), denoising_steps=4, eval_denoising_steps=3)
    assert (args.max_denoising_steps, args.eval_max_denoising_steps) == (4, 3)
    with pytest.warns(FutureWarning, match="now eval_num_samples"):
        assert MaskedDiffusionArguments(str(tmp_path), eval_noise_samples=4).eval_num_samples == 4
    with pytest.raises(ValueError, match="denoising_steps is the old name of max_denoising_steps"):
        EnergyArguments(str(tmp_path), denoising_steps=4, max_denoising_steps=4)
