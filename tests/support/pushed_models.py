"""Tiny models of every kind, and what is done with them in the process that knows the local Hub."""

from published import randomised, tiny_causal, tiny_config, tiny_denoiser

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMModel
from edlm_hf.cards import CardFacts
from edlm_hf.tokenization import text8_tokenizer

TOKENIZER = text8_tokenizer(12)
VOCABULARY = {"vocab_size": len(TOKENIZER), "bos_token_id": TOKENIZER.bos_token_id}
FACTS = CardFacts(
    data="text8, 90M characters",
    datasets=["afmck/text8"],
    command="edlm train-energy recipes/text8/energy.yaml",
    results={"bits/char": (1.4321987, 0.00213), "steps": (1000, None)},
    measured="text8, test split",
    license="mit",
)


def build(kind):
    if kind == "denoiser":
        return tiny_denoiser(**VOCABULARY)
    if kind == "drafter":
        return tiny_denoiser(**VOCABULARY, draft_width=2)
    if kind == "causal":
        return tiny_causal(**VOCABULARY)
    if kind == "trunk":
        return randomised(MDLMModel(tiny_config(**VOCABULARY)))
    if kind == "energy":
        return randomised(EDLMEnergyModel(tiny_config(**VOCABULARY)))
    energy = {"nce": "energy", "ar": "causal"}[kind]
    return EDLMForMaskedDiffusion.from_components(build("denoiser"), build(energy), energy_type=kind)


AUTO = {
    "nce": "AutoModelForMaskedLM",
    "denoiser": "AutoModelForMaskedLM",
    "drafter": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "trunk": "AutoModel",
    "energy": "EDLMEnergyModel",
}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push_model(source, auto_class, repo_id, facts=None, model_tags=(), **options):
    import transformers

    import edlm_hf
    from edlm_hf.cards import CardFacts

    model = getattr(transformers, auto_class, None) or getattr(edlm_hf, auto_class)
    model = model.from_pretrained(source)
    model.add_model_tags(list(model_tags))
    model.card_facts = facts and CardFacts(**facts)
    return model.push_to_hub(repo_id, **options).oid


def load(repo_id, auto_class="AutoModelForMaskedLM", **options):
    import transformers
    from hub_client import fingerprint

    import edlm_hf

    model = getattr(transformers, auto_class, None) or getattr(edlm_hf, auto_class)
    return fingerprint(model.from_pretrained(repo_id, **options))


def command(arguments):
    """`edlm ...`: exit code and what was printed."""
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr
