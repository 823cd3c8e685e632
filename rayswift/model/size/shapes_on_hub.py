"""`config.json` and the headers of the weights of a hub model, without its weights."""

from collections.abc import Callable
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)

from rayswift.log import first_line, logger

# The hub's client has its own limits of about ten seconds a request.
_UNREACHABLE = (httpx.HTTPError, HfHubHTTPError, ConnectionError)


def folder_and_headers(name: str, revision: str | None) -> tuple[Path, Callable[[], dict[str, tuple[int, ...]] | None]]:
    """A hub model's folder in the cache, with its `config.json`; and a function that fetches the shapes of its weights.

    The function returns None for a model without safetensors files. Both raise OSError if the hub does not have the
    model or does not answer.
    """
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            if not constants.HF_HUB_OFFLINE:
                logger.info("asking the hub for the size of %s", name)
            cached = hf_hub_download(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise OSError(f"{name} is neither a folder here nor a hub id") from error
    except (*_UNREACHABLE, LocalEntryNotFoundError) as error:
        raise OSError(_why(name, error)) from error

    def headers() -> dict[str, tuple[int, ...]] | None:
        try:
            files = HfApi().get_safetensors_metadata(name, revision=revision).files_metadata.values()
        except NotASafetensorsRepoError:
            return None
        except (*_UNREACHABLE, SafetensorsParsingError) as error:
            raise OSError(_why(name, error)) from error
        return {tensor: tuple(info.shape) for file in files for tensor, info in file.tensors.items()}

    return Path(cached).parent, headers


def _why(name: str, error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not a folder here, the hub's cache does not have it, and HF_HUB_OFFLINE is set"
    return f"the hub does not give {name}: {first_line(error)}"
