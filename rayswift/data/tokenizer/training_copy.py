"""The tokenizer of a run: a copy of the model's, with the run's chat template and new special tokens."""

import hashlib
import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, normalizers

from rayswift.config.model import ModelConfig
from rayswift.data.encode.config import CAUSAL, RowKind
from rayswift.data.encode.families.reranker_template import for_pairs
from rayswift.data.tokenizer.folder import PROCESSOR_TEMPLATE, read_chat_template, read_tokenizer
from rayswift.data.tokenizer.loaded import convert, from_hub, write_as_loaded
from rayswift.log import UserError

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    "generation_config.json",
)


def model_files(model: ModelConfig) -> Path:
    """The model's folder, or a download of its files without weights."""
    return Path(model.path) if Path(model.path).is_dir() else from_hub(model.path, model.revision)


def given_template(model: ModelConfig) -> str | None:
    """The text of `model.chat_template`; raise UserError if its file cannot be read."""
    if not model.chat_template:
        return None
    try:
        return Path(model.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise UserError(f"model.chat_template = {model.chat_template!r}: {reason}") from error


def prepare_tokenizer(model: ModelConfig, folder: Path, kind: RowKind = CAUSAL) -> Path:
    """Copy (or convert) the model's tokenizer to `folder`, with the chat template for rows of this kind."""
    folder.mkdir(parents=True, exist_ok=True)
    source, what = model_files(model), f"model.path = {model.path!r}"
    if (source / "tokenizer.json").exists():
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
        write_as_loaded(model, folder)
    else:
        convert(model, source, folder)
    if read_chat_template(folder)[0] is None and (source / PROCESSOR_TEMPLATE).exists():
        (folder / "chat_template.jinja").write_text(read_chat_template(source)[0] or "", encoding="utf-8")
    if template := given_template(model):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if kind.family == "reranker" and kind.renders:
        _write_pair_template(folder, kind)
    if kind.lowers:
        _lower(folder / "tokenizer.json")
    if model.new_special_tokens:
        tokenizer = read_tokenizer(folder / "tokenizer.json", what)
        tokenizer.add_special_tokens(special_tokens(model.new_special_tokens))
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        _check_rows(source / "config.json", read_tokenizer(folder / "tokenizer.json", what))
    return folder


def _check_rows(config: Path, tokenizer: Tokenizer) -> None:
    """Raise if a token has no row in the embedding; new special tokens extend it."""
    if not config.exists():
        return
    architecture = json.loads(config.read_text(encoding="utf-8"))
    num_rows = architecture.get("text_config", architecture).get("vocab_size")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    beyond = sorted((number, token) for token, number in vocabulary.items() if num_rows and number >= num_rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"model.path: the tokenizer has {len(beyond)} token(s) that the embedding has no row for, {token!r} with "
            f"number {number} the first of them, and {config} says vocab_size {num_rows}; give "
            f"--model.new_special_tokens {token!r}, for which the embedding grows to the whole tokenizer, or put the "
            "tokenizer that the model was trained with into its folder"
        )


def _lower(file: Path) -> None:
    """Make the tokenizer lower-case texts, as `do_lower_case` of sentence-transformers does."""
    tokenizer = Tokenizer.from_file(str(file))
    if tokenizer.encode("A").tokens != tokenizer.encode("a").tokens:
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        tokenizer.save(str(file))


def _write_pair_template(folder: Path, kind: RowKind) -> None:
    source, _ = read_chat_template(folder)
    if source is None:
        raise UserError(
            "a generative reranker takes rows as conversations, and the tokenizer has no chat template; give one "
            "with model.chat_template"
        )
    (folder / "chat_template.jinja").write_text(for_pairs(source, kind.answers), encoding="utf-8")
    if kind.answers:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for field, answer in zip(("positive_token", "negative_token"), kind.answers, strict=True):
            if tokenizer.token_to_id(answer) is None:
                raise UserError(f"train.{field} = {answer!r} is no token of the tokenizer; name one that is")


def special_tokens(given: list[str]) -> list[str]:
    """The tokens; a .txt file stands for its lines."""
    found: list[str] = []
    for word in given:
        try:
            lines = Path(word).read_text(encoding="utf-8").splitlines() if word.endswith(".txt") else [word]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.new_special_tokens: {word}: {error}") from error
        found += [line.strip() for line in lines if line.strip()]
    return found


def hash_files(folder: Path) -> str:
    """A hash over the contents of the files in a folder and below it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
