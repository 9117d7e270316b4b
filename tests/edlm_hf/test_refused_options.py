"""Options of transformers' Trainer that would have no effect, or no sense, are refused by name."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from published import tiny_denoiser
from training import KIND, arguments, denoiser_trainer, random_blocks, trainer_of
from transformers import TrainingArguments

from edlm_hf.training import (
    EDLMTrainingArguments,
    EnergyArguments,
    MaskedDiffusionArguments,
    MaskedDiffusionTrainer,
)
from edlm_hf.training.refused_options import REFUSED

# Every field of TrainingArguments of the tested version: refused, tested here or in the tests of options, rows and
# evaluation, or the Trainer's own business, of which rows, losses and metrics know nothing
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


@pytest.mark.parametrize(("name", "value"), [("optim", "sgd"), ("optim_args", "momentum=0.9")])
def test_another_optimizer_beside_muon_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}', of another one"):
        denoiser_trainer(tmp_path, muon=True, **{name: value})


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
