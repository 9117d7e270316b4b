"""The settings of `edlm benchmark quality`."""

from dataclasses import dataclass

from edlm_hf.benchmarks.settings import StudySettings, check_distinct, check_positive


@dataclass(frozen=True)
class QualitySettings(StudySettings):
    """The energies that are compared, on which texts and samples.

    Args:
        autoregressive: the AR model: an arm, the energy of EDLM-AR and EDLM-coAR, the judge unless
            `judge` is given.
        nce: EDLM composites with an NCE energy of the same denoiser, one per scope. If `model` is
            such a composite, its own energy takes part too.
        judge: causal language model for the generative perplexity.
        steps: values of T.
        num_candidates: k.
        window: w.
        inner_copies: values of m for the sampler bound.
        num_generated: samples for each of `seeds`.
        dtype: of all networks but the judge.
        others: see `StudySettings`.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    nce: tuple[str, ...] = ()
    judge: str | None = None
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    num_candidates: int = 8
    window: float = 1.0
    inner_copies: tuple[int, ...] = (1, 16, 64)
    num_generated: int = 256
    seeds: tuple[int, ...] = (0,)

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
