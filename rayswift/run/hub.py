"""`train.push_to_hub`: upload the model files of checkpoints to a repository on the hub."""

import json
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rayswift.config.train import TrainConfig
from rayswift.log import UserError, first_line, logger

_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
    "head_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def model_files(folder: Path) -> list[str]:
    """Names of the model files of a checkpoint, relative to it."""
    found = {path.name for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    if "modules.json" in found:  # sentence-transformers saves some modules in subfolders
        for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
            parts = (folder / module["path"]).rglob("*") if module["path"] else ()
            found |= {str(path.relative_to(folder)) for path in parts if path.is_file()}
    return sorted(found)


class HubPushes:
    """Pushes checkpoints during training, one at a time; without `train.push_to_hub` it does nothing.

    A failed push is logged; only `finish` raises. name: of the repository, if `hub_model_id` is not set; limit_s: time
    of a push.
    """

    def __init__(self, train: TrainConfig, name: str, limit_s: float, api: HfApi | None = None):
        settings = train.trl_extra
        self._enabled = bool(settings.get("push_to_hub"))
        self._strategy = str(settings.get("hub_strategy") or "every_save")
        self._repository = str(settings.get("hub_model_id") or name)
        self._private, self._revision = settings.get("hub_private_repo"), settings.get("hub_revision")
        self._always, self._limit_s = bool(settings.get("hub_always_push")), limit_s
        self._api = api or HfApi(token=settings.get("hub_token"))
        self._under_way: Future[Any] | None = None
        self._pushed: Path | None = None
        self._failure = ""

    def open(self) -> None:
        """Create the repository if it does not exist; raise UserError if the hub fails."""
        if not self._enabled:
            return
        try:
            made = self._api.create_repo(self._repository, private=self._private, exist_ok=True)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(f"train.push_to_hub: {self._repository}: {_reason(error)}", exit_code=1) from error
        self._repository = made.repo_id

    def start(self, folder: Path) -> None:
        """Push a checkpoint; skip it if another push is in progress (unless `hub_always_push`)."""
        if not self._enabled or self._strategy == "end":
            return
        if self._under_way and not self._under_way.done() and not self._always:
            return
        if self._finish():
            self._push(folder)

    def finish(self, folder: Path) -> None:
        """Push the last checkpoint, if that is not done; raise UserError if it fails."""
        if not self._enabled:
            return
        ended = self._finish()
        if ended and self._pushed != folder:
            self._push(folder)
            self._finish()
        if self._pushed != folder:
            raise UserError(
                f"train.push_to_hub: {folder.name} could not be pushed to {self._repository}: {self._failure}; the "
                f"model is complete in {folder}",
                exit_code=1,
            )
        logger.info("pushed %s to %s", folder.name, self._repository)

    def _push(self, folder: Path) -> None:
        uploads: list[tuple[str | None, list[str] | None]] = [(None, model_files(folder))]
        if self._strategy in ("checkpoint", "all_checkpoints"):
            uploads.append(("last-checkpoint" if self._strategy == "checkpoint" else folder.name, None))

        done: Future[Path] = Future()

        def push() -> None:
            try:
                for place, names in uploads:
                    self._api.upload_folder(
                        repo_id=self._repository,
                        folder_path=folder,
                        path_in_repo=place,
                        allow_patterns=names,
                        commit_message=f"Training in progress, {folder.name}",
                        revision=self._revision,
                    )
                done.set_result(folder)
            except Exception as error:  # for whoever waits
                done.set_exception(error)

        # No thread of a pool: Python would wait for its end without limit.
        threading.Thread(target=push, name="push to hub", daemon=True).start()
        self._under_way = done

    def _finish(self) -> bool:
        """Wait for the push in progress; return whether it came to an end."""
        if self._under_way is None:
            return True
        try:
            self._pushed = self._under_way.result(self._limit_s)
        except FutureTimeoutError:
            self._failure = f"not done within cluster.storage_timeout_s = {self._limit_s:g}"
            logger.info("train.push_to_hub: a push to %s is %s", self._repository, self._failure)
            return False
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            self._failure = _reason(error)
            logger.info("train.push_to_hub: a push to %s failed: %s", self._repository, self._failure)
        self._under_way = None
        return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
