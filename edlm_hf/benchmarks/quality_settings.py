"""The settings of `edlm benchmark quality`."""

from dataclasses import dataclass

from edlm_hf.benchmarks.settings import StudySettings, check_distinct, check_positive, steps_option
from edlm_hf.settings import option


@dataclass(frozen=True)
class QualitySettings(StudySettings):
    """The energies that are compared, on which texts and samples.

    If the model is a composite with an NCE energy, its own energy takes part too.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    autoregressive: str | None = option(
        None, help="AR model: an arm, the energy of EDLM-AR and EDLM-coAR, the judge unless one is given."
    )
    nce: tuple[str, ...] = option(
        (), repeated=True, help="EDLM composite with an NCE energy of the same denoiser; one per scope."
    )
    judge: str | None = option(None, help="Causal language model for Gen-PPL.")
    steps: tuple[int, ...] = steps_option((8, 16, 32, 64, 128, 256))
    num_candidates: int = option(8, old=("candidates",), help="k of every energy.")
    window: float = option(1.0, flag="energy-window", old=("window",), help="w: energy at t in [1 - w, 1].")
    inner_copies: tuple[int, ...] = option((1, 16, 64), help="m of the sampler bound.")
    num_generated: int = option(256, flag="num-return-sequences", old=("samples",), help="Samples per seed.")
    seeds: tuple[int, ...] = option((0,), help="Each makes samples of its own.")

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, ("steps", "inner_copies", "seeds"))
        check_positive(self, ("steps", "inner_copies"))

        if self.num_generated < 2:
            raise ValueError(f"num_generated is {self.num_generated}, but a standard error needs at least 2 samples.")
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates is {self.num_candidates}, but an energy weighs at least 2.")
        if not 0 < self.window <= 1:
            raise ValueError(f"window is {self.window}, but it must lie in (0, 1]; w = 0 is MDLM, an arm of its own.")

    @property
    def num_samples(self) -> int:
        """Samples per arm and T."""
        return self.num_generated * len(self.seeds)


# A first look, in under two minutes
QUICK = {
    "steps": (4, 16),
    "num_candidates": 4,
    "inner_copies": (1, 4),
    "num_texts": 4,
    "noise_samples": 2,
    "num_generated": 8,
    "batch_size": 8,
}

__all__ = ["QUICK", "QualitySettings"]
