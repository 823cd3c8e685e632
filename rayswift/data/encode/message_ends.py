"""Find where each message ends in a rendered conversation with one rendering, instead of one for each prefix.

A template is a program that loops over messages. Suppose the loop asks for message i before the template has read
message i, a later one, or their number. Then for the first i messages alone the template does the same up to this
point, leaves the loop, and renders what follows it. So the text of the prefix is the text written up to this point, and
the text after the loop. This is exact. Templates and messages for which it does not hold are not traced.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import Environment, Template, nodes

_TURNS, _TURN_BEGINS, _TURN_ENDS = "_turns", "_turn_begins", "_turn_ends"
_GENERATE = "add_generation_prompt"


@dataclass(frozen=True)
class Trace:
    """A rendered conversation.

    ends: at i, the length of the text of the first i messages alone, None if it is not known; generation: the
    generation prompt.
    """

    text: str
    ends: tuple[int | None, ...]
    generation: str


class TracedTemplate:
    """A template that records how its loop reads the messages; `remainder` is the part after the loop."""

    def __init__(self, whole: Template, remainder: Template):
        self._whole, self._remainder = whole, remainder

    @classmethod
    def of(cls, environment: Environment, source: str) -> "TracedTemplate | None":
        """The traced template; None if the part after its last loop could depend on the loop."""
        tree = environment.parse(source)
        loops = [place for place, node in enumerate(tree.body) if isinstance(node, nodes.For)]
        if not loops:
            return None
        loop = tree.body[loops[-1]]
        assert isinstance(loop, nodes.For)
        behind = tree.body[loops[-1] + 1 :]
        remainder = nodes.Template(behind, lineno=loop.lineno)
        before = nodes.Template(tree.body[: loops[-1] + 1], lineno=1)
        asks_early = any(name.name == _GENERATE for name in before.find_all(nodes.Name))
        named = {name.name for name in remainder.find_all(nodes.Name)}
        if asks_early or named & _bound(tree) or tree.find(nodes.Block) or loop.else_ or loop.recursive:
            return None
        loop.iter = _call(_TURNS, [cast(nodes.Expr, loop.iter)], loop)
        begins, ends = (
            nodes.ExprStmt(_call(name, [], loop), lineno=loop.lineno) for name in (_TURN_BEGINS, _TURN_ENDS)
        )
        loop.body = [begins, *loop.body, ends]
        for part in (tree, remainder):
            part.set_environment(environment)
        return cls(environment.from_string(tree), environment.from_string(remainder))

    def trace(self, messages: Sequence[Any], given: Mapping[str, Any]) -> Trace | None:
        """Render all messages with the variables `given`; None if the ends are not known."""
        seen = _Seen(messages)
        watched = {_TURNS: seen.turns, _TURN_BEGINS: seen.turn_begins, _TURN_ENDS: seen.turn_ends}
        written, lengths = [], [0]
        for part in _parts(self._whole, {**given, **watched, "messages": _Messages(seen, 0), _GENERATE: False}):
            written.append(part)
            lengths.append(lengths[-1] + len(part))
            seen.num_parts += 1
        remainders = ["".join(_parts(self._remainder, {**given, _GENERATE: generate})) for generate in (False, True)]
        if seen.lost or remainders[0]:
            return None
        ends = tuple(None if parts is None else lengths[parts] for parts in seen.parts_at)
        return Trace("".join(written), ends, remainders[1])


def _parts(template: Template, given: dict[str, Any]) -> Iterator[str]:
    return template.root_render_func(template.new_context(given, shared=True))


def _call(name: str, arguments: list[nodes.Expr], loop: nodes.For) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load", lineno=loop.lineno), arguments, [], None, None, lineno=loop.lineno)


def _bound(tree: nodes.Template) -> set[str]:
    """Names that change during a rendering, or hold messages."""
    assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    return assigned | {macro.name for macro in tree.find_all(nodes.Macro)} | {"messages", "loop"}


class _Seen:
    """What a rendering has read of the messages, and the number of parts written when its loop asked for each."""

    def __init__(self, messages: Sequence[Any]):
        self.messages = messages
        self.num_parts = 0
        self.parts_at: list[int | None] = [None] * (len(messages) + 1)
        self.lost = False
        self._newest = -1
        self._between_turns = False

    def see(self, index: int) -> None:
        """Record that message `index`, or its absence, was read."""
        self._newest = max(self._newest, index)

    def turns(self, looped: Any) -> Any:
        """The sequence of the loop, recorded if it is the messages."""
        if not isinstance(looped, _Messages):
            self.lost = True
            return looped
        return self._turns(looped.begin)

    def _turns(self, begin: int) -> Iterator[Any]:
        for index in range(begin, len(self.messages) + 1):
            # Within a turn, the template looked ahead, as for `loop.last`, and may write something that depends on it.
            if self._between_turns and self._newest < index:
                self.parts_at[index] = self.num_parts
            self._between_turns = False
            self.see(index)
            if index < len(self.messages):
                yield self.messages[index]

    def turn_begins(self) -> None:
        self._between_turns = False

    def turn_ends(self) -> None:
        self._between_turns = True


class _Messages:
    """The messages from `begin` on, as a template sees them; it may loop over them, index and slice them.

    Any other use makes the ends unknown.
    """

    def __init__(self, seen: _Seen, begin: int):
        self._seen, self.begin = seen, begin

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int) and key >= 0:
            self._seen.see(self.begin + key)
            return self._seen.messages[self.begin + key]
        if isinstance(key, slice) and isinstance(key.start, int) and key.start >= 0 and key.stop is key.step is None:
            return _Messages(self._seen, self.begin + key.start)
        return self._all()[key]

    def __bool__(self) -> bool:
        self._seen.see(self.begin)
        return self.begin < len(self._seen.messages)

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __contains__(self, message: Any) -> bool:
        return message in self._all()

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return repr(self._all())

    def __getattr__(self, name: str) -> Any:
        self._seen.lost = True
        raise AttributeError(name)

    def _all(self) -> list[Any]:
        self._seen.see(len(self._seen.messages))
        return list(self._seen.messages[self.begin :])
