"""The flags of the training commands, which are also the keys of their recipes."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "A protocol (text8, openwebtext, ...), a dataset of the Hub, or files."})
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Unless given, `dataset` itself; of files the last twentieth, which is then not trained on."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on: validation unless given, test if there is none."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column with the text, where it is not obvious."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "text8 (27 characters), or a tokenizer of the Hub. Unless given, that of the model that training "
            "starts from, or text8."
        },
    )
    normalize_text8: bool | None = field(
        default=None,
        metadata={
            "help": "Bring the text to the 27 symbols of text8. Unless given, where the tokenizer has no others."
        },
    )
    length: int | None = field(
        default=None, metadata={"help": "Tokens per block; unless given, the protocol's or the model's, the shorter."}
    )
    style: str | None = field(
        default=None,
        metadata={
            "help": "wrap (start and end of text) or crop. Unless given, what model, tokenizer and protocol need."
        },
    )
    start_token: bool | None = field(
        default=None, metadata={"help": "Begin cropped blocks with a start token. Unless given, if the model has one."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the training data while it is used."})
    eval_blocks: int | None = field(default=None, metadata={"help": "Evaluate on the first blocks only."})
    time_limit_minutes: float | None = field(
        default=None, metadata={"help": "Save and stop after so long; the same command goes on from there."}
    )
    json: bool = field(default=False, metadata={"help": "Print the result as JSON."})

    def __post_init__(self):
        for name in ("length", "eval_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but it must be at least 1.")

        # A comparison with NaN is False
        minutes = self.time_limit_minutes
        if minutes is not None and not minutes >= 0:
            raise ValueError(f"time_limit_minutes is {minutes}, but it must be at least 0. Leave it out for no limit.")


@dataclass
class ModelArguments:
    model: str | None = field(default=None, metadata={"help": "Start from this model, not from random weights."})
    from_causal: str | None = field(
        default=None,
        metadata={"help": "Start the denoiser from the weights of this autoregressive baseline, whose sizes it takes."},
    )
    hidden_dim: int = field(default=768, metadata={"help": "Width."})
    cond_dim: int = field(default=128, metadata={"help": "Width of the conditioning (denoiser only)."})
    n_blocks: int = field(default=12, metadata={"help": "Transformer blocks."})
    n_heads: int = field(default=12, metadata={"help": "Attention heads."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the residual branches."})
    time_conditioning: bool = field(default=False, metadata={"help": "Show the noise level to the denoiser."})
    noise_schedule: str = field(default="loglinear", metadata={"help": "Noise schedule of the denoiser."})


@dataclass
class EnergyModelArguments:
    denoiser: str | None = field(
        default=None,
        metadata={"help": "The trained denoiser that gets a new energy, a folder or a repository of the Hub."},
    )
    model: str | None = field(
        default=None, metadata={"help": "Instead of a denoiser: go on with the energy of this model, held as it is."}
    )
    energy: str = field(
        default="full",
        metadata={
            "help": "full: a copy of the denoiser. lora: the denoiser's own weights with low-rank updates. head: a "
            "small head on the denoiser's hidden states.",
            "choices": ["full", "lora", "head"],
        },
    )
    adapter: bool = field(
        default=False,
        metadata={"help": "Train and save a small PEFT adapter of the energy of `model`, in place of a whole model."},
    )
    adapter_rank: int = field(default=16, metadata={"help": "Rank of the updates (lora, adapter)."})
    energy_blocks: int | None = field(default=None, metadata={"help": "Only the first blocks of the copy (full)."})
    energy_scope: str | None = field(
        default=None,
        metadata={
            "help": "What the energy weighs; unless given, what that of the model does, or sequence.",
            "choices": ["sequence", "revealed"],
        },
    )


@dataclass
class DraftModelArguments:
    denoiser: str | None = field(
        default=None,
        metadata={
            "help": "The trained denoiser, a folder or a repository of the Hub; of a composite its denoiser. It gets a "
            "draft head, or goes on with its own of this width, and is saved with it."
        },
    )
    draft_width: int = field(default=512, metadata={"help": "Width of the head."})
    autoregressive: str | None = field(
        default=None,
        metadata={
            "help": "The autoregressive model that is to accept the drafts, a folder or a repository of the Hub. The "
            "head learns from it how to be refused less; from the tokens of the texts unless given."
        },
    )
