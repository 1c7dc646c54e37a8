"""A conversation put together: which call answers which, what came again, where it parted, what went on beside. Pure.

Everything here is made of the index's rows and gists, so the longest conversation takes no longer than its rows. A
request that failed and was sent again is one step; a call builds upon the last answer that its request repeats. Leaves
out what was said (`turns`).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from llm_proxy.index.gist import Gist
from llm_proxy.index.queries import CallRow

# Ask for no answer of a model in words.
_NO_CONVERSATION = frozenset(
    {"openai.embeddings", "gemini.embed", "anthropic.count_tokens", "bedrock.count_tokens", "gemini.count_tokens"}
    | {"anthropic.batches", ""}
)
GAP = 5 * 60 * 10**9  # ns without a call that are worth a line
_EMPTY = Gist()


@dataclass(frozen=True, slots=True)
class Fork:
    """Another way on from an answer: its calls, in the same session, the first and the last."""

    seq: int  # of its first call: what `branch=` takes
    prompt: str
    calls: int
    started_ns: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A conversation that shares nothing with the one shown, and was held while it went on."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the model: the call that answered, and those before it that were to answer the same.

    `begins`: "" where the step builds upon the one before it, `start` where nothing is before it, `rewritten` where
    its messages repeat no answer of the conversation that it follows, `new` where it follows another conversation,
    `cut` where it is not continued. `new_messages` stand behind what it repeats.
    """

    number: int  # from 1, along what is shown
    call: CallRow
    gist: Gist = _EMPTY
    attempts: tuple[CallRow, ...] = ()
    begins: str = ""
    after: int = 0  # number of the step that it builds upon, 0 for none
    by_name: bool = False  # its request names the answer before it and does not repeat it
    edited: bool = False  # its request repeats the answer before it, and has something else before that
    new_messages: int = 0
    gap_ns: int = 0  # since the step before ended
    tools_ms: int = 0  # between the answer before it and it
    rules_changed: bool = False
    failed_tools: int = 0  # of its own calls, as the next step tells
    forks: tuple[Fork, ...] = ()
    asides: tuple[Aside, ...] = ()

    @property
    def calls(self) -> tuple[CallRow, ...]:
        return (*self.attempts, self.call)

    @property
    def bad(self) -> bool:
        return is_bad(self.call)


@dataclass(frozen=True, slots=True)
class Shape:
    """A session as a conversation. `others` are the calls that are none; `branch` is the one shown, 0 the latest."""

    steps: tuple[Step, ...]
    others: tuple[CallRow, ...] = ()
    branch: int = 0

    def step_of(self, call: str) -> Step | None:
        """The step that holds a call, also one beside it."""
        for step in self.steps:
            if any(one.id == call for one in step.calls):
                return step
            if any(one.id == call for aside in step.asides for beside in aside.steps for one in beside.calls):
                return step
        return None


def is_bad(call: CallRow) -> bool:
    """Whether a call has no whole answer. One that is still open may get it."""
    return not call.open and (call.failed or call.partial or call.ending != "complete")


@dataclass(slots=True, eq=False)
class _Node:
    """A step in the making: all calls that were to answer the same."""

    place: int  # of its first call among all
    calls: list[CallRow]
    gist: Gist
    parent: _Node | None = None
    by_name: bool = False
    edited: bool = False
    behind: int = 0
    children: list[_Node] = field(default_factory=list)

    @property
    def call(self) -> CallRow:
        return self.calls[-1]

    @property
    def root(self) -> _Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node


def is_conversation(call: CallRow, gist: Gist | None) -> bool:
    return call.api not in _NO_CONVERSATION and (gist is not None or (call.open and bool(call.model)))


def arrange(calls: Sequence[CallRow], gists: Mapping[str, Gist], branch: int = 0) -> Shape:
    """The steps of a session's calls, which come in order of `seq`. `branch`: the `seq` of a call on the way wanted."""
    nodes, others = _nodes(calls, gists)
    nodes = _without_false_starts(nodes)
    if not nodes:
        return Shape((), tuple(others))
    trees: dict[int, list[_Node]] = {}
    for node in nodes:
        trees.setdefault(node.root.place, []).append(node)
    wanted = next((node for node in nodes for call in node.calls if branch and call.seq == branch), None)
    paths = {place: _path(tree, wanted) for place, tree in trees.items()}
    main, beside = _main(paths, trees, wanted)
    steps = _steps(main)
    return Shape(_with_asides(steps, [trees[place] for place in beside]), tuple(others), branch if wanted else 0)


def _nodes(calls: Sequence[CallRow], gists: Mapping[str, Gist]) -> tuple[list[_Node], list[CallRow]]:
    nodes: list[_Node] = []
    others: list[CallRow] = []
    same: dict[tuple[str, str], _Node] = {}  # by what was asked
    told: dict[str, _Node] = {}  # by chains and ids of answers, and by the answers alone
    for place, call in enumerate(calls):
        gist = gists.get(call.id)
        if not is_conversation(call, gist):
            others.append(call)
            continue
        gist = gist or _EMPTY
        fetched = told.get(f"id:{call.response_id}") if not gist.messages and call.response_id else None
        again = fetched or (same.get((gist.named, gist.whole)) if gist.messages else None)
        if again is not None and (fetched or is_bad(again.call)):
            again.calls.append(call)
            if gist.messages or gist.told:
                again.gist = _with_answer(again.gist, gist)
            node = again
        else:
            node = _Node(place, [call], gist)
            _link(node, told)
            nodes.append(node)
        same[gist.named, gist.whole] = node
        for name in (*gist.told, *(f"answer:{answer}" for answer in gist.answers if answer)):
            told[name] = node
        if call.response_id:
            told[f"id:{call.response_id}"] = node
    return nodes, others


def _without_false_starts(nodes: Iterable[_Node]) -> list[_Node]:
    """Of a beginning that failed, and was tried again in other words around the same prompt, one node."""
    kept: list[_Node] = []
    for node in nodes:
        while node.parent is None and node.gist.prompt and kept and kept[-1].parent is None:
            before = kept[-1]
            if before.children or not is_bad(before.call) or not _tried_again(before, node):
                break
            node.calls[:0] = kept.pop().calls
        kept.append(node)
    return kept


def _with_answer(asked: Gist, answered: Gist) -> Gist:
    """What was asked, as the first call tells it, and what a later one answered."""
    return structs.replace(
        asked,
        told=answered.told,
        answers=answered.answers,
        words=answered.words,
        tools=answered.tools,
        calls=answered.calls,
    )


def _link(node: _Node, told: Mapping[str, _Node]) -> None:
    gist = node.gist
    if gist.named and (parent := told.get(f"id:{gist.named}")) is not None:
        node.parent, node.by_name, node.behind = parent, True, gist.messages
    else:
        node.behind = gist.onto[0].behind if gist.onto else gist.messages
        for onto in gist.onto:
            exact = told.get(onto.chain)
            parent = exact or (told.get(f"answer:{onto.answer}") if onto.answer else None)
            if parent is not None:
                node.parent, node.behind, node.edited = parent, onto.behind, exact is None
                break
    if node.parent is not None:
        node.parent.children.append(node)


def _path(tree: list[_Node], wanted: _Node | None) -> list[_Node]:
    """From the root to the node that came last, by way of the one wanted, where that is in this tree.

    An answer is followed rather than a bad ending beside it.
    """
    within = wanted if wanted is not None and wanted.root is tree[0].root else None
    ends = [node for node in tree if not node.children and (within is None or _descends(node, within))]
    end = max(ends, key=lambda node: (not _overtaken(node), node.place))
    path = [end]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path[::-1]


def _overtaken(node: _Node) -> bool:
    """Whether it ended badly where another call got an answer."""
    beside = node.parent.children if node.parent else ()
    return is_bad(node.call) and any(not is_bad(one.call) for one in beside)


def _descends(node: _Node | None, from_: _Node) -> bool:
    while node is not None:
        if node is from_:
            return True
        node = node.parent
    return False


def _main(
    paths: Mapping[int, list[_Node]], trees: Mapping[int, list[_Node]], wanted: _Node | None
) -> tuple[list[list[_Node]], list[int]]:
    """The paths that follow another, in order, and the roots of those that went on beside them.

    The longest one leads. What lies between two others and offers tools as they do is held to be one of them.
    """
    lead = wanted.root.place if wanted is not None else max(paths, key=lambda place: (len(paths[place]), place))
    with_tools = any(node.gist.offered for node in paths[lead])
    shown: list[tuple[int, int]] = []  # (first, last) of those that lead to another, in order
    beside: list[int] = []
    for place in sorted(paths, key=lambda one: (one != lead, -len(paths[one]), one)):
        alike = len(paths[place]) > 1 or bool(paths[place][0].gist.offered) == with_tools
        span = trees[place][0].place, trees[place][-1].place
        at = bisect(shown, span)
        apart = (not at or shown[at - 1][1] < span[0]) and (at == len(shown) or span[1] < shown[at][0])
        if place == lead or (alike and apart):
            shown.insert(at, span)
        else:
            beside.append(place)
    return [paths[first] for first, _ in shown], sorted(beside)


def _steps(paths: Iterable[list[_Node]]) -> list[Step]:
    steps: list[Step] = []
    numbers: dict[_Node, int] = {}

    def add(node: _Node, begins: str, forks: Iterable[_Node] = ()) -> None:
        after = numbers.get(node.parent, 0) if node.parent else 0
        steps.append(_step(node, steps, begins, after, tuple(map(_fork, forks))))
        numbers[node] = len(steps)

    for path in paths:
        for node in path:
            beside = [one for one in (node.parent.children if node.parent else ()) if one is not node]
            # What was broken off and then asked otherwise stands in the conversation at its time.
            dead = [one for one in beside if not one.children and is_bad(one.call)]
            tried = [one for one in dead if _tried_again(one, node)]
            node.calls[:0] = [call for one in tried for call in one.calls]
            for one in dead:
                if one.place < node.place and one not in tried:
                    add(one, "cut")
            begins = "" if node.parent is not None else _begins(node, steps)
            add(node, begins, [one for one in beside if one not in dead])
            for one in dead:
                if one.place > node.place:
                    add(one, "cut")
    return steps


def _tried_again(failed: _Node, node: _Node) -> bool:
    """Whether the one asked what the other asks, and had nothing of an answer: clients add to a request they repeat."""
    silent = not (failed.gist.words or failed.gist.calls)
    return silent and failed.place < node.place and failed.gist.prompt == node.gist.prompt


def _begins(node: _Node, steps: Sequence[Step]) -> str:
    if not steps:
        return "start"
    return "rewritten" if node.gist.rules and node.gist.rules == steps[-1].gist.rules else "new"


def _step(node: _Node, before: Sequence[Step], begins: str, after: int = 0, forks: tuple[Fork, ...] = ()) -> Step:
    last = before[-1] if before else None
    ended = last.call.ended_ns if last is not None else None
    gap = node.calls[0].started_ns - ended if ended is not None else 0
    rules = last.gist.rules if last is not None else ""
    return Step(
        number=len(before) + 1,
        call=node.call,
        gist=node.gist,
        attempts=tuple(node.calls[:-1]),
        begins=begins,
        after=after,
        by_name=node.by_name,
        edited=node.edited,
        new_messages=node.behind,
        gap_ns=gap if gap > GAP else 0,
        tools_ms=max(0, gap) // 10**6 if last is not None and last.gist.calls and not begins else 0,
        rules_changed=bool(not begins and rules and node.gist.rules and rules != node.gist.rules),
        forks=forks,
    )


def _fork(node: _Node) -> Fork:
    return Fork(node.calls[0].seq, node.gist.prompt or node.gist.words, _size(node), node.calls[0].started_ns)


def _line_of(tree: Iterable[_Node]) -> tuple[Step, ...]:
    """All of a tree in the order of its calls, whatever parted from what."""
    steps: list[Step] = []
    for node in tree:
        steps.append(_step(node, steps, ""))
    return tuple(steps)


def _size(node: _Node) -> int:
    todo, count = [node], 0
    while todo:
        one = todo.pop()
        count += len(one.calls)
        todo += one.children
    return count


def _with_asides(steps: list[Step], beside: Iterable[list[_Node]]) -> tuple[Step, ...]:
    found: dict[int, list[Aside]] = {}
    began = [step.calls[0].started_ns for step in steps]
    for tree in beside:
        aside = Aside(_line_of(tree))
        place = max(0, bisect(began, tree[0].calls[0].started_ns) - 1)
        found.setdefault(place, []).append(aside)
    for at, step in enumerate(steps):
        behind = steps[at + 1] if at + 1 < len(steps) else None
        failed = behind.gist.failed if behind is not None and not behind.begins else 0
        if failed or at in found:
            steps[at] = replace(step, asides=tuple(found.get(at, ())), failed_tools=failed)
    return tuple(steps)


# --- sessions that came from this one


@dataclass(frozen=True, slots=True)
class Thread:
    """A sub-agent's session: what was asked, and its steps. `threads` came from it in turn; `deep`: not looked into."""

    session: str
    title: str
    agent: str
    models: tuple[str, ...]
    calls: tuple[CallRow, ...]
    steps: tuple[Step, ...]
    threads: tuple[tuple[int, Thread], ...] = ()  # with the number of the step that they came from
    deep: bool = False

    @property
    def all_calls(self) -> tuple[CallRow, ...]:
        return (*self.calls, *(call for _, thread in self.threads for call in thread.all_calls))


def step_at(steps: Sequence[Step], began_ns: int) -> int:
    """The number of the step whose answer a session that began then came from; 0 where there is none."""
    answered = [step for step in steps if (step.call.ended_ns or step.call.started_ns) <= began_ns + 10**9]
    callers = [step for step in answered if step.gist.calls]
    for found in (callers, answered, steps):
        if found:
            return found[-1].number
    return 0


# --- the chart


@dataclass(frozen=True, slots=True)
class Bar:
    """What went into one call, or at most into one of several. `dot`: the worst of them, "" where all is well."""

    first: int  # numbers of steps
    last: int
    read: int
    write: int
    fresh: int
    out: int
    dot: str
    words: str


MOST_BARS = 120
_WORST = ("err", "warn", "sub", "")


def bars(steps: Sequence[Step], dot: Callable[[Step], str], words: Callable[[Step], str]) -> tuple[Bar, ...]:
    """One per step, or one per bucket of steps, then of the one into which most went."""
    each = -(-len(steps) // MOST_BARS) or 1
    return tuple(_bar(steps[at : at + each], dot, words) for at in range(0, len(steps), each))


def _bar(steps: Sequence[Step], dot: Callable[[Step], str], words: Callable[[Step], str]) -> Bar:
    largest = max(steps, key=lambda step: step.call.usage.prompt if step.call.usage else -1)
    worst = min((dot(step) for step in steps), key=_WORST.index)
    told = next((step for step in steps if worst and dot(step) == worst), largest)
    usage = largest.call.usage
    return Bar(
        first=steps[0].number,
        last=steps[-1].number,
        read=usage.cache_read if usage else 0,
        write=usage.cache_write_5m + usage.cache_write_1h if usage else 0,
        fresh=usage.input if usage else 0,
        out=usage.output if usage else 0,
        dot=worst,
        words=words(told),
    )
