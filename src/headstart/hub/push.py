"""Uploads to the Hub: a folder, or what a model, processor or tokenizer saves."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import DownloadError, NotFoundError, OfflineError
from headstart.hub.resolve import endpoint, explained, is_offline

UPLOAD_KEYS = ("token", "private", "revision", "commit_message")


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Uploads a folder as a model and returns the address of the commit.

    Args:
        folder: What `save_pretrained` wrote.
        repo_id: "owner/name" (or "name" for the token's owner); made if it does not exist.
        token: One that may write; the saved one or HF_TOKEN if None.
        private: For a new repository: hidden from others. None follows the owner's setting.
        revision: Branch; made if it does not exist.
        commit_message: One line.

    Raises:
        NotFoundError, AuthError, OfflineError, DownloadError: As `resolve_file`.
    """
    if not Path(folder).is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    if is_offline(False):
        raise OfflineError(f"{repo_id} cannot be uploaded: HF_HUB_OFFLINE forbids the network")
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    with explained(repo_id, "the upload", revision, None, False):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        try:
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                ignore_patterns=["**/.*", ".*", "**/*.tmp"],
            )
        except (
            RuntimeError
        ) as error:  # huggingface_hub's word for a large file that did not go through
            raise DownloadError(
                f"{endpoint()}: uploading to {repo_id} failed ({error.__cause__ or error}); try"
                " again"
            ) from error
    return str(done.commit_url)


def check_upload(hub: Mapping[str, Any], method: str = "save_pretrained") -> None:
    """Refuses keywords that uploading does not know.

    Raises:
        TypeError: There is one.
    """
    if unknown := sorted(set(hub) - set(UPLOAD_KEYS)):
        raise TypeError(
            f"{method}() got an unexpected keyword {unknown[0]!r}; expected some of"
            f" {', '.join(UPLOAD_KEYS)}"
        )


def upload_saved(
    folder: str | Path, wanted: bool, repo_id: str | None, hub: Mapping[str, Any]
) -> None:
    """Uploads what `save_pretrained(push_to_hub=True)` wrote, to `repo_id` or the folder's name."""
    if wanted:
        push_to_hub(folder, repo_id or Path(folder).name, **hub)


def push_saved(thing: Any, repo_id: str, hub: Mapping[str, Any], *arguments: Any) -> str:
    """Uploads what `thing.save_pretrained(folder, *arguments)` writes.

    `hub` holds `push_to_hub`'s options. Returns the address.

    Raises:
        TypeError: An option that is not one of them.
    """
    check_upload(hub, "push_to_hub")
    with tempfile.TemporaryDirectory() as folder:
        thing.save_pretrained(folder, *arguments)
        return push_to_hub(folder, repo_id, **hub)
