"""The samplers that the study of quality compares ("arms"), and what their networks compute."""

from dataclasses import dataclass

from torch import nn

from edlm_hf.benchmarks.parts import digest_of_weights
from edlm_hf.benchmarks.study import Study
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion

MDLM, AR = "MDLM", "AR"


@dataclass(frozen=True)
class Arm:
    """A sampler.

    Args:
        model: the network whose `generate()` is called.
        flops: operations of one call for one sample (of the whole sample for the AR model).
        energy_flops: operations of the energy of one candidate.
        identity: hashes of the weights and everything else that decides the results.
    """

    name: str
    model: nn.Module
    flops: float
    energy_flops: float
    identity: tuple[str, ...]

    @property
    def causal(self) -> bool:
        """Whether it writes from left to right."""
        return self.name == AR

    @property
    def has_energy(self) -> bool:
        return self.name not in (MDLM, AR)


def arms_of(study: Study, composites: list[EDLMForMaskedDiffusion]) -> list[Arm]:
    """MDLM, an arm for each composite, and with an AR model EDLM-AR, EDLM-coAR and AR.

    Raises:
        ValueError: a composite without an NCE energy or of another denoiser, or two of one scope.
    """
    flops = forward_flops(study.mdlm.config, study.length)
    arms = [Arm(MDLM, study.mdlm, flops, 0.0, study.identity)]

    # The scope is in the name of an arm, so that two of one scope could not be told apart
    for composite in composites:
        arm = nce_arm(study, composite, flops)
        names = [other.name for other in arms]
        if arm.name in names:
            scope = composite.config.energy_scope
            raise ValueError(f"Two composites of `nce` have the scope {scope}: give one.")
        arms.append(arm)

    if study.causal is not None:
        arms += autoregressive_arms(study, flops)
    return arms


def nce_arm(study: Study, composite: EDLMForMaskedDiffusion, flops: float) -> Arm:
    """The arm of an NCE energy. Its denoiser must be that of the study."""
    config = composite.config
    name = "EDLM-NCE"
    if config.energy_scope != "sequence":
        name = f"EDLM-NCE ({config.energy_scope})"

    if config.energy_type != "nce":
        raise ValueError(f"A composite of `nce` has energy_type {config.energy_type!r}, not 'nce'.")
    if digest_of_weights(composite.denoiser) != study.identity[0]:
        raise ValueError(f"The {name} composite has another denoiser than `model`: give that as `model` too.")

    # An energy without a configuration of its own has the sizes of the denoiser
    energy_config = config.energy_config or study.denoiser.config
    energy_flops = forward_flops(energy_config, study.length, energy=True)

    energy_digest = digest_of_weights(composite.energy_model)
    identity = (*study.identity, config.energy_scope, energy_digest)
    model = composite.to(study.device).eval()
    return Arm(name, model, flops, energy_flops, identity)


def autoregressive_arms(study: Study, flops: float) -> list[Arm]:
    """The two energies of the AR model, and the AR model alone."""
    causal_flops = forward_flops(study.causal.config, study.length, causal=True)

    # E_AR, and E_coAR in which visible tokens count nothing
    arms = []
    for name, energy_type in (("EDLM-AR", "ar"), ("EDLM-coAR", "coar")):
        identity = (*study.identity, energy_type, study.causal_digest)
        composite = study.with_causal(energy_type)
        arms.append(Arm(name, composite, flops, causal_flops, identity))

    # With a cache of keys, L calls of one token each cost as much as one forward pass over L tokens
    causal = study.causal.eval()
    arms.append(Arm(AR, causal, causal_flops, 0.0, (study.causal_digest,)))
    return arms


def forward_flops(config, length: int, *, causal: bool = False, energy: bool = False) -> float:
    """Floating-point operations of one forward pass over L tokens, two for each multiply-add.

    A transformer with N blocks of width d and feed-forward layers of width 4 d takes
    2 L (12 N d^2 + head) in linear layers, and 4 N d for each pair of tokens that attend to each
    other. The head is d V, in an `energy` network 3 d^2. MDLM on OpenWebText with L = 1024 takes
    292 GFLOP.

    `generate()` leaves out many of these operations. The count does not.
    """
    width = config.hidden_size
    blocks = config.num_hidden_layers
    head = 3 * width * width if energy else width * config.vocab_size

    # A causal token attends to itself and to the tokens before it
    pairs = length * length
    if causal:
        pairs = length * (length + 1) / 2

    # N blocks: 4 d^2 for queries, keys, values and output, 8 d^2 for the feed-forward layers
    linear = 2 * length * (12 * blocks * width * width + head)
    attention = 4 * blocks * width * pairs
    return linear + attention


__all__ = ["AR", "MDLM", "Arm", "arms_of", "forward_flops"]
