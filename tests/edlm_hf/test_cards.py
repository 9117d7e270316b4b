"""The model card: what it says, what it keeps, and which bases it names, in folders and on a Hub."""

import re
import shlex

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from published import tiny_denoiser
from pushed_models import AUTO, FACTS, build, command, push_model

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.card_signatures import UNKNOWN
from edlm_hf.cards import CardFacts, model_card, with_names
from edlm_hf.markdown import code_span


def test_card_says_what_was_measured_and_what_is_missing(tmp_path):
    model = build("nce")
    model.save_pretrained(tmp_path)
    bare = (tmp_path / "README.md").read_text()
    assert bare.count(UNKNOWN) == 4 and "`nce`" in bare and "| vocabulary | 29 |" in bare

    model.card_facts = FACTS
    model.save_pretrained(tmp_path)
    full = (tmp_path / "README.md").read_text()
    assert UNKNOWN not in full
    assert "```bash\nedlm train-energy recipes/text8/energy.yaml\n```" in full
    assert "| bits/char | 1.4322 | 0.0021 |" in full and "| steps | 1000 |  |" in full

    data = ModelCard(full).data
    assert data.license == "mit" and data.datasets == ["afmck/text8"]
    found = [(result.metric_type, result.metric_value, result.dataset_name) for result in data.eval_results]
    assert found == [("bits/char", "1.4322 ± 0.0021", FACTS.measured), ("steps", 1000, FACTS.measured)]

    named = ModelCard(with_names(full, "me/model")).data
    assert (named.model_name, named.eval_results) == ("me/model", data.eval_results)
    model.card_facts = None
    model.save_pretrained(tmp_path)
    # What is known is not lost to a save that knows less
    assert (tmp_path / "README.md").read_text() == full


HOSTILE = "x`\n```\n# Injected\n---\nlicense: mit\n| a | b |"


def test_names_in_a_card_write_nothing_else_into_it(tmp_path):
    """Names of data and revisions come from files, command lines and configurations of others."""
    model = EDLMForMaskedDiffusion.from_components(build("denoiser"), build("causal"))
    model.config.energy_name_or_path, model.config.energy_revision = "somebody/energy", HOSTILE
    model.card_facts = CardFacts(
        data=f"On {code_span(HOSTILE)}.",
        datasets=[HOSTILE],
        command=shlex.join(["edlm", "train-denoiser", "--dataset", HOSTILE]),
        results={HOSTILE: (1.0, None)},
        license=HOSTILE,
    )
    card = ModelCard(
        model_card(
            "EDLMForMaskedDiffusion",
            model.config,
            model.card_facts,
            tags=[HOSTILE],
        )
    )
    assert card.data.license == HOSTILE
    assert card.data.datasets == [HOSTILE]
    assert HOSTILE in card.data.tags

    outside = re.sub(r"^(````+|```)\w+\n.*?^\1$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert "\n# Injected" in card.text and "\n# Injected" not in outside and "\n---" not in outside
    assert len(re.findall("^# ", outside, re.MULTILINE)) == 1 and outside.count("\n|---") == 2

    cells = [line for line in outside.splitlines() if "Injected" in line and line.startswith("|")]
    assert len(cells) == 2 and all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in cells)


@pytest.mark.parametrize("start", [None, 27])
def test_card_generates_from_the_start_token_where_there_is_one(tmp_path, start):
    tiny_denoiser(vocab_size=29, mask_token_id=28, bos_token_id=start, model_length=12).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("model.generate(max_denoising_steps=128)") == (0 if start else 2)
    from_start = "model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=11,"
    assert card.count(from_start) == (2 if start else 0)


@pytest.mark.parametrize("written", ["by hand", "ours, edited"])
def test_card_of_the_user_is_kept_by_every_save(tmp_path, written):
    model = build("denoiser")
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    own = "My own words.\n" if written == "by hand" else path.read_text().replace(UNKNOWN, "A secret.", 1)
    path.write_text(own)
    model.card_facts = FACTS
    model.save_pretrained(tmp_path)
    assert path.read_text() == own


def test_card_edited_on_the_hub_is_kept_by_every_push(hub, client, folder):
    arguments = ["push", str(folder), "me/edited"]
    assert client(command, arguments=arguments)[0] == 0
    repository = hub["me/edited"]
    edited = repository.text("README.md").replace(UNKNOWN, "Books.", 1)
    repository.commit("main", repository.files() | {"README.md": edited.encode()}, "Edit")
    (folder / "notes.txt").write_text("new")
    assert client(command, arguments=arguments)[0] == 0

    client(
        push_model,
        source=str(folder),
        auto_class=AUTO["nce"],
        repo_id="me/edited",
        facts=vars(FACTS),
    )
    assert repository.text("README.md") == edited and "notes.txt" in repository.files()
    (folder / "README.md").write_text("# By hand\n")
    assert client(command, arguments=arguments)[0] == 0
    assert repository.text("README.md") == "# By hand\n"


def test_facts_reach_the_hub_and_are_not_lost_to_a_later_push(hub, client, folder):
    source = {"source": str(folder), "auto_class": AUTO["nce"], "repo_id": "me/facts"}
    client(push_model, **source)
    client(push_model, **source, facts=vars(FACTS))
    full = hub["me/facts"].text("README.md")
    assert "| bits/char | 1.4322 | 0.0021 |" in full
    client(push_model, **source)
    assert hub["me/facts"].text("README.md") == full


def push_whole(denoiser, causal, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar")
    model.push_to_hub(repo_id)
    edlm_hf.EDLMForMaskedDiffusion.from_pretrained(repo_id).push_to_hub(
        repo_id,
        commit_message="Again",
        tags=["again"],
    )
    edlm_hf.EDLMForMaskedDiffusion.from_pretrained(repo_id).push_to_hub(f"{repo_id}-2")


def test_base_models_are_the_parts_and_never_the_repository_itself(hub, client, tmp_path):
    for kind in ("denoiser", "causal"):
        build(kind).save_pretrained(tmp_path / kind)
        client(push_model, source=str(tmp_path / kind), auto_class=AUTO[kind], repo_id=f"me/of-{kind}")
    client(push_whole, denoiser="me/of-denoiser", causal="me/of-causal", repo_id="me/of-both")
    first, again = list(hub["me/of-both"].commits)[1:]
    assert ModelCard(hub["me/of-both"].text("README.md", first)).data.base_model == ["me/of-denoiser", "me/of-causal"]
    assert "me/of-both" not in (ModelCard(hub["me/of-both"].text("README.md", again)).data.base_model or [])
    assert ModelCard(hub["me/of-both-2"].text("README.md")).data.base_model == ["me/of-both"]


def save_and_push(source, target, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_pretrained(source)
    model.save_pretrained(target, push_to_hub=True, repo_id=repo_id, commit_message="Saved")


def test_saving_with_push_to_hub_pushes_our_card_and_keeps_the_one_here(hub, client, folder, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "README.md").write_text("# Mine\n")
    client(save_and_push, source=str(folder), target=str(tmp_path / "target"), repo_id="me/saved")
    assert hub["me/saved"].text("README.md") == "# Mine\n" == (tmp_path / "target" / "README.md").read_text()
    assert hub["me/saved"].messages[-1] == "Saved"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"results": {"a": (None, None)}}, r"results of the card has 'a': \(None, None\), but every name has a pair"),
        ({"results": {"a": 1.0}}, "results of the card has 'a': 1.0"),
        ({"results": {"a": (torch.tensor(1.0), None)}}, "Call float"),
        ({"results": {"a": (1.0, "x")}}, "results of the card has 'a'"),
        ({"results": {1: (1.0, None)}}, "results of the card has 1"),
        ({"results": [("a", 1.0)]}, "results of the card is"),
        ({"license": ["mit"]}, r"license of the card is \['mit'\], but it must be a text"),
        ({"data": {"a": 1}}, "data of the card is"),
        ({"datasets": "abc"}, "datasets of the card is 'abc', but it must be a list of names"),
        ({"language": 1}, "language of the card is 1"),
    ],
)
def test_facts_of_another_kind_are_refused_where_they_are_given(facts, message):
    with pytest.raises(ValueError, match=message):
        CardFacts(**facts)


def test_numbers_of_numpy_and_several_languages_are_facts():
    facts = CardFacts(
        results={"loss": (np.float32(1.5), np.float64(0.25)), "perplexity": (3, None)}, language=["en", "de"]
    )
    card = model_card("MDLMForMaskedLM", None, facts)
    assert "| loss | 1.5 | 0.25 |" in card and ModelCard(card).data.language == ["en", "de"]
