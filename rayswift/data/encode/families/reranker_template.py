"""The chat template of a reranker, which renders a message of role `query` and one of role `document`; pure.

`CrossEncoder` passes a pair to the chat template in these roles, which few templates know. So a run trains and saves
the model's template with a head that turns the pair into messages: a question and its answer, or for task
generative_reranker the question of Qwen3-Reranker whether the document fits.
"""

import re

_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "{yes}" or "{no}".'
)
_ROLES = re.compile(r"""(?s)(?=.*['"]query['"])(?=.*['"]document['"])""")
_ANSWER = """\
{%- set pair = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set role = {'query': 'user', 'document': 'assistant'}[message['role']] if message['role'] in ['query', 'document'] \
else message['role'] -%}
{%- set pair.messages = pair.messages + [{'role': role, 'content': message['content']}] -%}
{%- endfor -%}
{%- set messages = pair.messages -%}
"""
_QUESTION = """\
{%- set pair = namespace(system=INSTRUCT, query='', document='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set pair.system = message['content'] -%}
{%- elif message['role'] == 'query' -%}{%- set pair.query = message['content'] -%}
{%- elif message['role'] == 'document' -%}{%- set pair.document = message['content'] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = [{'role': 'system', 'content': JUDGE}, {'role': 'user', 'content': '<Instruct>: ' ~ pair.system ~ \
'\\n<Query>: ' ~ pair.query ~ '\\n<Document>: ' ~ pair.document}] -%}
"""


def for_pairs(source: str, answers: tuple[str, str] | None) -> str:
    """A chat template for pairs, from the model's own, which is returned if it knows both roles.

    answers: a generative reranker's answers for a document that fits and for one that does not; None: the document is
    rendered as the answer to the query.
    """
    if _ROLES.match(source):
        return source
    if answers is None:
        return _ANSWER + source
    judge = _JUDGE.format(yes=answers[0], no=answers[1])
    return _QUESTION.replace("INSTRUCT", repr(_INSTRUCT)).replace("JUDGE", repr(judge)) + source
