"""Bridge to lm-evaluation-harness, which sees the model class `edlm`; everything else is its own command line.

python -m edlm_hf.lm_eval --model_args pretrained=FOLDER,bound=nelbo,num_samples=32,batch_size=64 --tasks lambada_openai

`loglikelihood` is minus a bound with the prompt kept visible, so that scores are lower bounds and choices are ranked by
their bounds; `generate_until` runs `model.generate()`, greedily unless a task or `--gen_kwargs do_sample=True` says
otherwise. Without `--model` the class is `edlm`. The autoregressive baseline (`MDLMForCausalLM`) has exact likelihoods
and is served by the harness's own class: `python -m edlm_hf.lm_eval --model hf --model_args pretrained=FOLDER`.
"""

import sys

try:
    import lm_eval.models  # noqa: F401  (registers the harness's own classes)
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ImportError("edlm_hf.lm_eval needs lm-evaluation-harness: pip install 'edlm-hf[lm-eval]'") from error

import torch

from edlm_hf.evaluation.scorer import EDLMScorer
from edlm_hf.loading import load_tokenizer, load_with_tokenizer
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion


@register_model("edlm")
class EDLMHarness(LM):
    """A masked diffusion model, with or without an energy, for the harness.

    Args:
        pretrained: folder or name of a model of ours or of any masked language model.
        tokenizer: folder or name, `pretrained` unless given.
        energy, energy_type: a causal language model of the same vocabulary that weighs the proposals of `pretrained`,
            as `ar` (unless given) or `coar`.
        trust_remote_code: run the code in the repository of `pretrained`; trust_energy_code: in that of its energy,
            given here or named by its configuration.
        dtype: of the weights, as "bfloat16"; device: a GPU where there is one, unless given.
        batch_size: as in `EDLMScorer`; the command line brings its own as a string.
        options: of `EDLMScorer`: bound, num_samples, num_steps, num_candidates, inner_copies, seed, max_length,
            max_gen_toks, block_length, energy_window, ...

    Raises:
        ValueError: what `EDLMScorer` or `EDLMForMaskedDiffusion.from_components` refuses.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        energy: str | None = None,
        energy_type: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        trust_energy_code: bool = False,
        batch_size: int | str = 16,
        **options,
    ):
        super().__init__()
        loading = {
            "trust_remote_code": trust_remote_code,
            "trust_energy_code": trust_energy_code,
        }
        if dtype is not None:
            loading["dtype"] = dtype

        # 1. A model as it was saved, or a denoiser with an energy beside it
        if energy is None:
            model, self.tokenizer = load_with_tokenizer(pretrained, tokenizer, **loading)
        else:
            self.tokenizer = load_tokenizer(tokenizer or pretrained, trust_remote_code=trust_remote_code)
            model = EDLMForMaskedDiffusion.from_components(
                pretrained,
                energy=energy,
                energy_type=energy_type,
                tokenizer=self.tokenizer,
                **loading,
            )

        # 2. The device, which the harness reads from this attribute
        if not device:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)

        # 3. The scorer. A batch size that is not a number is refused there
        options = {"progress_bar": True, **options}
        options["batch_size"] = int(batch_size) if str(batch_size).isdecimal() else batch_size
        self.scorer = EDLMScorer(model.to(self._device), self.tokenizer, **options)
        self.max_length = self.scorer.max_length

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "EDLMHarness":
        """Make the model. --model_args goes before --batch_size (which is 1 unless given) and --device.

        The harness says the device cuda:0 where nobody gave one, so that it counts only where there is CUDA.
        """
        # Both in one dictionary: the harness would pass the batch size of its own flag a second time
        options = dict(additional_config or {})
        if options.get("device") == "cuda:0" and not torch.cuda.is_available():
            del options["device"]
        options.update(arg_dict)
        return super().create_from_arg_obj({}, options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "EDLMHarness":
        """Make the model of a text `name=value,name=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Lower bounds of log p(continuation | context) in nats, and whether greedy filling gives the same."""
        return self.scorer.loglikelihood([request.args for request in requests])

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Lower bounds of log p in nats of whole texts."""
        return self.scorer.rolling([request.args[0] for request in requests])

    def generate_until(self, requests) -> list[str]:
        """Continuations of contexts, cut at the stop strings of the task."""
        return self.scorer.generate_until([request.args for request in requests])

    def get_model_info(self) -> dict:
        """For the results: the likelihoods over all requests, with the standard error of their noise."""
        estimates = {kind: found.to_dict() for kind, found in self.scorer.estimates.items()}
        return {"estimates": estimates}

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps requests, as a part of the name of a file."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of that name, or the only one."""
        # The harness says True for the one that the tokenizer has
        name = chat_template if isinstance(chat_template, str) else None
        return self.tokenizer.get_chat_template(name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text. Without a generation prompt the last one is left open."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )


def main() -> None:
    """The harness's command line; `run` without a model is `run --model edlm`, where the harness would take `hf`."""
    # `--model=hf` -> `--model`
    names = {argument.split("=")[0] for argument in sys.argv[1:]}

    # Flags without a subcommand mean `run`. `ls` and `validate` take no model
    runs = len(sys.argv) > 2 and (sys.argv[1] == "run" or sys.argv[1].startswith("-"))
    if runs and not names & {"--model", "-M", "--config", "-C"}:
        sys.argv += ["--model", "edlm"]
    cli_evaluate()


if __name__ == "__main__":
    main()
