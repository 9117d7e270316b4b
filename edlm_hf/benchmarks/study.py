"""The common part of the studies of quality, samplers and infilling: networks, texts, and decoding."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from edlm_hf.benchmarks.parts import Parts, digest_of_source, digest_of_weights
from edlm_hf.benchmarks.settings import NetworkSettings
from edlm_hf.benchmarks.text_sets import TextSet, load_blocks, load_texts, named_source
from edlm_hf.data.block_rules import can_wrap
from edlm_hf.evaluation import Estimate, spelling_accuracy, vocabulary_of
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.loading import load_causal, load_masked, load_tokenizer
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion

# Seeds that the batches of one seed may use before those of the next seed begin
SEEDS_OF_BATCHES = 2**20


class Study:
    """The networks and texts of a study. A part that is finished is not repeated.

    Args:
        output: folder of the results. The finished parts are in its folder `parts`.

    Attributes:
        network: `settings.model` as it was loaded, a denoiser or an EDLM composite.
        denoiser: the denoiser alone.
        mdlm: the denoiser as a sampler without an energy.
        identity: hash of the denoiser's weights, and its noise schedule.
        causal: the AR model, None without one.
        causal_start: the token that the AR model begins with.
        length: L, the start token among them.
        prompt: the start token where the denoiser has one, otherwise nothing.
        wraps: whether texts begin and end with tokens that are modelled.

    Raises:
        ValueError: the model does not say how long its texts are, or the AR model has no start
            token.
    """

    def __init__(self, settings: NetworkSettings, output: Path):
        self.settings = settings
        self.parts = Parts(output / "parts")
        self.device = torch.device(settings.device)

        # 1. The networks
        self.tokenizer = load_tokenizer(settings.model)
        self.network = self.load(settings.model)
        self.denoiser = getattr(self.network, "denoiser", self.network)
        self.causal = self.load_autoregressive()

        composite = EDLMForMaskedDiffusion.from_components(self.denoiser, tokenizer=self.tokenizer)
        self.mdlm = composite.to(self.device)

        # 2. What every measurement of the denoiser depends on, in the hash of each part
        config = self.mdlm.config
        schedule = json.dumps([config.noise_schedule, config.noise_schedule_params])
        self.identity = (digest_of_weights(self.denoiser), schedule)

        # 3. The form of the texts
        self.length = config.max_position_embeddings
        if self.length is None:
            raise ValueError(f"{settings.model} does not say how long its texts are (max_position_embeddings).")

        # The start token is given to every sampler, since the model has only seen texts that begin with it
        self.prompt = [] if config.bos_token_id is None else [config.bos_token_id]
        self.wraps = can_wrap(self.tokenizer, config)
        if self.causal is not None:
            self.causal_start = self.start_of_causal()

    def load(self, name: str) -> nn.Module:
        """A denoiser or an EDLM composite, in the precision of the study."""
        return load_masked(name, self.tokenizer, dtype=self.settings.dtype)

    def load_autoregressive(self) -> nn.Module | None:
        """The AR model of the settings, otherwise the one inside the composite, otherwise None."""
        if self.settings.autoregressive is not None:
            causal = load_causal(self.settings.autoregressive, dtype=self.settings.dtype)
            return getattr(causal, "energy_model", causal)

        # An EDLM composite with an AR energy brings the AR model along
        if getattr(self.network.config, "energy_type", "none") in ("ar", "coar"):
            return self.network.energy_model
        return None

    def start_of_causal(self) -> int:
        """The AR model's own start token, or the tokenizer's one, which wrapped blocks begin with."""
        start = self.causal.config.bos_token_id
        if start is None and self.wraps:
            start = self.tokenizer.bos_token_id

        # Without one, nothing gives the first token a probability
        if start is None:
            raise ValueError("The AR model has no start token to sample from: set config.bos_token_id.")
        return start

    @functools.cached_property
    def causal_digest(self) -> str:
        """Hash of the weights of the AR model, which reads all of them."""
        return digest_of_weights(self.causal)

    @functools.cached_property
    def energies(self) -> dict[str, tuple[nn.Module, str]]:
        """The NCE energy of the model ("nce") and the AR model as an energy ("ar"), as far as they are there.

        Each is a composite with the denoiser, and a hash of the weights of its energy.
        """
        energies = {}
        if getattr(self.network.config, "energy_type", "none") == "nce":
            composite = self.network.to(self.device)
            energies["nce"] = (composite, digest_of_weights(composite.energy_model))
        if self.causal is not None:
            energies["ar"] = (self.with_causal("ar"), self.causal_digest)
        return energies

    def with_causal(self, energy_type: str) -> EDLMForMaskedDiffusion:
        """The denoiser with the AR model as its energy, "ar" or "coar"."""
        composite = EDLMForMaskedDiffusion.from_components(
            self.denoiser,
            self.causal,
            energy_type=energy_type,
            tokenizer=self.tokenizer,
        )
        return composite.to(self.device)

    def weighed_by(self, energy: str | None) -> tuple[nn.Module, str | None]:
        """The sampler with an energy and a hash of its weights, that of the denoiser alone for None.

        Raises:
            ValueError: the study has no such energy.
        """
        if energy is None:
            return self.mdlm, None

        # `energies` loads networks, so that a study without an energy must not ask for it
        if energy not in self.energies:
            there = ", ".join(self.energies) or "none"
            raise ValueError(f"There is no energy {energy!r} of {self.settings.model}, of those there are: {there}.")
        return self.energies[energy]

    @functools.cached_property
    def texts(self) -> list[TextSet]:
        """The sets of texts, cut into blocks of L tokens in one form, in which the AR model samples too."""
        # "wrap" puts a start and an end token around every block, "crop" a start token at most
        style = "wrap" if self.wraps else "crop"
        options = {
            "config": self.mdlm.config,
            "length": self.length,
            "style": style,
            "text_column": self.settings.text_column,
        }
        return [load_blocks(source, self.tokenizer, **options) for source in self.settings.data]

    def without_prompt(self, rows: Sequence[list[int]]) -> list[list[int]]:
        """Rows of texts as samples are stored: the start token is not among them."""
        return [row[len(self.prompt) :] for row in rows]

    def generate(
        self,
        model: nn.Module,
        count: int,
        generator: torch.Generator,
        **options,
    ) -> EDLMGenerationOutput:
        """`count` samples (count, L) of a masked diffusion model, without the start token in front of them.

        Args:
            options: of `generate()`.
        """
        # (count, 1) or (count, 0). Without an end token every sample has L tokens, as the texts have
        prompt = torch.tensor(self.prompt, dtype=torch.long, device=self.device)
        output = model.generate(
            prompt.expand(count, -1),
            max_new_tokens=self.length - len(self.prompt),
            eos_token_id=None,
            generator=generator,
            return_dict_in_generate=True,
            **options,
        )
        output.sequences = output.sequences[:, len(self.prompt) :]
        return output

    def decode(self, rows: Sequence[Sequence[int]], keep_special: bool = False) -> list[str]:
        """The texts of rows of tokens, letter by letter: characters are counted in them."""
        options = {
            "skip_special_tokens": not keep_special,
            "clean_up_tokenization_spaces": False,
        }
        return self.tokenizer.batch_decode(rows, **options)

    def scored(self, rows: list[list[int]]) -> list[torch.Tensor]:
        """The tokens that count for the denoiser, so that all likelihoods are per the same tokens."""
        return read_texts(self.mdlm.config, rows).scored

    def known_words(self, texts: list[str]) -> Estimate | None:
        """The share of words that the vocabulary has, None without a vocabulary."""
        if not self.settings.vocabulary:
            return None
        return spelling_accuracy(texts, self.vocabulary)

    @functools.cached_property
    def vocabulary_digest(self) -> str | None:
        """Hash of the files of the vocabulary, or their name where they are on the Hub. None without one."""
        if not self.settings.vocabulary:
            return None
        _, source = named_source(self.settings.vocabulary)
        digest = digest_of_source(source)

        # Another column of the same files has other words
        column = self.settings.text_column
        return digest if column is None else f"{digest}, column {column}"

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words of the training split of a corpus."""
        settings = self.settings
        corpus = load_texts(settings.vocabulary, self.tokenizer, split="train", text_column=settings.text_column)
        return vocabulary_of(corpus["text"])


__all__ = ["Study"]
