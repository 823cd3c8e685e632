"""Names of sources: their parts, files of a folder by split, globs and URLs, data sets of the hub."""

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest

from rayswift.config.fields.source import SourceConfig
from rayswift.config.load import load
from rayswift.data.sequence.mixing import weights_of
from rayswift.data.sources import Source, find, open_sources, parse_source
from rayswift.data.sources.hub import open_hub
from rayswift.log import UserError


def write(path: Path, content: str | bytes = '"row"\n') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def taken(folder: Path | str, base: Path, held_out: bool = False, **fields: Any) -> list[str]:
    found = find(parse_source(SourceConfig(path=str(folder), **fields)), held_out)
    return [file.name.removeprefix(f"{base}/") for file in found.files]


def refusal(given: Any, held_out: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        find(parse_source(given), held_out)
    return str(caught.value)


# ---- spelling ----


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", Source("org/name")),
        ("org/name:sub", Source("org/name", "sub")),
        ("org/name:sub/test", Source("org/name", "sub", "test")),
        ("org/name:/test", Source("org/name", None, "test")),
        ("org/name@v1.2", Source("org/name", revision="v1.2")),
        ("org/name:sub/train[:10%]@refs/pr/1#50", Source("org/name", "sub", "train[:10%]", "refs/pr/1", 50)),
        ("rows.jsonl#5", Source("rows.jsonl", num_rows=5)),
        ("a/b@c.jsonl", Source("a/b@c.jsonl")),
        ("s3://bucket/a:b@c/rows/#7", Source("s3://bucket/a:b@c/rows/", num_rows=7)),
        ("https://host/a.jsonl?X-Sig=a%3Ab@c/d#7", Source("https://host/a.jsonl?X-Sig=a%3Ab@c/d", num_rows=7)),
    ],
)  # fmt: skip
def test_spelling(text: str, parts: Source) -> None:
    assert parse_source(text) == parts
    assert parse_source(parts.written) == parts


def test_a_name_here_is_a_path_whatever_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "org" / "a:b@c" / "x.jsonl")
    assert parse_source("org/a:b@c") == Source("org/a:b@c")
    assert parse_source(f"{tmp_path}/org:sub/test") == Source(f"{tmp_path}/org", "sub", "test")


def test_fields_say_what_the_spelling_does() -> None:
    fields = {"subset": "sub", "split": "test", "revision": "v1", "rows": 5}
    assert parse_source(SourceConfig(path="org/name", **fields)) == parse_source("org/name:sub/test@v1#5")
    assert parse_source(SourceConfig(path="org/name:sub@v1#5", split="test")) == parse_source("org/name:sub/test@v1#5")
    with pytest.raises(UserError, match="says split too; say it once"):
        parse_source(SourceConfig(path="org/name:sub/test", split="train"))


def resolved(*argv: str) -> Any:
    return load("sft", ["--model", "m", *argv]).config.data


def test_sources_in_yaml_and_in_flags(tmp_path: Path) -> None:
    own = SourceConfig(path="b.jsonl", rows=5, columns={"q": "query"}, system="Hi", weight=0.5)
    as_json = '{"path": "b.jsonl", "rows": 5, "columns": {"q": "query"}, "system": "Hi", "weight": 0.5}'
    assert resolved("--data.dataset", "a.jsonl#3", as_json).dataset == ["a.jsonl#3", own]
    assert resolved("--dataset", f'["a.jsonl#3", {as_json}]').dataset == ["a.jsonl#3", own]
    assert resolved("--dataset", "a", "--data.eval", as_json).eval == [own]
    file = write(tmp_path / "c.yaml", f"data: {{dataset: [a.jsonl#3, {as_json}], eval: {{path: c}}}}")
    assert resolved("--config", str(file)).dataset == ["a.jsonl#3", own]
    assert resolved("--config", str(file)).eval == [SourceConfig(path="c")]
    # As it is written into the run folder, and read back.
    dumped = resolved("--config", str(file)).model_dump(mode="json")
    assert dumped["dataset"] == ["a.jsonl#3", json.loads(as_json)]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ('{"path": "a", "splt": "test"}', "splt is unknown, did you mean split?"),
        ('{"path": "a", "zzz": 1}', "zzz is unknown, known are path, subset, split"),
        ('{"split": "test"}', "path is required"),
        ('{"path": "a", "rows": 0}', "rows: input should be greater than or equal to 1"),
        ('{"path": "a", "weight": -1}', "weight: input should be greater than 0"),
        ('{"path": "a"', "is not valid JSON"),
    ],
)
def test_fields_of_a_source_that_are_wrong(given: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved("--data.dataset", "a.jsonl", given)
    assert why in str(caught.value) and "data.dataset" in str(caught.value)


# ---- folders ----

SHARDS = "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"
CARD = "---\nlicense: mit\n---\n# A card\n"


@pytest.mark.parametrize(
    ("files", "train", "validation"),
    [
        (f"{SHARDS} data/test-00000-of-00001.parquet", SHARDS, "data/test-00000-of-00001.parquet"),
        ("train.jsonl test.jsonl dev.jsonl LICENSE.txt README.txt dataset_infos.json", "train.jsonl", "dev.jsonl"),
        ("my-train.jsonl my-eval.jsonl extra.jsonl", "my-train.jsonl", "my-eval.jsonl"),
        ("train/a.jsonl train/b.csv test/a.jsonl", "train/a.jsonl train/b.csv", "test/a.jsonl"),
        ("a.jsonl b.jsonl val.jsonl", "a.jsonl b.jsonl", "val.jsonl"),
        ("main/train.jsonl main/test.jsonl", "main/train.jsonl", "main/test.jsonl"),
        ("a.jsonl training_notes.csv.gz evaluation/x.txt", "a.jsonl training_notes.csv.gz", "evaluation/x.txt"),
    ],
)  # fmt: skip
def test_splits_of_a_folder(files: str, train: str, validation: str, tmp_path: Path) -> None:
    for name in [*files.split(), "README.md", ".git/train.jsonl", "notes.md"]:
        write(tmp_path / "set" / name, CARD)
    base = tmp_path / "set"
    assert taken(base, base) == train.split()
    assert taken(base, base, held_out=True) == validation.split()


def test_a_folder_without_splits_is_taken_whole_but_for_what_is_no_rows(tmp_path: Path) -> None:
    rows = ["attest.jsonl", "latest/trainers.jsonl", "part-00000-of-00002.jsonl", "unit_tests.txt"]
    for name in [*rows, "LICENSE.txt", "licence-mit.txt", "dataset_info.json", "state.json", "NOTICE.TXT"]:
        write(tmp_path / name)
    assert taken(tmp_path, tmp_path) == taken(tmp_path, tmp_path, held_out=True) == sorted(rows)


def test_a_named_split_of_a_folder(tmp_path: Path) -> None:
    for name in ("train", "train_sft", "test_sft"):
        write(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    assert taken(tmp_path, tmp_path, split="test_sft") == ["data/test_sft-00000-of-00001.parquet"]
    assert taken(f"{tmp_path}:/train_sft", tmp_path) == ["data/train_sft-00000-of-00001.parquet"]
    message = refusal(SourceConfig(path=str(tmp_path), split="dev"))
    assert f"has no split dev, it has test_sft, train, train_sft; name one, as in {tmp_path}:/test_sft" in message


def test_a_folder_whose_rows_are_not_there_to_train_or_evaluate(tmp_path: Path) -> None:
    write(tmp_path / "one" / "test.jsonl")
    write(tmp_path / "two" / "train.jsonl")
    assert "has no split train, it has test" in refusal(str(tmp_path / "one"))
    assert "has no split validation or test, it has train" in refusal(str(tmp_path / "two"), held_out=True)
    write(tmp_path / "three" / "a.jsonl")
    assert "has no splits by the names of its files" in refusal(f"{tmp_path / 'three'}:/test")
    assert "is a folder here; leave revision v1 out" in refusal(f"{tmp_path / 'three'}@v1")


def test_what_is_left_of_a_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train.jsonl", "test.jsonl", "LICENSE.txt"):
        write(tmp_path / "set" / name)
    with caplog.at_level("INFO", logger="rayswift"):
        open_sources([str(tmp_path / "set")], tmp_path / "w")
    base = tmp_path / "set"
    assert caplog.messages == [f"{base}: split train, 1 files; 2 are left out: {base}/LICENSE.txt, {base}/test.jsonl"]


def test_an_error_names_the_list_that_holds_the_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.eval: no file or folder"):
        open_sources([str(tmp_path / "none.jsonl")], tmp_path / "w", held_out=True)


def test_parts_that_a_file_has_not(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text\na\n")
    assert "leave subset main out" in refusal(SourceConfig(path=str(path), subset="main"))
    with pytest.raises(UserError, match="has no splits; leave split test out"):
        open_sources([SourceConfig(path=str(path), split="test")], tmp_path / "w")


# ---- a hub data set, or a clone of one ----


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose README says which files are what, under names that do not."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    entries = {"main": {"train": "one.jsonl", "test": "two.jsonl"}, "other": {"train": "three.jsonl"}}
    configs = "".join(
        f"- config_name: {name}\n"
        + ("  default: true\n" if name == "main" else "")
        + "  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
        for name, splits in entries.items()
    )
    folder = tmp_path / "clone"
    write(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    for name in ("one", "two", "three"):
        write(folder / f"{name}.jsonl", json.dumps({"text": name}) + "\n")
    write(folder / "LICENSE.txt", "Do what you like.\n")
    return folder


def texts(given: Any, work: Path, held_out: bool = False) -> list[Any]:
    (store,) = open_sources([given], work, held_out=held_out)
    return [row.value["text"] for row in store.read(range(store.num_rows))]


def test_a_clone_is_read_as_its_readme_says(clone: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert texts(str(clone), work) == ["one"]
    assert texts(f"{clone}:other", work) == ["three"]
    assert texts(f"{clone}:main/test", work) == texts(str(clone), work, held_out=True) == ["two"]
    assert texts(SourceConfig(path=str(clone), split="test"), work) == ["two"]
    with pytest.raises(UserError, match="has no split validation or test, it has train"):
        texts(f"{clone}:other", work, held_out=True)
    # What it holds is part of the fingerprint: its files are known, though `datasets` opens them.
    assert {Path(file.name).name for file in find(Source(str(clone))).files} >= {"one.jsonl", "two.jsonl"}


def test_a_hub_data_set_is_asked_for_with_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def names(path: str, config_name: str | None, revision: str | None) -> list[str]:
        asked.append((path, config_name, revision))
        return ["train", "validation", "test"]

    def loaded(path: str, name: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_dict({"text": [split]})

    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    store = open_hub(parse_source("org/name:sub/test@v1"), tmp_path / "a")
    assert asked == [("org/name", "sub", "test", "v1")]
    assert store.read([0])[0].id == "org/name:sub/test@v1:0"
    for held_out, split in ((False, "train"), (True, "validation")):
        asked.clear()
        open_hub(parse_source("org/name@v2"), tmp_path / split, held_out)
        assert asked == [("org/name", None, "v2"), ("org/name", None, split, "v2")]


# ---- saved by `datasets`, here and behind a URL ----


def saved(folder: Path, splits: list[str]) -> None:
    for split in splits:
        part = folder / split if len(splits) > 1 else folder
        part.mkdir(parents=True, exist_ok=True)
        table = pa.table({"text": [split]})
        path = str(part / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        write(part / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        write(part / "dataset_info.json", "{}")
    if len(splits) > 1:
        write(folder / "dataset_dict.json", json.dumps({"splits": splits}))


def to_memory(folder: Path, name: str) -> str:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}"


@pytest.mark.parametrize("behind_url", [False, True])
def test_a_folder_that_datasets_saved(behind_url: bool, tmp_path: Path) -> None:
    saved(tmp_path / "many", ["train", "validation", "test"])
    saved(tmp_path / "one", ["train"])
    work = tmp_path / "w"
    many, one = (
        to_memory(tmp_path / name, f"{tmp_path.name}-{name}") if behind_url else str(tmp_path / name)
        for name in ("many", "one")
    )
    assert texts(many, work) == ["train"] and texts(many, work, held_out=True) == ["validation"]
    assert texts(SourceConfig(path=many, split="test"), work) == ["test"]
    assert texts(one, work) == ["train"]
    assert "has no split dev" in refusal(SourceConfig(path=many, split="nosuch")).replace("nosuch", "dev")


def test_globs_mean_the_same_here_and_behind_a_url(tmp_path: Path) -> None:
    names = ["a.jsonl", "b.csv", "x/a.jsonl", "x/y/a.jsonl", "x/.hidden.jsonl", "x/y/ab.jsonl", "x/LICENSE.txt"]
    for name in names:
        write(tmp_path / "rows" / name)
    url = to_memory(tmp_path / "rows", f"{tmp_path.name}-globs")
    for pattern in ("*.jsonl", "*/*.jsonl", "**/*.jsonl", "x/**/a*", "x/[xy]/*", "**", "*/*.txt", "x/*"):
        here = taken(f"{tmp_path}/rows/{pattern}", tmp_path / "rows")
        assert here and taken(f"{url}/{pattern}", url) == here, pattern  # type: ignore[arg-type]


def test_splits_of_a_folder_behind_a_url(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", "LICENSE.txt"):
        write(tmp_path / "rows" / name)
    write(tmp_path / "rows" / "README.md", "---\nconfigs:\n- config_name: a\n  data_files: test.jsonl\n---\n")
    url = to_memory(tmp_path / "rows", f"{tmp_path.name}-split")
    assert taken(url, url) == ["train.jsonl"]  # type: ignore[arg-type]
    assert taken(url, url, held_out=True) == ["test.jsonl"]  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that hands out files only to whoever shows a signature, and what it was asked for."""
    write(tmp_path / "www" / "rows.jsonl", '{"text": "a"}\n')
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            asked.append(self.path)
            signature = parse_qs(urlsplit(self.path).query).get("X-Signature")
            if signature != ["a/b="] or self.command != "GET":  # each method has a signature of its own
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *args: Any) -> None:
            return

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_presigned_url(server: tuple[str, list[str]], tmp_path: Path) -> None:
    root, asked = server
    url = f"{root}/rows.jsonl?X-Signature=a%2Fb%3D&x=[1]*"
    (store,) = open_sources([url], tmp_path / "w")
    (row,) = store.read([0])
    assert row.value == {"text": "a"} and asked
    assert row.id == f"{root}/rows.jsonl:1"  # no credentials in ids
    with pytest.raises(UserError) as caught:
        open_sources([f"{root}/rows.jsonl?X-Signature=secret"], tmp_path / "v")
    assert "secret" not in str(caught.value)


# ---- weights ----


def test_weights_of_sources() -> None:
    given = [SourceConfig(path="a.jsonl", weight=0.25), SourceConfig(path="b.jsonl", weight=3)]
    assert weights_of(given, {}) == (0.25, 3)
    assert weights_of(["a.jsonl", "b.jsonl"], {}) is None
    assert weights_of(["a.jsonl", SourceConfig(path="b.jsonl#4")], {"a": 1, "b": 2}) == (1, 2)
    with pytest.raises(UserError, match=r"c\.jsonl has no weight, but others have"):
        weights_of([*given, "c.jsonl"], {})
    with pytest.raises(UserError, match="both say how sources are mixed"):
        weights_of(given, {"a": 1, "b": 1})
