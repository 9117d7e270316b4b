"""Options of transformers' Trainer: each is honoured, or refused by name."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpointing import CHECKPOINTING
from datasets import Dataset, IterableDataset
from published import tiny_config, tiny_denoiser
from training import (
    arguments,
    denoiser_trainer,
    logged,
    random_blocks,
    rows_with_prompts,
    same,
    trainer_of,
)
from transformers import TrainingArguments

from edlm_hf import MDLMForMaskedLM
from edlm_hf.evaluation import nelbo
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import (
    EDLMTrainingArguments,
    EnergyArguments,
    MaskedDiffusionArguments,
    MaskedDiffusionTrainer,
)
from edlm_hf.training.refused_options import REFUSED

KINDS = ["denoiser", "autoregressive", "energy"]
KIND = pytest.mark.parametrize("kind", KINDS)

# Every field of TrainingArguments of the tested version: refused, tested below, or the Trainer's own business, of which
# rows, losses and metrics know nothing
TESTED = set(
    "prediction_loss_only eval_do_concat_batches eval_accumulation_steps batch_eval_metrics "
    "include_num_input_tokens_seen average_tokens_across_devices gradient_accumulation_steps auto_find_batch_size "
    "per_device_train_batch_size per_device_eval_batch_size remove_unused_columns train_sampling_strategy "
    "neftune_noise_alpha activation_checkpointing gradient_checkpointing torch_compile torch_compile_backend bf16 "
    "dataloader_num_workers dataloader_drop_last accelerator_config eval_on_start eval_strategy eval_steps "
    "lr_scheduler_type metric_for_best_model load_best_model_at_end max_steps num_train_epochs learning_rate optim "
    "seed save_strategy save_steps use_cpu report_to disable_tqdm logging_steps output_dir fsdp max_grad_norm "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon warmup_steps push_to_hub hub_token resume_from_checkpoint".split()
)
OF_THE_TRAINER = set(
    "lr_scheduler_kwargs optim_args optim_target_modules fp16 tf32 activation_checkpointing_kwargs "
    "gradient_checkpointing_kwargs torch_compile_mode liger_kernel_config use_cache torch_empty_cache_steps "
    "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica run_name "
    "project trackio_space_id trackio_bucket_id trackio_static_space_id eval_delay save_only_model save_on_each_node "
    "save_total_limit enable_jit_checkpoint hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism data_seed "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
    "dataloader_in_order length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_static_graph ddp_backend ddp_timeout fsdp_config skip_memory_metrics do_train do_eval do_predict "
    "local_rank".split()
)


def pinned_version() -> str:
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text()
    return re.search(r"^transformers==(\S+)$", lines, re.MULTILINE)[1]


@pytest.mark.skipif(transformers.__version__ != pinned_version(), reason="fields of another version of transformers")
def test_of_every_training_argument_it_is_known_whether_it_has_an_effect():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields == TESTED | OF_THE_TRAINER | REFUSED.keys()
    assert not TESTED & OF_THE_TRAINER and not (TESTED | OF_THE_TRAINER) & REFUSED.keys()


# ------------------------------------------------------------------------------------------------------------- refused

REFUSED_VALUES = {
    "label_smoothing_factor": 0.2,
    "label_names": ["targets"],
    "include_for_metrics": ["loss"],
    "eval_use_gather_object": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "debug": "underflow_overflow",
    "use_liger_kernel": True,
    "parallelism_config": object(),
    "deepspeed": {"zero_optimization": {"stage": 3}},
}


def test_every_refused_argument_has_a_case():
    assert REFUSED_VALUES.keys() == REFUSED.keys()


@pytest.mark.parametrize("kind", [EDLMTrainingArguments, MaskedDiffusionArguments, EnergyArguments])
@pytest.mark.parametrize("name", [name for name in REFUSED_VALUES if name not in ("parallelism_config", "deepspeed")])
def test_arguments_without_an_effect_are_refused_by_name(tmp_path, kind, name):
    with pytest.raises(ValueError, match=f"^{name} is .*, but "):
        arguments(tmp_path, kind, **{name: REFUSED_VALUES[name]})


@pytest.mark.parametrize("name", ["parallelism_config", "deepspeed"])
def test_other_ways_to_divide_a_model_are_refused(tmp_path, monkeypatch, name):
    """The Trainer's own checks of these need what is not installed: they are left out."""
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    with pytest.raises(ValueError, match=f"^{name} is .*, but .*Use DDP or FSDP"):
        arguments(tmp_path, **{name: REFUSED_VALUES[name]})


def test_neftune_is_refused_where_it_would_act_on_the_frozen_denoiser(tmp_path):
    with pytest.raises(ValueError, match="neftune_noise_alpha is 5.*embedding of the denoiser, which is frozen"):
        arguments(tmp_path, EnergyArguments, neftune_noise_alpha=5)


def test_values_that_mean_the_default_are_taken(tmp_path):
    args = arguments(tmp_path, label_names=["labels"], include_for_metrics=["inputs"], debug="")
    assert args.label_names == ["labels"]


@KIND
@pytest.mark.parametrize(
    "given, message",
    [
        ({"compute_loss_func": lambda *_: 0}, "compute_loss_func was given, but the loss is the trainer's own"),
        ({"preprocess_logits_for_metrics": lambda *_: 0}, "preprocess_logits_for_metrics was given, but no logits"),
        ({"model_init": tiny_denoiser}, "Give either model or model_init"),
    ],
)
def test_functions_without_an_effect_are_refused_by_name(tmp_path, kind, given, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(kind, tmp_path, random_blocks(8), given=given)


def test_what_is_no_model_is_refused(tmp_path):
    args = arguments(tmp_path, MaskedDiffusionArguments)
    with pytest.raises(ValueError, match="model is a str, but it must be a module.*from_pretrained"):
        MaskedDiffusionTrainer("edlm-books", args)
    with pytest.raises(ValueError, match="model is a MaskedDiffusionArguments"):
        MaskedDiffusionTrainer(args, arguments(tmp_path, MaskedDiffusionArguments))
    with pytest.raises(ValueError, match="args is MDLMForMaskedLM, but MaskedDiffusionTrainer takes MaskedDiff"):
        MaskedDiffusionTrainer(args, tiny_denoiser())
    with pytest.raises(ValueError, match="model is a Linear, but it must be a module with a configuration"):
        MaskedDiffusionTrainer(torch.nn.Linear(1, 1), args)
    with pytest.raises(ValueError, match="Give either model or model_init"):
        MaskedDiffusionTrainer(args=args)


def test_two_optimizers_are_one_too_many(tmp_path):
    model = tiny_denoiser()
    adam = torch.optim.Adam(model.parameters())
    for given in ({"optimizers": (adam, None)}, {"optimizer_cls_and_kwargs": (torch.optim.Adam, {})}):
        with pytest.raises(ValueError, match="muon=True is an optimizer, and another one was given"):
            trainer_of("denoiser", tmp_path, random_blocks(8), model=model, given=given, muon=True)


# ------------------------------------------------------------------------------------------------------------ honoured


def test_without_arguments_there_are_those_of_the_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(MaskedDiffusionTrainer(tiny_denoiser()).args) is MaskedDiffusionArguments


@KIND
@pytest.mark.parametrize(
    "options",
    [
        {"eval_do_concat_batches": False},
        {"eval_accumulation_steps": 1},
        {"batch_eval_metrics": True},
        {"include_for_metrics": ["inputs"]},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_num_workers": 1},
        {"dataloader_drop_last": True},
        {"accelerator_config": {"split_batches": True, "even_batches": False}},
    ],
)
def test_how_an_evaluation_is_gathered_changes_nothing(tmp_path, kind, options):
    rows = rows_with_prompts(11)
    plain = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4).evaluate()
    found = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4, **options).evaluate()
    assert found.keys() == plain.keys()
    for name in plain:
        if not name.endswith(("time", "per_second")):
            assert found[name] == pytest.approx(plain[name], abs=1e-6), name


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
def test_predictions_are_what_was_measured_of_every_row(tmp_path, kind):
    rows = rows_with_prompts(11)
    trainer = trainer_of(kind, tmp_path, rows, per_device_eval_batch_size=4)
    found = trainer.predict(rows)
    assert found.predictions.shape == (11, len(trainer.measured)) and found.label_ids is None
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], abs=1e-6)

    trainer = trainer_of(kind, tmp_path, rows, per_device_eval_batch_size=4, prediction_loss_only=True)
    alone = trainer.predict(rows)
    assert alone.predictions is None
    assert {name for name in alone.metrics if "loss" in name} == {"test_loss", "test_loss_standard_error"}
    assert alone.metrics["test_loss"] == found.metrics["test_loss"]
    assert "test_perplexity" not in alone.metrics


@KIND
def test_metrics_of_the_user_are_added_to_ours(tmp_path, kind):
    rows = rows_with_prompts(11)

    def metrics(found):
        assert found.label_ids is None and len(found.inputs) == 11
        return {"tokens": float(found.predictions["tokens"].sum())}

    given = {"compute_metrics": metrics}
    options = {"per_device_eval_batch_size": 4, "include_for_metrics": ["inputs"]}
    found = trainer_of(kind, tmp_path, rows, rows, given=given, **options).evaluate()
    assert found["eval_tokens"] == sum(label != -100 for labels in rows["labels"] for label in labels)
    assert (
        found["eval_loss"]
        == trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4).evaluate()["eval_loss"]
    )


def test_metrics_of_the_user_by_batch(tmp_path):
    rows, seen = rows_with_prompts(11), []

    def metrics(found, compute_result):
        seen.append(len(found.predictions["tokens"]))
        return {"batches": len(seen)} if compute_result else {}

    options = {"per_device_eval_batch_size": 4, "batch_eval_metrics": True}
    trainer = trainer_of(
        "denoiser",
        tmp_path,
        rows,
        rows,
        given={"compute_metrics": metrics},
        **options,
    )
    assert trainer.evaluate()["eval_batches"] == 3 and seen == [4, 4, 3]
    with pytest.raises(ValueError, match="compute_metrics has no argument compute_result"):
        trainer_of(
            "denoiser",
            tmp_path,
            rows,
            rows,
            given={"compute_metrics": lambda found: {}},
            **options,
        )


def test_several_sets_are_evaluated_by_name(tmp_path):
    rows = rows_with_prompts(11)
    sets = {"first": rows, "second": rows.select(range(5))}
    found = trainer_of("denoiser", tmp_path, rows, sets).evaluate()
    assert found["eval_first_loss"] == trainer_of("denoiser", tmp_path, rows, rows).evaluate()["eval_loss"]
    assert found["eval_second_loss"] != found["eval_first_loss"]


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


@pytest.mark.parametrize(("name", "value"), [("optim", "sgd"), ("optim_args", "momentum=0.9")])
def test_another_optimizer_beside_muon_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}', of another one"):
        denoiser_trainer(tmp_path, muon=True, **{name: value})


def test_metrics_that_are_none_are_refused(tmp_path):
    given = {"compute_metrics": lambda prediction: None}
    trainer = trainer_of("denoiser", tmp_path, random_blocks(8), random_blocks(8), given=given)
    with pytest.raises(ValueError, match="compute_metrics returned a NoneType"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0, but it must be at least 1"),
        ({"max_steps": -2}, "max_steps is -2"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs is 0"),
        ({"max_steps": -1, "num_train_epochs": math.nan}, "num_train_epochs is nan"),
        ({"lr_scheduler_kwargs": 3}, "lr_scheduler_kwargs is 3, but it must be names with values"),
        ({"lr_scheduler_kwargs": "3"}, "lr_scheduler_kwargs is '3'"),
    ],
)
def test_values_that_no_run_can_have_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


@pytest.mark.parametrize("kind", [*KINDS, "drafts"])
def test_a_best_metric_that_is_not_measured_is_refused_before_training(tmp_path, kind):
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "metric_for_best_model": "nosuch"}
    trainer = trainer_of(kind, tmp_path, random_blocks(16), random_blocks(16), **options)
    with pytest.raises(ValueError, match="metric_for_best_model is 'nosuch', but an evaluation measures loss|loss,"):
        trainer.train()
    assert trainer.state.global_step == 0

    # Everything that is measured can be the metric
    measured = [name for name in trainer.evaluate() if name.startswith("eval_")]
    for name in measured:
        trainer.args.metric_for_best_model = name
        trainer.check_best_metric()
