"""A name → files on disk: a local folder or file, a model on the Hub, or a file at its authors'
address.

The Hub is reached through huggingface_hub, with its cache and its environment (HF_HOME,
HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). Files that the Hub serves over plain HTTP, and the authors'
files, go through `fetch`: resumed after a break, also in the next run, and taken for whole only
when size and hash are right. Nothing is imported or contacted before it is needed.
"""

import contextlib
import difflib
import errno
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from headstart.errors import (
    AuthError,
    DownloadError,
    HubError,
    InputError,
    NotFoundError,
    OfflineError,
)
from headstart.package_data import EMBEDDED, embedded_folder

log = logging.getLogger(__name__)

# Weight files of a model by kind, each as one file or as the index of shards.
FORMATS = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "bin": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    "h5": ("tf_model.h5", "tf_model.h5.index.json"),
    "msgpack": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
}
# The Hub's own account that opens pull requests with safetensors; nobody else's pull requests are
# used.
CONVERSION_BOT = "SFconvertbot"
# What the Hub answers, with 401, to whoever asks for an unknown model without a valid token.
_UNKNOWN = "Invalid username or password."


def resolve_file(
    name: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    optional: bool = False,
) -> Path | None:
    """One file of a model, downloaded if need be.

    Args:
        name: A folder, a file (then `filename` is looked for beside it), or a Hub id.
        filename: The file's name in the folder or repository.
        revision: Branch, tag or commit on the Hub.
        cache_dir: The Hub cache; HF_HOME decides if None.
        token: For private models: the token, True for the saved one, False for none, None for
            whichever there is.
        local_files_only: Do not use the network.
        optional: Return None where the model has no such file.

    Raises:
        NotFoundError: No such folder, model, revision or file.
        AuthError: The server wants a (different) token.
        OfflineError: Not cached, and the network may not or cannot be used.
        DownloadError: The transfer failed.
    """
    local = _local_folder(name)
    if local is None:
        return _from_hub(
            str(name), filename, revision, cache_dir, token, local_files_only, optional
        )
    path = local / filename
    if path.is_file():
        return path
    if optional:
        return None
    raise NotFoundError(f"{local} has no {filename}; it is not a model folder, or incomplete")


def resolve_weights(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    formats: Sequence[str] = ("safetensors", "bin"),
) -> Path:
    """The weights of a model: a file, or the index of shards that all lie beside it.
    `headstart.checkpoint.read_checkpoint` reads either.

    Where `main` of a Hub model has no safetensors, those that the Hub's own bot converted
    (`refs/pr/…`) are used, provided they were made from the weights that `main` has now.

    Args:
        name: A folder, a file of any format, or a Hub id.
        revision: Branch, tag or commit on the Hub.
        cache_dir: The Hub cache.
        token: For private models.
        local_files_only: Do not use the network.
        formats: Kinds of files to look for, best first: keys of `FORMATS`.

    Raises:
        NotFoundError: No such model, or none of the wanted files in it.
        AuthError, OfflineError, DownloadError: As `resolve_file`.
    """
    unknown = [each for each in formats if each not in FORMATS]
    if unknown or not formats:
        raise InputError(f"formats is {tuple(formats)}; it can hold {', '.join(FORMATS)}")
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    wanted = [each for kind in formats for each in FORMATS[kind]]
    local = _local_folder(name)
    if local is not None:
        from headstart.checkpoint import find_weights

        return find_weights(local, wanted)
    hub: dict[str, Any] = {
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
    }
    for kind in formats:
        path = _weights_of_kind(str(name), kind, revision, hub)
        if (
            path is None
            and kind == "safetensors"
            and revision in (None, "main")
            and not is_offline(local_files_only)
        ):
            path = _converted(str(name), hub)
        if path is not None:
            return path
    # Without a network a file that is not cached looks absent; asking for it in earnest tells the
    # two apart.
    try:
        path = resolve_file(name, wanted[0], revision=revision, **hub)
        assert path is not None  # only an optional file can be
        return path
    except NotFoundError as error:
        raise NotFoundError(
            f"{name} on {endpoint()} has no weights that can be read here; looked for"
            f" {', '.join(wanted)}"
        ) from error


def _weights_of_kind(
    name: str, kind: str, revision: str | None, hub: dict[str, Any]
) -> Path | None:
    """The one file of this kind, or the index once all its shards are here."""
    single, index = FORMATS[kind]
    path = resolve_file(name, single, revision=revision, optional=True, **hub)
    if path is not None:
        return path
    path = resolve_file(name, index, revision=revision, optional=True, **hub)
    if path is not None:
        from headstart.checkpoint import read_index

        for shard in sorted(set(read_index(path).values())):
            resolve_file(name, shard, revision=_commit(path) or revision, **hub)
    return path


def _converted(name: str, hub: dict[str, Any]) -> Path | None:
    """The safetensors of the Hub's conversion bot, if they were made from the `.bin` that `main`
    has now.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=hub["token"])
    expected: tuple[type[Exception], ...] = (*transport_errors(), ValueError, KeyError)
    try:
        requests = list(
            api.get_repo_discussions(
                name,
                author=CONVERSION_BOT,
                discussion_type="pull_request",
                discussion_status="open",
            )
        )
    except expected as error:
        log.debug("no pull requests of %s: %s", name, error)
        return None
    for request in sorted(
        (each for each in requests if each.author == CONVERSION_BOT), key=lambda each: -each.num
    ):
        revision = f"refs/pr/{request.num}"
        if _same_source(api, name, revision):
            with contextlib.suppress(NotFoundError):
                path = _weights_of_kind(name, "safetensors", revision, hub)
                if path is not None:
                    log.info(
                        "%s has no safetensors; using the Hub's conversion in %s", name, revision
                    )
                    return path
    return None


def _same_source(api: Any, name: str, revision: str) -> bool:
    """Whether the pull request's `.bin` is still that of `main`.

    A conversion of older weights would give other answers.
    """
    import huggingface_hub

    def etag(at: str, filename: str) -> str | None:
        url = huggingface_hub.hf_hub_url(name, filename, revision=at, endpoint=endpoint())
        try:
            return str(api.get_hf_file_metadata(url=url, token=api.token).etag)
        except transport_errors():
            return None

    return all(etag("main", filename) == etag(revision, filename) for filename in FORMATS["bin"])


def _from_hub(
    name: str,
    filename: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
    local_only: bool,
    optional: bool,
) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        LocalEntryNotFoundError,
    )

    where: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "token": token,
        "endpoint": endpoint(),
    }
    offline = is_offline(local_only)
    with explained(name, filename, revision, cache_dir, offline):
        try:
            if not offline and (path := _prepare(name, filename, where)) is not None:
                return path
            return Path(
                huggingface_hub.hf_hub_download(name, filename, local_files_only=offline, **where)
            )
        except (LocalEntryNotFoundError, OfflineError) as error:
            # Only without a network: a server that answers with an error has not said that the file
            # is absent.
            answered = hasattr(error.__cause__, "response") or isinstance(
                error.__cause__, FileMetadataError
            )
            if (
                optional
                and (isinstance(error, OfflineError) or not answered)
                and _known_absent(name, filename, revision, cache_dir)
            ):
                return None
            raise
        except EntryNotFoundError:
            if optional:
                return None
            raise


def _known_absent(
    name: str, filename: str, revision: str | None, cache_dir: str | Path | None
) -> bool:
    """Without a network: whether the cache has this model but not this file of it."""
    import huggingface_hub

    known = (filename, "config.json", *(each for names in FORMATS.values() for each in names))
    return any(
        huggingface_hub.try_to_load_from_cache(name, each, cache_dir=cache_dir, revision=revision)
        is not None
        for each in known
    )


def _prepare(name: str, filename: str, where: dict[str, Any]) -> Path | None:
    """Looks at a file before huggingface_hub does, and refuses answers that lead outside the cache.

    Puts its bytes where huggingface_hub looks for them before it downloads, so that a broken
    download goes on where it broke: huggingface_hub 2 begins again after every interrupted run.
    Files that go through its own protocol (xet) are left to it.

    Returns:
        The file, where the cache has it at the commit that the server names.

    Raises:
        DownloadError: The server names an impossible commit, ETag or address.
        OfflineError: Nobody answers. huggingface_hub would try for half a minute.
    """
    import huggingface_hub
    from huggingface_hub import constants

    from headstart.hub.download import Download, fetch

    url = huggingface_hub.hf_hub_url(
        name, filename, revision=where["revision"], endpoint=where["endpoint"]
    )
    found = huggingface_hub.try_to_load_from_cache(
        name, filename, cache_dir=where["cache_dir"], revision=where["revision"]
    )
    try:
        facts = _facts(name, filename, url, where, patient=not isinstance(found, str))
    except OfflineError:
        if isinstance(found, str):
            return Path(found)
        raise
    if facts is None:
        return None
    for what, value in (("ETag", facts.etag), ("commit", facts.commit_hash)):
        # Both become names of files in the cache.
        if value is not None and not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}", value):
            raise DownloadError(
                f"{where['endpoint']} gives {filename} of {name} the {what} {value!r:.80}, which"
                " cannot be one; nothing was written"
            )
    folder = Path(where["cache_dir"] or constants.HF_HUB_CACHE).expanduser()
    folder /= f"models--{name.replace('/', '--')}"
    cached = folder / "snapshots" / str(facts.commit_hash) / filename
    if facts.commit_hash and cached.is_file():
        return cached
    if not facts.etag or not facts.size or _through_xet(facts):
        return None
    blob = folder / "blobs" / facts.etag
    if blob.exists():
        return None
    secret = (
        _secret(where["token"]) if urlsplit(facts.location).netloc == urlsplit(url).netloc else None
    )  # other hosts never see it
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    sha256 = facts.etag if len(facts.etag) == 64 else None
    try:
        fetch(Download(facts.location, facts.size, sha256), blob, headers, filename)
    except InputError as error:
        raise DownloadError(f"{where['endpoint']} sends {filename} of {name} on: {error}") from None
    return None


def _through_xet(facts: Any) -> bool:
    """Whether huggingface_hub will fetch a file with its xet client. Every large file of the Hub
    can be had that way, and by plain HTTP too.
    """
    if getattr(facts, "xet_file_data", None) is None:  # huggingface_hub < 0.30 has none
        return False
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _facts(name: str, filename: str, url: str, where: dict[str, Any], patient: bool = True) -> Any:
    """Size, tag and place of a file.

    None where the server is busy or refuses, which huggingface_hub's own requests deal with.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for last in (False, True) if patient else (True,):
        try:
            return huggingface_hub.get_hf_file_metadata(url, token=where["token"])
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except transport_errors() as error:
            if getattr(error, "response", None) is not None:
                return None
            if last:
                reason = f"{where['endpoint']} cannot be reached ({error})"
                raise OfflineError(
                    f"{filename} of {name} is not in the cache, and {reason}"
                ) from error
            time.sleep(1)
    return None


def _secret(token: str | bool | None) -> str | None:
    """The token that huggingface_hub would send."""
    import huggingface_hub
    from huggingface_hub import constants

    if isinstance(token, str):
        return token
    unwanted = token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    return None if token is False or unwanted else huggingface_hub.get_token()


def _local_folder(name: str | Path) -> Path | None:
    """The folder that a name means; None where it can only be a Hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    text = str(name)
    if text in EMBEDDED:
        return embedded_folder(text)
    if (
        isinstance(name, Path)
        or not text
        or text[0] in "./~\\"
        or text.count("/") > 1
        or "\\" in text
        or path.is_absolute()
    ):
        raise NotFoundError(f"there is no file or folder {text!r}")
    folder = path.parent if "/" in text and path.parent.is_dir() else None
    found = [each.name for each in folder.iterdir()] if folder else []
    # another number, as in bit-50 and bit-101, is another model
    names = [name for name in found if _digits(name) == _digits(path.name)]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    if near:
        raise NotFoundError(
            f"there is no file or folder {text!r}; did you mean {str(path.with_name(near[0]))!r}?"
        )
    return None


def _digits(name: str) -> str:
    return "".join(each for each in name if each.isdigit())


def _commit(path: Path) -> str | None:
    """The commit of a file in the Hub cache (…/snapshots/<commit>/<file>), so that all files of a
    model come from one.
    """
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def endpoint() -> str:
    """The server of the Hub."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)


def is_offline(local_files_only: bool) -> bool:
    """Whether the network may not be used."""
    from huggingface_hub import constants

    from headstart.hub.download import is_true

    return local_files_only or is_true("HF_HUB_OFFLINE") or bool(constants.HF_HUB_OFFLINE)


def transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises, of whichever HTTP library it is built on (requests, httpx,
    httpx2).
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    library = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (*library, EntryNotFoundError, OSError)


@contextlib.contextmanager
def explained(
    name: str, filename: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> Iterator[None]:
    """Turns huggingface_hub's errors into ours."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HubError:
        raise
    except HFValidationError as error:
        raise NotFoundError(
            f"{name!r} is not a folder here, and cannot be the id of a model on the Hub"
            " ('owner/name')"
        ) from error
    except transport_errors() as error:
        _raise_ours(error, name, filename, revision, cache_dir, offline)
    except RuntimeError as error:  # of the xet client
        raise DownloadError(
            f"{endpoint()}: {filename} of {name} failed ({error}); HF_HUB_DISABLE_XET=1 fetches it"
            " by plain HTTP"
        ) from error


def _of_status(
    status: int, name: str, filename: str, revision: str | None
) -> AuthError | NotFoundError | DownloadError:
    """The error of an answer that is not the file."""
    host = endpoint()
    if status in (401, 403):
        return AuthError(
            f"{host} refuses {filename} of {name} ({status}): give a token that may read it (token="
            " or HF_TOKEN)"
        )
    if status == 404:
        at = f" at revision {revision!r}" if revision else ""
        return NotFoundError(f"{name} on {host} has no {filename}{at}")
    return DownloadError(f"{host} answered {status} for {filename} of {name}; try again later")


def _raise_ours(
    error: Exception,
    name: str,
    filename: str,
    revision: str | None,
    cache_dir: str | Path | None,
    offline: bool,
) -> NoReturn:
    from huggingface_hub import errors as theirs

    cause = (
        error.__cause__
        if isinstance(error, theirs.LocalEntryNotFoundError) and error.__cause__ is not None
        else error
    )
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    host = endpoint()
    if isinstance(cause, theirs.RevisionNotFoundError):
        raise NotFoundError(f"{name} on {host} has no revision {revision!r}") from error
    if isinstance(cause, theirs.GatedRepoError):
        raise AuthError(
            f"{name} on {host} is gated: ask for access on its page, then give token= or set"
            " HF_TOKEN"
        ) from error
    if isinstance(cause, theirs.DisabledRepoError):
        raise AuthError(f"{name} on {host} is disabled: nobody can load it") from error
    # An unknown model and one that the token may not read are answered alike; huggingface_hub
    # knows that of https addresses only.
    message = getattr(response, "headers", {}).get("X-Error-Message")
    if isinstance(cause, theirs.RepositoryNotFoundError) or (status == 401 and message == _UNKNOWN):
        raise NotFoundError(
            f"there is no model {name!r} here or on {host}; if it is private, give a token that may"
            " read it (token= or HF_TOKEN)"
        ) from error
    if status is not None:
        raise _of_status(status, name, filename, revision) from error
    if offline:
        why = "HF_HUB_OFFLINE or local_files_only forbids the network"
        raise OfflineError(
            f"{filename} of {name} is not in the cache{f' {cache_dir}' if cache_dir else ''}, and"
            f" {why}"
        ) from error
    if isinstance(cause, theirs.FileMetadataError):
        raise DownloadError(
            f"{host} does not speak the Hub's protocol for {filename} of {name}: {cause}"
        ) from error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DownloadError(
            f"no room for {filename} of {name}: {cause}; make room or set HF_HOME to another disk"
        ) from error
    if isinstance(error, theirs.LocalEntryNotFoundError):
        raise OfflineError(
            f"{filename} of {name} is not in the cache, and {host} cannot be reached ({cause});"
            " no folder here has that name either"
        ) from error
    raise DownloadError(
        f"{host}: {filename} of {name} failed ({cause}); nothing half-written was kept; try again"
    ) from error
