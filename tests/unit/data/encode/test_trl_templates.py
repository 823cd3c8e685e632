"""Chat templates of models as TRL ships them: our bytes are `apply_chat_template`'s, and trained is what the training
template that TRL ships beside it marks.

Three things differ, by rule. What the generation prompt of the model's own template opens is given to the model when it
is served, so it is not trained (TRL marks the
assistant's header of DeepSeek, `<|start|>assistant`, an opened `<think>`); white space behind
an end token is never generated; and earlier answers keep the form that the model's own template gives them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import Tokenizer

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import Encoder
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.rows import BadRow
from tests.support.chat_templates import TINY

SHIPPED = Path(trl.__file__).parent / "chat_templates"
WIDE = "\uff5c"  # DeepSeek's bar
SPECIAL = re.compile(
    rf"<[{WIDE}|][^<>|{WIDE} ]+[{WIDE}|]>|<[a-z_]+\|>|<\|[a-z_]+>|</?s>|<(?:start|end)_of_(?:turn|utterance)>"
    r"|\[/?INST\]|\[gMASK\]|<sop>"
)
ADD = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is 3."}],
    "turns": [{"role": role, "content": f"{role} says {i}."} for i in range(3) for role in ("user", "assistant")],
    "greeting": [
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "It is 3."},
    ],
    "thoughts": [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "It is 3.", "reasoning_content": "add them"},
    ],
    "tools": [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "It is 3."},
    ],
}
# Each template with the conversations that it can render.
TEMPLATES = {
    "qwen3": ("plain", "greeting", "thoughts", "tools", "turns"),
    "qwen3_instruct_2507": ("plain", "greeting", "turns", "tools"),
    "qwen2_5": ("plain", "greeting", "turns", "tools"),
    "qwen3_5_think": ("plain", "greeting", "thoughts"),
    "qwen3_5_nothink": ("plain", "greeting", "thoughts"),
    "deepseek_r1_distill": ("plain", "greeting", "turns", "thoughts"),
    "deepseekv3": ("plain", "turns"),
    "gptoss": ("plain", "greeting", "turns", "thoughts", "tools"),
    "llama3": ("plain", "greeting", "turns"),
    "llama3_1": ("plain", "greeting", "turns", "tools"),
    "gemma": ("plain", "turns"),
    "gemma3": ("plain", "turns"),
    "smolvlm": ("plain", "turns"),
    "idefics3": ("plain", "turns"),
    "llava_next": ("plain", "turns"),
    "nemotron_3_nano": ("plain", "greeting", "turns", "thoughts", "tools"),
    "phi3": ("plain", "greeting", "turns"),
    "cohere2": ("plain", "turns"),
    "lfm2_2_5": ("plain", "greeting", "turns", "thoughts", "tools"),
}
CASES = [(name, kind) for name, kinds in TEMPLATES.items() for kind in kinds]
# Where TRL's training template keeps of earlier answers what the model's own leaves out, or drops what it has to keep.
OTHER_HISTORY = {
    *(("qwen3", "turns"), ("qwen3", "tools"), ("gptoss", "turns"), ("deepseek_r1_distill", "tools")),
    *(("qwen3", "greeting"), ("gptoss", "greeting"), ("qwen3_5_think", "greeting"), ("qwen3_5_nothink", "greeting")),
}
# TRL ships a training template that drops the thoughts, or none.
NO_MARKS = {"llama3_1"}
Model = tuple[Encoder, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """An encoder and `transformers`' tokenizer of a template."""
    from transformers import AutoTokenizer

    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            source = (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")
            folder = tmp_path_factory.mktemp(name)
            tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
            tokenizer.add_special_tokens(["<bos>", "<eos>", *sorted(set(SPECIAL.findall(source)))])
            tokenizer.save(str(folder / "tokenizer.json"))
            config = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "TokenizersBackend"}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
            encoder = cached_encoder(json.dumps(asdict(EncodeConfig(str(folder), "", 8192))))
            made[name] = encoder, AutoTokenizer.from_pretrained(folder)
        return made[name]

    return get


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_bytes_and_trained_spans(model: Any, name: str, kind: str) -> None:
    encoder, tokenizer = model(name)
    messages, tools = CONVERSATIONS[kind], [ADD] if kind == "tools" else None
    (result,) = encoder.encode([{"messages": messages, "tools": tools}])
    assert not isinstance(result, BadRow), result
    (document,) = result
    # 1. The bytes: in the spelling that the template reads, and thoughts kept where it would cut those of the last.
    own = encoder.template.adapted(messages)
    training = SHIPPED / f"{name}_training.jinja"
    cuts = encoder.template.cuts(own)
    with_thoughts = {"chat_template": training.read_text(encoding="utf-8")} if cuts and name != "deepseekv3" else {}
    text = tokenizer.apply_chat_template(own, tools=tools, tokenize=False, **with_thoughts)
    assert tokenizer.decode(document.input_ids) == text
    assert document.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    # 2. What is trained.
    trained = tokenizer.decode(document.input_ids[document.trained])
    last = messages[-1]["content"]
    assert last in trained
    assert ("Good day." in trained) == (kind == "greeting")
    assert not any(message["content"] in trained for message in messages if message["role"] == "user")
    if name in NO_MARKS or (name, kind) in OTHER_HISTORY:
        return
    marks = training.read_text(encoding="utf-8") if training.exists() else None
    theirs = tokenizer.apply_chat_template(
        own, tools=tools, chat_template=marks, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = "".join(
        _unopened(tokenizer.decode([token for token, _ in run]), _openings(encoder, tokenizer))
        for on, run in groupby(zip(theirs["input_ids"], theirs["assistant_masks"], strict=True), lambda pair: pair[1])
        if on
    )
    assert _bare(trained) == _bare(marked)


def _bare(text: str) -> str:
    """Without white space behind an end token, or at the beginning of an answer."""
    return re.sub(rf"({SPECIAL.pattern})\s+", r"\1", text).strip()


def _openings(encoder: Encoder, tokenizer: Any) -> list[str]:
    """What the generation prompt of the model's own template opens: the turn, and a thought."""
    asked = encoder.template.adapted([{"role": "user", "content": "q"}])
    bare, opened = (
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=given) for given in (False, True)
    )
    prompt = opened.removeprefix(bare) if opened.startswith(bare) else ""
    turn, think, rest = prompt.partition("<think>")
    return [prompt, turn, think + rest]


def _unopened(marked: str, openings: list[str]) -> str:
    for opening in openings:
        if opening and marked.startswith(opening):
            return marked.removeprefix(opening)
    return marked


def test_mistral_with_tools(tmp_path: Path) -> None:
    """In the manner of Mistral's third tokenizer: no word of TRL's, so the bytes alone are held."""
    from transformers import AutoTokenizer

    from tests.support.chat_templates import Family, write_tokenizer

    source = (
        "{%- set last = namespace(user=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}{{ bos_token }}{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}{%- if tools and loop.index0 == last.user -%}"
        "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif -%}"
        "{{ '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'tool' -%}"
        "{{ '[TOOL_RESULTS]' + {'content': m.content, 'call_id': m.tool_call_id} | tojson + '[/TOOL_RESULTS]' }}"
        "{%- elif m.tool_calls -%}{{ '[TOOL_CALLS][' }}{%- for call in m.tool_calls -%}"
        "{{ call.function | tojson }}{%- endfor -%}{{ ']' + eos_token }}"
        "{%- else -%}{{ m.content + eos_token }}{%- endif -%}{%- endfor -%}"
    )
    special = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]")
    folder = write_tokenizer(tmp_path, Family(source, str, "<s>", "</s>", special))
    (result,) = Encoder(EncodeConfig(str(folder), "", 4096)).encode(
        [{"messages": CONVERSATIONS["tools"], "tools": [ADD]}]
    )
    assert not isinstance(result, BadRow), result
    (document,) = result
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(CONVERSATIONS["tools"], tools=[ADD], tokenize=True, return_dict=False)
    assert document.input_ids.tolist() == expected
    trained = tokenizer.decode(document.input_ids[document.trained])
    assert trained == '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]</s>It is 3.</s>'


def test_content_that_a_template_leaves_out_is_refused(tmp_path: Path) -> None:
    from tests.support.chat_templates import Family, write_tokenizer

    source = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    folder = write_tokenizer(tmp_path, Family(source, str))
    (result,) = Encoder(EncodeConfig(str(folder), "", 4096)).encode([{"messages": CONVERSATIONS["plain"]}])
    assert isinstance(result, BadRow)
    assert result.reason == "content not rendered"
    assert "'What is 1 + 2?' of message 0 (user)" in result.detail


def test_words_beside_a_call_that_a_template_leaves_out_are_refused(model: Any) -> None:
    encoder, _ = model("llama3_1")
    messages = [dict(message) for message in CONVERSATIONS["tools"]]
    messages[1]["content"] = "Let me add these."
    (result,) = encoder.encode([{"messages": messages, "tools": [ADD]}])
    assert isinstance(result, BadRow)
    assert result.reason == "content not rendered"


@pytest.mark.parametrize("name", ["qwen3_8", "gptoss", "gemma4_v5", "qwen3"])
def test_thoughts_in_the_content_are_thoughts_where_the_template_reads_them_apart(model: Any, name: str) -> None:
    """Qwen3.8 would put an empty block of thoughts before them, gpt-oss and Gemma 4 into the answer."""
    encoder, _ = model(name)
    question, apart = CONVERSATIONS["thoughts"]
    inside = {"role": "assistant", "content": "<think>\nadd them\n</think>\n\nIt is 3."}
    first, second = encoder.encode([{"messages": [question, answer]} for answer in (inside, apart)])
    assert first[0].input_ids.tolist() == second[0].input_ids.tolist()
    assert first[0].trained.tolist() == second[0].trained.tolist()
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\nIt is 3."}
    no_thoughts, plain = encoder.encode([{"messages": each} for each in ([question, empty], CONVERSATIONS["plain"])])
    assert no_thoughts[0].input_ids.tolist() == plain[0].input_ids.tolist()


def test_an_answer_follows_the_thoughts_of_its_calls(model: Any) -> None:
    """gpt-oss leaves the thoughts of calls out as soon as the final answer is there, but it is generated behind them.
    Beside a second question they are gone, and the calls are trained in a text of their own."""
    encoder, tokenizer = model("gptoss")
    asked, call, result, answer = (dict(message) for message in CONVERSATIONS["tools"])
    call["reasoning_content"], answer["reasoning_content"] = "add them", "that was easy"
    again = [{"role": "user", "content": "And 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    rows = [[asked, call, result, answer], [asked, call, result, call, result, answer, *again]]
    (one, two) = encoder.encode([{"messages": row, "tools": [ADD]} for row in rows])
    thought = "<|channel|>analysis<|message|>"
    called = f"{thought}add them<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>"
    called += '{"a": 1, "b": 2}<|call|>'
    answered = f"{thought}that was easy<|end|><|start|>assistant<|channel|>final<|message|>It is 3.<|return|>"

    (document,) = one
    served = tokenizer.apply_chat_template(
        encoder.template.adapted(rows[0][:3]), tools=[ADD], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(document.input_ids) == served + answered
    assert tokenizer.decode(document.input_ids[document.trained]) == called + answered
    trained = [tokenizer.decode(document.input_ids[document.trained]) for document in two]
    assert trained == [called * 2 + answered, "<|channel|>final<|message|>It is 4.<|return|>"]
