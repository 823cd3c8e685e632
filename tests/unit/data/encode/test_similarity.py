"""Rows of texts that are compared: what an embedding and a reranker read, what is refused, losses and metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from sentence_transformers.sentence_transformer import losses
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rayswift.cluster.layout import Layout
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.data.collate.padded import left_padded_batch, text_batch
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.encode.families.reranker_template import for_pairs
from rayswift.data.rows import BadRow
from rayswift.data.sequence.windows import PackedRow, RowSet, WindowPlan
from rayswift.data.sources import open_sources
from rayswift.launch.plan import resolve
from rayswift.log import UserError
from rayswift.model import heads
from rayswift.model.find import find_model
from rayswift.model.tuners import new_adapter
from rayswift.train.trainers.embedding_losses import EmbeddingLoss, text_metadata
from rayswift.train.trainers.reranker import list_loss, list_sums
from rayswift.verbs.export import merge
from tests.support.streams import TINY

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
LAYOUT = Layout(local=True, device="cpu", num_workers=1, threads_per_worker=1)
TRIPLE = {"anchor": "s1", "positive": "s2", "negative": ["s3", "s4"]}
PAIR = {"query": "q", "positive": ["d"], "negative": ["e"]}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def encode(
    row: Any, family: Any, max_length: int = 64, folder: Path = TINY, **options: Any
) -> list[EncodedRow] | BadRow:
    (result,) = encoder_of(EncodeConfig(str(folder), "hash", max_length, family=family, **options)).encode([row])
    return result


def texts(row: Any, family: Any, **options: Any) -> list[str]:
    result = encode(row, family, **options)
    assert isinstance(result, list), result
    return [TOKENIZER.decode(document.input_ids.tolist(), skip_special_tokens=False) for document in result]


# ---- rows ----


def test_texts_of_an_embedding_are_rendered_each_by_itself() -> None:
    assert texts(TRIPLE, "embedding") == [f"<|user|>s{i}<|im_end|>" for i in (1, 2, 3, 4)]
    assert texts(TRIPLE, "embedding", use_chat_template=False) == ["s1", "s2", "s3", "s4"]
    assert texts({"anchor": "a", "positive": "b"}, "embedding", use_chat_template=False) == ["a", "b"]  # one token each


def test_without_a_template_the_special_tokens_around_any_text_are_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    special = [("<|system|>", 2), ("<|im_end|>", 1)]
    tokenizer.post_processor = TemplateProcessing(single="<|system|> $A <|im_end|>", special_tokens=special)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = {"folder": tmp_path, "use_chat_template": False}
    row = {"anchor": "a b c d e f", "positive": "g"}
    assert texts(row, "embedding", **options) == ["<|system|>a b c d e f<|im_end|>", "<|system|>g<|im_end|>"]
    cut = texts(row, "embedding", max_length=4, truncation="right", **options)[0]
    assert cut.startswith("<|system|>a")
    assert cut.endswith("<|im_end|>")


@pytest.mark.parametrize(
    ("change", "loss", "reason"),
    [
        ({"positive": ["a", "b"]}, "infonce", "several positives"),
        ({"label": 0}, "infonce", "bad label"),
        ({"label": 1}, "contrastive", "negatives"),
        ({"negative": None}, "contrastive", "bad label"),
        ({"negative": None, "label": 0.5}, "online_contrastive", "bad label"),
        ({"negative": None, "label": 1.5}, "cosine_similarity", "bad label"),
        ({"positive": ""}, "infonce", "empty text"),
        ({"negative": "x " * 99}, "infonce", "longer than data.max_length"),
    ],
)
def test_rows_that_an_embedding_cannot_take(change: dict[str, Any], loss: str, reason: str) -> None:
    bad = encode(TRIPLE | change, "embedding", loss=loss, use_chat_template=False)
    assert isinstance(bad, BadRow), bad
    assert bad.reason == reason


def test_a_label_reaches_the_loss() -> None:
    pair = {"anchor": "a", "positive": "b", "label": 0.5}
    result = encode(pair, "embedding", loss="cosine_similarity")
    assert isinstance(result, list)
    assert [document.numbers for document in result] == [(("label", 0.5),), ()]


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (PAIR | {"negative": []}, {"loss": "listwise"}, "no negative"),
        ({"query": "q", "docs": ["a"], "labels": [0]}, {"loss": "listwise"}, "no positive"),
        ({"query": "q", "docs": [], "labels": []}, {}, "no positive"),
        (PAIR | {"positive": []}, {}, "no positive"),
        (
            PAIR | {"positive": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]},
            {},
            "bad document",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}], "positive_messages": ["d"]}, {}, "bad query"),
    ],
)
def test_rows_that_a_reranker_cannot_take(row: Any, options: dict[str, Any], reason: str) -> None:
    bad = encode(row, "reranker", **options)
    assert isinstance(bad, BadRow), bad
    assert bad.reason == reason


def test_a_row_of_a_batch_is_a_raw_row_with_all_its_texts(tmp_path: Path) -> None:
    rows = [PAIR, PAIR | {"negative": ["e", "f"]}, {"query": "q"}, PAIR | {"negative": []}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = EncodeConfig(str(TINY), "hash", 64, family="reranker")
    row_set = RowSet(open_sources([str(path)], tmp_path / "work"), seed=1, shuffle=False)
    window = WindowPlan(row_set, config, packing=False, window_rows=9).make(0, 0)
    assert [len(row.lengths) for row in window.rows] == [2, 3, 1]
    assert [[label for _, label in row.numbers] for row in window.rows] == [[1, 0], [1, 0, 0], [1]]
    assert sum(row.num_source_rows for row in window.rows) == 4
    assert window.counts == {"trained": 3, "quarantined: no positive": 1}


# ---- the template of rerankers ----


CHATML = """\
{%- for message in messages %}{% if message.role in ['system', 'user', 'assistant'] -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


@pytest.mark.parametrize("answers", [None, ("yes", "no")])
@pytest.mark.parametrize("system", [None, "Find the proof"])
def test_a_pair_is_rendered_as_a_cross_encoder_does(
    tmp_path: Path, answers: tuple[str, str] | None, system: str | None
) -> None:
    template = for_pairs(CHATML, answers)
    assert for_pairs(template, answers) == template
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    pair = [{"role": "query", "content": "why 'so'?"}, {"role": "document", "content": "{{ thus }}"}]
    if system:
        pair.insert(0, {"role": "system", "content": system})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = tokenizer.apply_chat_template(pair, tokenize=False, add_generation_prompt=answers is not None)
    row = {"query": "why 'so'?", "positive": "{{ thus }}", "system": system}
    assert texts(row, "reranker", folder=tmp_path, answers=answers, max_length=512) == [theirs]
    for word in ["why 'so'?", "{{ thus }}", *([system] if system else []), *(answers or ())]:
        assert word in theirs
    assert theirs.endswith("<|im_start|>assistant\n" if answers else "{{ thus }}<|im_end|>\n")


# ---- batches, losses, metrics ----


def packed(*lengths: int, numbers: Any = ()) -> PackedRow:
    total = sum(lengths)
    return PackedRow(np.arange(1, total + 1, dtype=np.int32), np.ones(total, np.bool_), lengths, 1, numbers=numbers)


def test_texts_are_padded_at_either_end() -> None:
    rows = [packed(2, 1), packed(3)]
    right, left = (collate(rows, 0, "rows") for collate in (text_batch, left_padded_batch))
    assert right["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [1, 2, 3]]
    assert left["input_ids"].tolist() == [[0, 1, 2], [0, 0, 3], [1, 2, 3]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert left["position_ids"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 2]]
    assert text_batch([], 0, "rows")["input_ids"].tolist() == [[0, 0]]


def loss_of(*flags: str) -> EmbeddingLoss:
    argv = ["--model", str(TINY), "--random_init", "--data.dataset", "d.jsonl", "--train.task", "embedding", *flags]
    return EmbeddingLoss(resolve(load("sft", argv).config, LAYOUT, None).config.train)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(0, 99))
def test_infonce_takes_any_number_of_negatives_a_row(negatives: list[int], seed: int) -> None:
    """Against the formula, written out."""
    rows = [packed(*[1] * (2 + number)) for number in negatives]
    embeddings = torch.randn(sum(len(row.lengths) for row in rows), 8, generator=torch.manual_seed(seed))
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    begins = np.cumsum([0, *[2 + number for number in negatives]])[:-1]
    candidates = [i for i in range(len(unit)) if i not in begins]
    terms = [
        torch.logsumexp(unit[begin] @ unit[candidates].T / 0.1, 0) - unit[begin] @ unit[begin + 1] / 0.1
        for begin in begins
    ]
    found = loss_of("--infonce_temperature", "0.1")(embeddings, text_metadata(rows))
    torch.testing.assert_close(found, torch.stack(terms).mean())


class Embedded(torch.nn.Module):
    """What sentence-transformers' losses ask of a model, where the embeddings are given."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return 128


def test_matryoshka_is_that_of_sentence_transformers() -> None:
    rows = [packed(1, 1) for _ in range(4)]
    embeddings = torch.randn(8, 128, generator=torch.manual_seed(0))
    texts_of = [{"sentence_embedding": embeddings[start::2]} for start in (0, 1)]
    model = Embedded()
    theirs = losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [128, 32, 8], [1, 0.5, 2])
    ours = loss_of("--matryoshka_dims", '{"32": 0.5, "8": 2}')(embeddings, text_metadata(rows))
    torch.testing.assert_close(ours, theirs(texts_of, torch.empty(0)))


def test_what_an_evaluation_tells_of_embeddings() -> None:
    axes = torch.eye(4)
    rows = [packed(1, 1), packed(1, 1)]
    sums = loss_of().sums(torch.stack([axes[0], axes[0], axes[1], axes[2]]), text_metadata(rows))
    assert sums == {"recall_at_1": (1.0, 2), "margin": (1.0, 2)}
    loss = loss_of("--loss_type", "contrastive")
    pairs = [packed(1, 1, numbers=(("label", 1.0),)), packed(1, 1, numbers=(("label", 0.0),))]
    sums = loss.sums(torch.stack([axes[0], axes[0], axes[0], axes[1]]), text_metadata(pairs))
    assert loss.named(sums) == {"margin": (1.0, 1.0)}
    assert loss.named({"loss": (1.0, 2.0)}) == {"loss": (1.0, 2.0)}


def test_what_an_evaluation_tells_of_a_ranking() -> None:
    labels = torch.tensor([1.0, 1.0, 0.0])
    assert list_sums(torch.tensor([3.0, 2.0, 1.0]), labels) == {"accuracy": (1.0, 1.0), "mrr": (1.0, 1.0)}
    assert list_sums(torch.tensor([3.0, 0.0, 1.0]), labels) == {"accuracy": (0.0, 1.0), "mrr": (1.0, 1.0)}
    assert list_sums(torch.tensor([0.0, 0.0, 1.0]), labels) == {"accuracy": (0.0, 1.0), "mrr": (0.5, 1.0)}
    assert list_sums(torch.tensor([0.0]), torch.tensor([1.0])) == {}
    assert list_sums(torch.tensor([0.0]), torch.tensor([0.0])) == {}


def test_a_list_puts_its_target_on_the_positives() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0])
    log_probabilities = scores.log_softmax(0)
    labels = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(list_loss(scores, labels, True), -log_probabilities[:2].mean())
    terms = torch.stack([-torch.sigmoid(scores[:2]).log().sum(), -torch.sigmoid(-scores[2]).log()])
    torch.testing.assert_close(list_loss(scores, labels, False), terms.sum() / 3)


# ---- the result ----


@pytest.mark.parametrize(
    ("head", "labels"), [("none", {}), ("reward", {"num_labels": 1}), ("classes", {"num_labels": 3})]
)
def test_an_adapter_merges_into_a_model_with_its_head(head: Any, labels: dict[str, int], tmp_path: Path) -> None:
    """The base is a language model, whose config knows nothing of labels."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(tmp_path / "base")
    network = heads.CLASSES[head].from_pretrained(tmp_path / "base", **labels)
    tuned = get_peft_model(network, new_adapter(ModelConfig(path="base", tuner="lora"), head)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "adapter")
    merge(find_model(str(tmp_path / "adapter"), "export.model"), tmp_path / "merged")
    merged = heads.CLASSES[head].from_pretrained(tmp_path / "merged").eval()
    tokens = {"input_ids": torch.arange(8, 24)[None]}
    with torch.inference_mode():
        torch.testing.assert_close(merged(**tokens)[0], tuned(**tokens)[0], atol=1e-5, rtol=1e-5)


# ---- settings ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train.task", "embedding", "--loss_type", "nll"), "train.loss_type = nll is none of task embedding"),
        (("--train.task", "reranker", "--loss_type", "infonce"), "it has pointwise, listwise"),
        (("--train.task", "reranker", "--pooling", "mean"), "model.pooling = mean is of task embedding"),
        (("--matryoshka_dims", '{"8": 1}'), "train.matryoshka_dims = {8: 1.0} is of task embedding"),
        (("--train.task", "embedding", "--matryoshka_dims", '{"256": 1}'), "the model's embeddings have 128 numbers"),
        (("--train.task", "generative_reranker", "--truncation", "right"), "would cut off the question"),
        (("--train.task", "generative_reranker", "--use_chat_template", "false"), "data.use_chat_template = False"),
    ],
)
def test_settings_of_other_tasks_are_refused(flags: tuple[str, ...], message: str) -> None:
    argv = ["--model", str(TINY), "--random_init", "--data.dataset", "d.jsonl", *flags]
    with pytest.raises(UserError) as refused:
        resolve(load("sft", argv).config, LAYOUT, None)
    assert message in str(refused.value)
