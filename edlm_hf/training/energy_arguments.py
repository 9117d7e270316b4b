"""The options of the training of an energy."""

from dataclasses import dataclass, field

from edlm_hf.modeling.sampler_choice import make_sampler
from edlm_hf.modeling.samplers import MASKS, Sampler
from edlm_hf.old_names import takes_old_names
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.objectives import NCE_LOSSES
from edlm_hf.training.refused_options import REFUSED_OF_ENERGIES, check_fields

# A planner that looks at the proposal needs the denoiser along a whole path. The nearest sampler
# that sees masks alone reveals them in random order.
RANDOM_ORDER = {"spaced": {"score": "random"}}


@takes_old_names
@dataclass
class EnergyArguments(EDLMTrainingArguments):
    """Options of `EnergyTrainer`.

    Raises:
        ValueError: a value is out of range, the loss is not known, the sampler is not known or
            looks at more than masks, or an option would have no effect.
    """

    nce_loss: str = field(
        default="binary",
        metadata={
            "help": "binary: the paper's, tells data from draws. ranking: picks the data among all "
            "candidates, which tightens the bound of the sampler with k = num_negatives + 1.",
            "choices": sorted(NCE_LOSSES),
        },
    )
    num_negatives: int = field(
        default=1,
        metadata={"help": "Draws from the denoiser per text."},
    )
    max_denoising_steps: int | None = field(
        default=None,
        metadata={
            "help": "T: the text gives what one step of the T-step sampler reveals, the denoiser "
            "the rest. The ranking loss is then the bound of that sampler (m = 1). Unless given, "
            "the text gives all, as in the paper."
        },
    )
    sampler: str = field(
        default="ancestral",
        metadata={
            "help": "Whose steps the energy is trained on, with max_denoising_steps: a sampler that "
            "sees masks alone, such as dilated. For spaced it is the random order.",
        },
    )
    eval_num_candidates: int = field(default=8, metadata={"help": "k in evaluation."})
    eval_max_denoising_steps: int = field(
        default=64,
        metadata={"help": "T of the sampler whose bound is evaluated."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, REFUSED_OF_ENERGIES)
        if self.nce_loss not in NCE_LOSSES:
            allowed = ", ".join(sorted(NCE_LOSSES))
            raise ValueError(f"nce_loss is {self.nce_loss!r}, but it must be one of {allowed}.")
        self.make_sampler()  # checks it

        # With k = 1 no energy acts. A value that is None was left open.
        smallest = {
            "num_negatives": 1,
            "max_denoising_steps": 1,
            "eval_num_candidates": 2,
            "eval_max_denoising_steps": 1,
        }
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but it must be at least {least}.")

    def make_sampler(self) -> Sampler:
        """Make the sampler whose steps are trained on.

        Raises:
            ValueError: it is not known, or looks at more than masks.
        """
        # Any T does for a check where none is given
        parameters = RANDOM_ORDER.get(self.sampler)
        sampler = make_sampler(self.sampler, self.max_denoising_steps or 1, parameters=parameters)
        if sampler.sees != MASKS:
            raise ValueError(
                f"sampler is {self.sampler!r}, which looks at the proposal, but training needs one "
                "that sees masks alone: ancestral, first_hitting, dilated, spaced (in random "
                "order) or remdm."
            )

        # Without T the pairs are those of the forward process, where no sampler takes part
        if self.sampler != "ancestral" and self.max_denoising_steps is None:
            problem = f"sampler is {self.sampler!r}, but max_denoising_steps is not given."
            raise ValueError(f"{problem} Pass the T of its steps.")
        return sampler


__all__ = ["RANDOM_ORDER", "EnergyArguments"]
