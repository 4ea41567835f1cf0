"""Published models on the Hugging Face hub, or in a folder that stands for it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from covpool.publish.export import FORMATS, REPORT
from covpool.train.metadata import without_local_paths
from covpool.train.published import CARD, CONFIG, WEIGHTS, appearing, read_published
from covpool.train.run_directory import refuse_existing

FILES = (WEIGHTS, CONFIG, CARD, REPORT, *(row.file for row in FORMATS.values() if row))
"""What is uploaded and downloaded of a directory; anything else in it stays where it is."""


def local_folder(target: str) -> Path | None:
    """The folder that a target names, as a path (./…, /…, ~/…) or by file://; None for a hub's."""
    parts = urlsplit(target)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if re.match(r"(~|\.{0,2}/)", target) or target in (".", ".."):
        return Path(os.path.expanduser(target))
    return None


def push(path: Path, target: str, *, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a published model, or copy it to a folder.

    Args:
        path: the published model.
        target: OWNER/NAME on the hub, which is made where it is missing, or a folder.
        private: whether a repository that is made is private.
        api: the hub's client.

    Returns:
        Where it is now.

    Raises:
        ValueError: not a published model, one with links or with paths of this machine in it, a
            folder that is taken, or a hub that refuses; the message says what to do.
    """
    _, metadata = read_published(path)
    if without_local_paths(metadata) != metadata:
        raise ValueError(
            f"{path / CONFIG} names files of this machine (data.root, model.init_from or others), "
            "as earlier versions exported it; export the model anew"
        )
    present = _present(path)
    folder = local_folder(target)
    if folder is not None:
        if private:
            raise ValueError(f"--private: {target} is a folder, to which it does not apply")
        refuse_existing(folder)
        with appearing(folder) as partial:
            for name in present:
                shutil.copyfile(path / name, partial / name)
        return str(folder)
    api = api or HfApi(library_name="covpool")
    with _plain_words(target, "write"):
        repository = api.create_repo(target, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=path,
            repo_type="model",
            commit_message="Model published by covpool",
            allow_patterns=present,
        )
    return str(repository)


def pull(
    source: str, output: Path, *, revision: str | None = None, api: HfApi | None = None
) -> Path:
    """Get a published model from the hub, or from a folder.

    Args:
        source: OWNER/NAME on the hub, or a folder.
        output: the new directory.
        revision: a branch, tag or commit of the hub's repository.
        api: the hub's client.

    Returns:
        `output`.

    Raises:
        ValueError: nothing there, no published model, one with links in it, an output that is
            taken, or a hub that refuses; the message says what to do.
    """
    refuse_existing(output)
    folder = local_folder(source)
    with appearing(output) as partial:
        if folder is not None:
            if revision is not None:
                raise ValueError(f"--revision {revision}: {source} is a folder and has none")
            if not folder.is_dir():
                raise ValueError(f"no folder {folder} to get a model from")
            for name in _present(folder):
                shutil.copyfile(folder / name, partial / name)
        else:
            api = api or HfApi(library_name="covpool")
            with _plain_words(source, "read"):
                api.snapshot_download(
                    source,
                    repo_type="model",
                    revision=revision,
                    local_dir=partial,
                    allow_patterns=list(FILES),
                )
            shutil.rmtree(partial / ".cache", ignore_errors=True)  # its notes on the download
            _present(partial)
        try:
            read_published(partial)
        except ValueError as error:
            message = str(error).replace(str(partial), source)
            raise ValueError(f"nothing was kept of {source}: {message}") from error
    return output


def _present(folder: Path) -> list[str]:
    """Those of `FILES` that are there.

    Raises:
        ValueError: one is a link, which may lead to a file that was never meant to be given away.
    """
    present = [name for name in FILES if (folder / name).is_file()]
    for name in present:
        if (folder / name).is_symlink():
            raise ValueError(f"{folder / name} is a link; put the file itself in its place")
    return present


@contextmanager
def _plain_words(repository: str, right: str) -> Iterator[None]:
    """Within it, what the hub's client raises becomes a ValueError that says what to do."""
    try:
        yield
    except Exception as error:
        explanation = _explain(error, repr(repository), right)
        if explanation is None:
            raise
        raise ValueError(explanation) from error


def _explain(error: Exception, repository: str, right: str) -> str | None:
    """What happened and what to do, or None for what is no failure of the hub."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # an answer, which the client takes for silence
    match error:
        case HFValidationError():
            return (
                f"{repository} is no name of a repository ({error}); write OWNER/NAME, or a folder "
                "as ./FOLDER"
            )
        case GatedRepoError():
            return f"{repository} is gated: ask for access on its page, then hf auth login"
        case RepositoryNotFoundError():
            return (
                f"the hub has no repository {repository}, or it is private: check the name, and "
                "log in by: hf auth login"
            )
        case RevisionNotFoundError():
            return f"{repository} has no such revision; its page on the hub lists them"
        case LocalTokenNotFoundError():
            return (
                f"to {right} {repository} the hub wants a token, and there is none here: hf auth "
                "login, or set HF_TOKEN"
            )
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | ConnectionError():
            return _unreachable(repository)
        case HfHubHTTPError():
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                return (
                    f"the hub does not let you {right} {repository} (status {status}): the token "
                    f"here is missing, expired or without the right to {right}; hf auth login "
                    "with another one"
                )
            return f"the hub refused {repository} (status {status}): {error}"
    # Of the library that the client is built on: requests, httpx or httpx2 by its version.
    foreign = type(error).__module__.startswith(("httpx", "requests"))
    return _unreachable(repository) if foreign else None


def _unreachable(repository: str) -> str:
    return (
        f"the hub cannot be reached for {repository}: check the network, and that HF_HUB_OFFLINE "
        "is not set; a folder (./FOLDER) needs none"
    )
