"""Options of transformers' Trainer that the trainers of this package cannot honour."""

import inspect
from dataclasses import MISSING, fields

from transformers import TrainingArguments

# Fields of TrainingArguments that must keep their defaults: the reason, and advice
REFUSED = {
    "label_smoothing_factor": "the losses are likelihoods, or bounds on them, of the texts as they are. Leave it at 0.",
    "label_names": "labels are read from the column `labels`. Rename the column, and leave label_names out.",
    "include_for_metrics": "compute_metrics gets what was measured of every row, losses among it, "
    "and on demand the tokens. Leave it empty, or take ['inputs'].",
    "eval_use_gather_object": "rows of an evaluation are gathered as tensors. Leave it at False.",
    "bf16_full_eval": "it would round the weights that are trained and saved. Evaluate what was "
    "saved, with `edlm evaluate --dtype bfloat16`.",
    "fp16_full_eval": "it would round the weights that are trained and saved. Evaluate what was "
    "saved, with `edlm evaluate --dtype float16`.",
    "debug": "its hooks cannot read what these models pass on. Leave it out.",
    "use_liger_kernel": "there are no Liger kernels for these models and losses. Leave it at False.",
    "parallelism_config": "devices that share a row would mask it differently. Use DDP or FSDP.",
    "deepspeed": "weights that DeepSpeed divides are neither averaged nor saved whole. Use DDP or FSDP.",
}
REFUSED_OF_ENERGIES = {
    "neftune_noise_alpha": "it acts on the embedding of the denoiser, which is frozen. Leave it out.",
}

# Values of refused fields that change nothing, beside the defaults
ALSO_ALLOWED = {"debug": [], "label_names": ["labels"], "include_for_metrics": ["inputs"]}

# Arguments of Trainer that must not be given
REFUSED_FUNCTIONS = {
    "compute_loss_func": "the loss is the trainer's own. Change it in a subclass (compute_loss).",
    "preprocess_logits_for_metrics": "no logits are kept in evaluation. Measure more of a row in a "
    "subclass (evaluate_rows).",
}


def defaults_of_transformers() -> dict:
    """The defaults of TrainingArguments, since a subclass may have defaults of its own."""
    defaults = {}
    for field in fields(TrainingArguments):
        made_anew = field.default_factory is not MISSING
        defaults[field.name] = field.default_factory() if made_anew else field.default
    return defaults


def check_fields(args: TrainingArguments, refused: dict[str, str] = REFUSED) -> None:
    """Raise ValueError if a field named in `refused` has another value than its default."""
    defaults = defaults_of_transformers()
    for name, reason in refused.items():
        if name not in defaults:  # another version of transformers
            continue
        default = defaults[name]
        value = getattr(args, name)
        if value not in (default, ALSO_ALLOWED.get(name, default)):
            raise ValueError(f"{name} is {value!r}, but {reason}")


def check_arguments(args: TrainingArguments, given: dict) -> None:
    """Raise ValueError if an argument of Trainer would have no effect, or not with `args`.

    Args:
        args: the training arguments.
        given: the arguments of Trainer, by name.
    """
    for name, reason in REFUSED_FUNCTIONS.items():
        if given.get(name) is not None:
            raise ValueError(f"{name} was given, but {reason}")

    if args.muon:
        check_no_other_optimizer(args, given)

    # Tokens masked twice
    collator = given["data_collator"]
    if getattr(collator, "mlm", False):
        raise ValueError(
            f"data_collator is a {type(collator).__name__} with mlm=True, but the trainer masks "
            "tokens itself, anew in every step. Leave data_collator out, or take mlm=False."
        )

    # Metrics of batches that nothing puts together
    compute_metrics = given["compute_metrics"]
    if args.batch_eval_metrics and compute_metrics is not None:
        if "compute_result" not in inspect.signature(compute_metrics).parameters:
            raise ValueError(
                "batch_eval_metrics is True, but compute_metrics has no argument compute_result, "
                "which says that all batches were seen. Add it, or set batch_eval_metrics=False."
            )


def check_no_other_optimizer(args: TrainingArguments, given: dict) -> None:
    """Raise ValueError if there is an optimizer beside Muon. Arguments are as in `check_arguments`."""
    advice = "set muon=False, or leave it out"
    optimizer = given.get("optimizers", (None, None))[0]
    if optimizer is not None or given.get("optimizer_cls_and_kwargs") is not None:
        raise ValueError(f"muon=True is an optimizer, and another one was given: {advice}.")

    defaults = defaults_of_transformers()
    for name in ("optim", "optim_args"):
        value = getattr(args, name)
        if value != defaults[name]:
            value = getattr(value, "value", value)  # of an enumeration
            raise ValueError(f"muon=True is an optimizer, and {name} is {value!r}, of another one: {advice}.")


__all__ = ["REFUSED_OF_ENERGIES", "check_arguments", "check_fields"]
