"""The Hugging Face Hub: OWNER/NAME or hf://OWNER/NAME, with @REVISION or without."""

import re
import socket
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from triplets import InputError, one_line

PREFIX = "hf://"
WEIGHTS = "model.safetensors"
"""The file of weights in a repository, and in our folders."""

_NAME = re.compile(r"(?:hf://)?(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_FILES = (".safetensors", ".pth", ".pt", ".bin")


class Repository(NamedTuple):
    """A repository of the Hub at one revision."""

    name: str
    """OWNER/NAME."""
    revision: str | None
    """A branch, tag or commit; None: the latest of the main branch."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def weights_address(self) -> str:
        """Where a browser finds the weights."""
        return f"https://huggingface.co/{self.name}/resolve/{self.revision or 'main'}/{WEIGHTS}"


def parse_repository(text: str) -> Repository | None:
    """The repository that a command line names, or None where it names something else.

    OWNER/NAME is also how a path looks: what has the suffix of a file, or a folder here as its
    OWNER, is one.

    Raises:
        InputError: hf:// before what is not OWNER/NAME.
    """
    match = _NAME.fullmatch(text)
    if text.startswith(PREFIX):
        if match is None:
            raise InputError(
                f'"{text}" is not a repository of the Hub; expected {PREFIX}OWNER/NAME or '
                f"{PREFIX}OWNER/NAME@REVISION."
            )
    elif match is None or Path(text).suffix in _FILES or Path(text).parent.exists():
        return None
    return Repository(match[1], match[2])


def download_weights(repository: Repository) -> Path:
    """The repository's model.safetensors, which is downloaded once.

    Raises:
        InputError: no such file, no network, or huggingface_hub is missing.
    """
    client = _client()
    try:
        return Path(
            client.hf_hub_download(
                repository.name,
                WEIGHTS,
                revision=repository.revision,
                local_files_only=_is_offline(client),
            )
        )
    except Exception as error:  # the client has dozens of its own
        raise _no_download(repository, error) from error


def download_student(repository: Repository) -> Path:
    """A folder with the repository's config.json and model.safetensors, downloaded once.

    Raises:
        InputError: no network, no such repository, or huggingface_hub is missing.
    """
    client = _client()
    try:
        # Never anything but these: a repository may hold pickles.
        files = [WEIGHTS, "config.json"]
        return Path(
            client.snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=files,
                local_files_only=_is_offline(client),
            )
        )
    except Exception as error:  # the client has dozens of its own
        raise _no_download(repository, error) from error


def push_folder(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload a folder to the repository OWNER/NAME, made when it does not exist; returns its
    address. Credentials are those of `hf auth login`.

    Raises:
        InputError: no network, no permission, or huggingface_hub is missing.
    """
    client, name = _client(), name.removeprefix(PREFIX)
    try:
        api = client.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # the client has dozens of its own
        raise InputError(f"cannot push to {name}: {one_line(error)}.") from error


def _client() -> ModuleType:
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise InputError(
            'the Hugging Face Hub needs huggingface_hub: pip install "style-distil[hub]".'
        ) from error
    # The client reports every attempt; our error says all that is needed.
    logging.set_verbosity_error()
    return huggingface_hub


def _is_offline(client: ModuleType) -> bool:
    """Whether nobody here knows the Hub's address; the client would try again for half a minute."""
    if urllib.request.getproxies():
        return False  # a proxy knows
    try:
        socket.getaddrinfo(urlsplit(client.constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _no_download(repository: Repository, error: Exception) -> InputError:
    from huggingface_hub.errors import LocalEntryNotFoundError

    local = isinstance(error, LocalEntryNotFoundError)
    reason = "the Hub cannot be reached, and it is not in the cache" if local else one_line(error)
    return InputError(
        f"cannot download {PREFIX}{repository}: {reason}; without a network, fetch "
        f"{repository.weights_address} elsewhere and give its path instead."
    )
