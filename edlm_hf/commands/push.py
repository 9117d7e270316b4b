"""`edlm push`: a model or adapter with its card to the Hugging Face Hub."""

from dataclasses import dataclass

from edlm_hf.checkpoints import locate
from edlm_hf.files import to_json
from edlm_hf.settings import option
from edlm_hf.terminal import tell, write


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What is uploaded, and where to."""

    folder: str = option(
        positional=True,
        help="A model or adapter as save_pretrained or training wrote it, or a checkpoint that ships (edlm-books).",
    )
    repository: str = option(positional=True, help="user/name on the Hub; it is made if it does not exist.")
    private: bool = option(False, help="Only you see it; refused for a public one.")
    revision: str | None = option(None, shown="the main branch", help="Branch, made if needed.")
    commit_message: str | None = option(None, old=("message",), help="Of the commit.")


def push(options: PushOptions, as_json: bool) -> None:
    """Upload a model or adapter with its model card to the Hugging Face Hub, in one commit.

    The folder is only read: after an interruption, repeat the command. A card that somebody wrote or edited, there or
    on the Hub, is kept. What is no part of a model repository is not uploaded, and named: checkpoints, the optimiser's
    state, logs, hidden files, links that lead out of the folder. The account is that of `hf auth login` or HF_TOKEN.
    """
    from huggingface_hub.errors import HTTPError

    from edlm_hf.hub import push as push_to_hub

    # None leaves it to the account: without --private nothing was said about a new repository
    try:
        commit = push_to_hub(
            locate(options.folder),
            options.repository,
            private=options.private or None,
            revision=options.revision,
            commit_message=options.commit_message,
        )
    except HTTPError:
        tell(f"{options.folder} is as it was: repeat the command to push again.")
        raise

    url = str(commit.repo_url)
    result = {
        "repository": commit.repo_url.repo_id,
        "revision": options.revision or "main",
        "commit": commit.oid,
        "url": url,
    }
    write(to_json(result) if as_json else f"{url}, commit {commit.oid}")
