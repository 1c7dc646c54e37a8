"""What a session's page tells, made of index rows and of the turns that it shows.

The head, the chart and the outline are made of the index alone; only the turns shown are read from the log. Leaves out
parameters, fragments and downloads (`pages.session`), and markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from llm_proxy.dialects.digest import Digest, Usage
from llm_proxy.explorer import cache_miss, words
from llm_proxy.explorer.asking import BadValue, NotFound
from llm_proxy.explorer.conversation import Bar, Shape, Step, Thread, arrange, bars, is_bad, step_at
from llm_proxy.explorer.markdown import holds
from llm_proxy.explorer.reading import Calls, Kept
from llm_proxy.explorer.turns import HUGE, Block, Excerpt, Said, part_of, said_in, searched
from llm_proxy.formats.call import Call
from llm_proxy.index import threads
from llm_proxy.index.queries import CallRow, Cost, SessionRow
from llm_proxy.index.record import Record

AT_ONCE = 40  # turns
DEEPEST = 2  # sub-agents of sub-agents are shown so deep
_MOST_THREADS = 40
_MOST_FORKS = 12  # in one place
OUTLINED = 1000  # turns in the outline
# Bytes of two requests that are compared while a page is made, and how often.
_COMPARED, _MOST_COMPARED = 600_000, 6


# --- what is shown


@dataclass(frozen=True, slots=True)
class Note:
    """A line in the flow. `kind`: err, warn, info, gap; `call` is where its link leads, with `tab`."""

    kind: str
    head: str
    words: str = ""
    call: str = ""
    tab: str = ""
    link: str = ""  # the words of the link
    lost: Decimal | None = None
    equivalent: bool = False
    session: str = ""
    branch: int = 0


@dataclass(frozen=True, slots=True)
class ThreadLine:
    """One call of a sub-agent."""

    number: str  # `4.3`
    call: str
    words: str
    tools: tuple[str, ...]
    bad: bool
    took_ms: int | None


@dataclass(frozen=True, slots=True)
class SubThread:
    """A conversation within a turn: a sub-agent's, or one that was held beside. `session` is "" for the latter."""

    session: str
    title: str
    agent: str
    models: tuple[str, ...]
    calls: int
    took_ms: int
    cost: Cost
    lines: tuple[ThreadLine, ...]
    more: int
    answer: str
    threads: tuple[SubThread, ...]
    call: str = ""
    deep: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model with what it answers. `prompts` come before it; `notes` tell what went wrong."""

    number: int
    id: str  # of its anchor
    call: str
    seq: int
    started_ns: int
    asked_ns: int
    open: bool
    model: str
    status: int | None
    ending: str
    stop_reason: str
    usage: Usage | None
    cost: Cost
    ttfb_ms: int | None
    total_ms: int | None
    prompts: tuple[Block, ...]
    blocks: tuple[Block, ...]
    before: tuple[Note, ...]  # above the prompts
    notes: tuple[Note, ...]
    threads: tuple[SubThread, ...]
    earlier: int
    missing: bool
    height: int  # estimated, a class in style.css
    prompt_height: int
    found: bool = False


@dataclass(frozen=True, slots=True)
class OutlineRow:
    number: int
    prompt: str
    words: str
    cost: Cost
    label: str  # the trouble, instead of the cost
    tone: str  # err, warn or ""
    here: bool  # on this page


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the money went: `kind` is read, write, fresh, out, reason or other."""

    kind: str
    label: str
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Trouble:
    misses: int
    lost: Decimal | None
    lost_equivalent: bool
    errors: int
    failed_tools: int
    cut: int

    @property
    def count(self) -> int:
        return self.misses + self.errors + self.failed_tools + self.cut


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over the conversation with its sub-agents."""

    cost: Cost
    calls: int
    turns: int
    sub_agent_calls: int
    beside: int
    failed: int
    cut: int
    open: int
    left_out: int  # sub-agents of which nothing is in these sums
    usage: Usage
    model_ms: int
    wall_ms: int
    trouble: Trouble


@dataclass(frozen=True, slots=True)
class Window:
    first: int
    last: int
    total: int
    size: int = AT_ONCE

    @property
    def next(self) -> int:
        return self.last + 1 if self.last < self.total else 0

    @property
    def previous(self) -> int:
        return max(1, self.first - self.size) if self.first > 1 else 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What the conversation goes by: the beginning of its system prompt, and its tools."""

    call: str
    system: str
    system_chars: int
    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    session: SessionRow
    title: str
    models: tuple[str, ...]
    parent_title: str
    shown: str
    figures: Figures
    chart: tuple[Bar, ...]
    axis_tokens: int
    money: tuple[Spent, ...]
    outline: tuple[OutlineRow, ...]
    turns: tuple[Turn, ...]
    window: Window
    rules: Rules | None
    calls: tuple[CallRow, ...]  # of the table, from the one at `calls_from`
    calls_from: int
    calls_next: int  # 0 where there are no more
    marks: tuple[str, ...]
    branch: int
    open: int
    machines: tuple[str, ...] = ()  # that recorded it, where several share a record


@dataclass(frozen=True, slots=True)
class More:
    """A fragment of turns."""

    session: SessionRow
    turns: tuple[Turn, ...]
    window: Window
    marks: tuple[str, ...]
    branch: int


# --- made of the index


class Story:
    """A session with all that came of it, as the index knows it."""

    def __init__(self, record: Record, id: str, branch: int, call: str = "") -> None:
        """`call`: the id of a call that is to be shown, whichever branch it is on."""
        self.record = record
        session = threads.session(record.index, id)
        if session is None:
            raise NotFound(f"No session is recorded under {id[:100]!r}.")
        self.session, id = session, session.id
        self.rows = record.index.calls_of(id)
        gists = threads.gists(record.index, id)
        self.shape: Shape = arrange(self.rows, gists, branch)
        if call and not branch and self.shape.step_of(call) is None:
            seq = next((row.seq for row in self.rows if row.id == call), 0)
            self.shape = arrange(self.rows, gists, seq) if seq else self.shape
        if branch and not self.shape.branch and self.shape.steps:
            raise BadValue("branch", "the number of a call of this conversation", str(branch))
        children = threads.children(record.index, id)
        self.forks = [(one, _fork_words(record, one)) for one in children if one.forked]
        agents = [one for one in children if not one.forked]
        self.threads = [(step_at(self.steps, one.started_ns), found) for one, found in _threads(record, agents, 1)]
        self._rates: dict[tuple[str, str, str], Mapping[str, Decimal]] = {}
        self.misses = {step.number: miss for step in self.shape.steps if (miss := self._miss(step)) is not None}

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.shape.steps

    @property
    def all_calls(self) -> list[CallRow]:
        return [*self.rows, *(call for _, thread in self.threads for call in thread.all_calls)]

    def before(self, step: Step) -> CallRow | None:
        """The call whose cache a step could have used."""
        number, looked = step.after or step.number - 1, 0
        first: CallRow | None = None
        while number > 0 and looked < 8:
            other = self.steps[number - 1]
            if other.call.usage is not None and other.call.status == 200 and other.call.api == step.call.api:
                first = first or other.call
                if cache_miss.family(other.call.model) == cache_miss.family(step.call.model):
                    return other.call
            number, looked = other.after or number - 1, looked + 1
        return first

    def _miss(self, step: Step) -> cache_miss.Miss | None:
        return cache_miss.missed(self.before(step), step.call) if step.begins in ("", "rewritten") else None

    def rates(self, call: CallRow) -> Mapping[str, Decimal]:
        """Dollars per million tokens as a call of that model, tier and basis was charged; read once for each."""
        key = call.model, call.service_tier, call.basis
        if key not in self._rates:
            alike = (one for one in reversed(self.all_calls) if (one.model, one.service_tier, one.basis) == key)
            one = next((one for one in alike if one.usd is not None), None)
            found = cache_miss.rates_of(Call(one, None, self.record.response(one))) if one is not None else {}
            self._rates[key] = found
        return self._rates[key]


def _fork_words(record: Record, session: SessionRow) -> str:
    """What was said where a fork begins; its title is that of all the conversation."""
    gists = threads.gists(record.index, session.id)
    first = next((call for call in record.index.calls_of(session.id) if call.id in gists), None)
    return gists[first.id].prompt if first is not None else session.title


def _threads(record: Record, agents: Sequence[SessionRow], depth: int) -> Iterator[tuple[SessionRow, Thread]]:
    """The first ones are looked into, unless they lie too deep."""
    for number, one in enumerate(agents):
        yield one, _thread(record, one, depth if number < _MOST_THREADS else DEEPEST + 1)


def _thread(record: Record, session: SessionRow, depth: int) -> Thread:
    title = session.title or session.id
    if depth > DEEPEST:
        return Thread(session.id, title, session.agent, session.models, (), (), deep=True)
    rows = record.index.calls_of(session.id)
    shape = arrange(rows, threads.gists(record.index, session.id))
    children = [one for one in threads.children(record.index, session.id) if not one.forked]
    inner = ((step_at(shape.steps, one.started_ns), found) for one, found in _threads(record, children, depth + 1))
    return Thread(session.id, title, session.agent, session.models, tuple(rows), shape.steps, tuple(inner))


def _left_out(found: Iterable[Thread]) -> int:
    """Sessions that were not looked into, as far as they are known."""
    return sum(1 if one.deep else _left_out(inner for _, inner in one.threads) for one in found)


def cost_of(calls: Iterable[CallRow]) -> Cost:
    usd = equivalent = Decimal(0)
    unpriced = 0
    for call in calls:
        if call.basis == "subscription" and call.usd is not None:
            equivalent += call.usd
        elif call.usd is not None:
            usd += call.usd
        elif call.basis == "unpriced":
            unpriced += 1
    return Cost(usd, equivalent, unpriced)


def _usage(calls: Iterable[CallRow]) -> Usage:
    return sum((call.usage for call in calls if call.usage is not None), Usage())


def figures(story: Story) -> Figures:
    calls = story.all_calls
    began = min((call.started_ns for call in calls), default=0)
    ended = max((call.ended_ns or call.started_ns for call in calls), default=0)
    turns = sum(not step.bad and not step.call.open for step in story.steps)
    failed, cut, still = sum(call.failed for call in story.rows), _cut(story), sum(call.open for call in story.rows)
    return Figures(
        cost=cost_of(calls),
        calls=len(calls),
        turns=turns,
        sub_agent_calls=len(calls) - len(story.rows),
        beside=len(story.rows) - turns - failed - cut - still,
        failed=failed,
        cut=cut,
        open=still,
        left_out=_left_out(thread for _, thread in story.threads),
        usage=_usage(calls),
        model_ms=sum(call.total_ms or 0 for call in calls),
        wall_ms=(ended - began) // 10**6,
        trouble=_troubles(story),
    )


def _troubles(story: Story) -> Trouble:
    lost: Decimal | None = Decimal(0)
    equivalent = False
    for number, miss in story.misses.items():
        call = story.steps[number - 1].call
        one = cache_miss.cost_of(miss.lost, call.usage, story.rates(call)) if call.usage else None
        lost = None if one is None or lost is None else lost + one
        equivalent = equivalent or call.basis == "subscription"
    return Trouble(
        misses=len(story.misses),
        lost=lost if story.misses else None,
        lost_equivalent=equivalent,
        errors=sum(call.failed for call in story.rows),
        failed_tools=sum(step.failed_tools for step in story.steps),
        cut=_cut(story),
    )


def _cut(story: Story) -> int:
    """Calls whose answer breaks off, though nothing failed."""
    return sum(is_bad(call) and not call.failed for step in story.steps for call in step.calls)


def axis(most: int) -> int:
    """The top of the chart: a round number above all bars, with room for their dots."""
    wanted = max(most * 1.12, 10)
    unit = 10 ** (len(str(int(wanted))) - 1)
    return int(next(step * unit for step in (1, 1.2, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= wanted))


def _plain(said: str) -> str:
    return re.sub(r"[`*]{1,3}|^[#>\s]+", "", said).strip()


def title_of(said: str) -> str:
    """A person's first words as a heading: one sentence, without the marks of Markdown."""
    plain = _plain(said)
    sentence = re.match(r"(.{24,160}?[.!?…])(?=\s|$)", plain)
    if sentence:
        return sentence[1].rstrip(".")
    return plain if len(plain) <= 160 else plain[:160].rsplit(" ", 1)[0] + "…"


_CLASSES = (
    ("read", "cache read", ("cache_read",)),
    ("write", "cache write", ("cache_write_5m", "cache_write_1h")),
    ("fresh", "fresh input", ("input",)),
)


def money(story: Story) -> tuple[Spent, ...]:
    """By token class, dearest first; what the classes do not explain is told as other."""
    groups: dict[tuple[str, str, str], list[CallRow]] = {}
    for call in story.all_calls:
        if call.usd is not None and call.usage is not None:
            groups.setdefault((call.model, call.service_tier, call.basis), []).append(call)
    found: dict[str, Decimal] = {}
    labels = {kind: label for kind, label, _ in _CLASSES} | {"out": "output", "reason": "reasoning", "other": "other"}
    total = Decimal(0)
    for calls in groups.values():
        rates, usage = story.rates(calls[-1]), _usage(calls)
        total += sum((call.usd for call in calls if call.usd is not None), Decimal(0))
        for kind, _, names in _CLASSES:
            found[kind] = found.get(kind, Decimal(0)) + sum(_times(usage, rates, name) for name in names)
        out = rates.get("output", Decimal(0))
        reasoning = rates.get("reasoning", out)
        found["reason"] = found.get("reason", Decimal(0)) + usage.reasoning * reasoning / 1_000_000
        found["out"] = found.get("out", Decimal(0)) + (usage.output - usage.reasoning) * out / 1_000_000
    rest = total - sum(found.values(), Decimal(0))
    if rest > total / 200:
        found["other"] = rest
    told = (Spent(kind, labels[kind], usd) for kind, usd in found.items() if usd > 0)
    return tuple(sorted(told, key=lambda one: -one.usd))


def _times(usage: Usage, rates: Mapping[str, Decimal], name: str) -> Decimal:
    tokens: int = getattr(usage, name)
    return tokens * rates.get(name, Decimal(0)) / 1_000_000


def outline(story: Story, window: Window) -> tuple[OutlineRow, ...]:
    agents: dict[int, int] = {}
    for number, thread in story.threads:
        agents[number] = agents.get(number, 0) + len(thread.all_calls)
    first = max(0, min(window.first - OUTLINED // 2, len(story.steps) - OUTLINED))
    steps = story.steps[first : first + OUTLINED]
    return tuple(_outlined(story, step, window, agents.get(step.number, 0)) for step in steps)


def _outlined(story: Story, step: Step, window: Window, agents: int) -> OutlineRow:
    label, tone = _label(story, step)
    if not label and agents:
        label = f"+{agents}"
    gist = step.gist
    told = gist.tools[0] + (f" +{gist.calls - 1}" if gist.calls > 1 else "") if gist.tools else gist.words
    if not told:
        told = "still open" if step.call.open else "no answer"
    here = window.first <= step.number <= window.last
    return OutlineRow(
        step.number, _plain(gist.prompt), told if gist.tools else _plain(told), cost_of(step.calls), label, tone, here
    )


def _label(story: Story, step: Step) -> tuple[str, str]:
    """The trouble of a step in a word, the worst first."""
    failed = [call for call in step.calls if call.failed]
    if failed:
        return str(failed[0].status or failed[0].ending.replace("_", " ")), "err"
    if step.failed_tools:
        return ("failed" if step.failed_tools == 1 else f"{step.failed_tools} failed"), "err"
    if any(map(is_bad, step.calls)):
        return "cut", "warn"
    if step.number in story.misses:
        return "miss", "warn"
    return "", ""


def chart(story: Story) -> tuple[Bar, ...]:
    with_agents = {number for number, _ in story.threads}

    def dot(step: Step) -> str:
        return _label(story, step)[1] or ("sub" if step.number in with_agents or step.asides else "")

    def told(step: Step) -> str:
        row = _outlined(story, step, Window(0, 0, 0), 0)
        return (row.words if not row.label else f"{row.words} ({row.label})")[:90]

    return bars(story.steps, dot, told)


# --- the turns


_SAID: Kept[dict[int, Said]] = Kept(16)


def turns(story: Story, window: Window, found: str = "", marks: Sequence[str] = ()) -> tuple[Turn, ...]:
    """`found` is a call that was searched for, by the words in `marks`: what holds them is not cut off before them."""
    steps = story.steps[window.first - 1 : window.last]
    if not steps:
        return ()
    around = story.steps[max(0, window.first - 2) : window.last + 4]
    places = ((one.number, one.call.id, one.call.request, one.call.response) for one in around)
    key = (story.record.index.viewer, str(story.record.logs), window.first, window.last, *places)
    reader = Calls(story.record).reader
    said = _SAID.get(key, lambda: said_in(story.steps, window.first, window.last, reader))
    at = story.shape.step_of(found) if found and marks else None
    if at is not None:
        # Results of tools are in the request that follows them, and shown with their calls.
        near = {at.number, at.after} & said.keys()
        said = said | {number: searched(said[number], _Whole(story, marks)) for number in near}
    sub: dict[int, list[SubThread]] = {}
    for number, thread in story.threads:
        sub.setdefault(number, []).append(_sub_thread(thread, str(number)))
    compared = [0]
    last_tool = max((step.number for step in story.steps if step.gist.calls), default=0)
    return tuple(
        _turn(story, step, said[step.number], sub.get(step.number, []), compared, last_tool, found) for step in steps
    )


class _Whole:
    """The whole of a part that was cut, where it holds the words."""

    def __init__(self, story: Story, marks: Sequence[str]) -> None:
        self._calls = Calls(story.record)
        self._rows = {row.id: row for row in story.rows}
        self._marks = marks
        self._digests: dict[str, Digest | None] = {}

    def __call__(self, excerpt: Excerpt) -> str:
        if holds(excerpt.text, self._marks) or excerpt.chars > HUGE or excerpt.call not in self._rows:
            return ""
        if excerpt.call not in self._digests:
            self._digests[excerpt.call] = self._calls.digest(self._rows[excerpt.call])
        digest = self._digests[excerpt.call]
        found = part_of(digest, excerpt.part) if digest is not None else None
        return found.text if found is not None and holds(found.text, self._marks) else ""


def _turn(
    story: Story,
    step: Step,
    said: Said,
    agents: Sequence[SubThread],
    compared: list[int],
    last_tool: int,
    found: str,
) -> Turn:
    call = step.call
    blocks = _opened(said.blocks) if step.number == last_tool else said.blocks
    beside = [_aside(aside.steps, step.number) for aside in step.asides]
    return Turn(
        number=step.number,
        id=f"t{step.number}",
        call=call.id,
        seq=call.seq,
        started_ns=call.started_ns,
        asked_ns=step.calls[0].started_ns,
        open=call.open,
        model=call.model,
        status=call.status,
        ending=call.ending,
        stop_reason=call.stop_reason,
        usage=call.usage,
        cost=cost_of(step.calls),
        ttfb_ms=call.ttfb_ms,
        total_ms=call.total_ms,
        prompts=said.prompts,
        blocks=blocks,
        before=tuple(_before(story, step)),
        notes=tuple(_notes(story, step, compared)),
        threads=(*agents, *beside),
        earlier=said.earlier,
        missing=said.missing,
        height=_height(blocks),
        prompt_height=_height(said.prompts),
        found=bool(found) and any(one.id == found for one in step.calls),
    )


def _opened(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The last tool of a conversation is open."""
    last = max((at for at, block in enumerate(blocks) if block.tool is not None), default=-1)
    return tuple(
        replace(block, tool=replace(block.tool, open=True)) if at == last and block.tool else block
        for at, block in enumerate(blocks)
    )


def _height(blocks: Sequence[Block]) -> int:
    """1 to 6, by what is likely to be seen of the blocks."""
    pixels = sum(map(_pixels, blocks))
    return next((size for size, limit in enumerate((120, 240, 480, 960, 1920), start=1) if pixels < limit), 6)


def _pixels(block: Block) -> int:
    if block.kind in ("text", "refusal") and block.said:
        return 22 * (block.said.text.count("\n") + len(block.said.text) // 90 + 1)
    if block.kind == "you":
        return sum(map(_pixels, block.blocks))
    if block.tool and block.tool.open:
        return 60 + 18 * min(18, block.tool.result.said.lines if block.tool.result else 4)
    return 42


def _before(story: Story, step: Step) -> Iterator[Note]:
    if step.gap_ns:
        yield Note("gap", f"{words.duration(step.gap_ns / 10**6)} later")
    if step.begins == "rewritten":
        what = (
            f"This request repeats no answer from above; it begins anew with {_count(step.gist.messages, 'message')}."
        )
        yield Note(
            "info", "History rewritten", f"Compacted, or edited by the client. {what}", step.call.id, "diff", "diff"
        )
    elif step.edited:
        what = "The answers are those above, but the client has changed something that was said before."
        yield Note("info", "History edited", what, step.call.id, "diff", "diff")
    elif step.begins == "new":
        yield Note("info", "Another conversation", "It shares nothing with the one above.")
    if step.rules_changed:
        what = "The system prompt, or the tools offered, are not those of the turn before."
        yield Note("info", "Instructions changed", what, step.call.id, "diff", "diff")
    for fork in step.forks[:_MOST_FORKS]:
        what = f"“{fork.prompt}” · {_count(fork.calls, 'call')}" if fork.prompt else _count(fork.calls, "call")
        yield Note("info", "Branch", what, link="open the branch", branch=fork.seq)
    if len(step.forks) > _MOST_FORKS:
        yield Note("info", f"{len(step.forks) - _MOST_FORKS:,} more branches", "Their calls are in the table of calls.")


def _notes(story: Story, step: Step, compared: list[int]) -> Iterator[Note]:
    for at, call in enumerate(step.attempts):
        yield _failed(call, step.calls[at + 1])
    if is_bad(step.call):
        yield _failed(step.call, None)
    miss = story.misses.get(step.number)
    if miss is not None:
        yield _missed(story, step, miss, compared)
    for fork, said in story.forks:
        if fork.parent_seq is not None and any(call.seq == fork.parent_seq for call in step.calls):
            what = f"“{said}” · {_count(fork.calls, 'call')}" if said else _count(fork.calls, "call")
            yield Note("info", "Forked after this turn", what, link="open the fork", session=fork.id)


_ENDINGS = {
    "refused": "refused by llm-proxy",
    "upstream_failed": "upstream failed",
    "client_gone": "cut: the client left",
    "timed_out": "timed out",
    "interrupted": "interrupted: llm-proxy was stopped",
}


def _failed(call: CallRow, again: CallRow | None) -> Note:
    head = " ".join(filter(None, (str(call.status or "") if call.failed else "", call.error_type)))
    head = head or _ENDINGS.get(call.ending, "cut: the answer breaks off")
    told = [f"after {words.duration(call.total_ms)}" if call.total_ms is not None else ""]
    if call.error and call.error not in head:
        told.append(call.error[:300].rstrip("."))  # another clause or our full stop follows
    if again is not None and call.ended_ns is not None:
        waited = words.duration(max(0, again.started_ns - call.ended_ns) / 10**6)
        outcome = "and failed again" if is_bad(again) else "is still open" if again.open else "and got this answer"
        told.append(f"the client tried again {waited} later {outcome}")
    what = "; ".join(filter(None, told))
    return Note(
        "err" if call.failed else "warn",
        head,
        what + "." if what else "",
        call.id,
        link="failed call" if again else "call",
    )


def _missed(story: Story, step: Step, miss: cache_miss.Miss, compared: list[int]) -> Note:
    call, before = step.call, story.before(step)
    lost = cache_miss.cost_of(miss.lost, call.usage, story.rates(call)) if call.usage else None
    lead = f"{words.tokens(miss.lost)} tokens that were in the cache were not read from it."
    small = before is not None and sum((one.request or ("", 0, 0))[2] for one in (before, call)) < _COMPARED
    if before is not None and small and compared[0] < _MOST_COMPARED:
        compared[0] += 1
        both = [Call(one, *story.record.entries(one)) for one in (before, call)]
        diagnosis = cache_miss.diagnose(both[0], both[1], story.rates(call))
        if diagnosis is not None and diagnosis.lost:
            lead = f"{diagnosis.lead} {words.exact(diagnosis.lost)} tokens not read."
            lost = diagnosis.usd if diagnosis.usd is not None else lost
    return Note("warn", "Cache missed", lead, call.id, "", "why", lost, call.basis == "subscription")


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _sub_thread(thread: Thread, number: str) -> SubThread:
    inner = tuple(_sub_thread(one, f"{number}.{at}") for at, one in thread.threads)
    shown = thread.steps[:24]
    calls = thread.all_calls
    return SubThread(
        session=thread.session,
        title=thread.title,
        agent=thread.agent,
        models=thread.models,
        calls=len(calls),
        took_ms=_span(thread.calls),
        cost=cost_of(calls),
        lines=tuple(_line(step, number) for step in shown),
        more=len(thread.steps) - len(shown),
        answer=thread.steps[-1].gist.words if thread.steps else "",
        threads=inner,
        deep=thread.deep,
    )


def _aside(steps: Sequence[Step], number: int) -> SubThread:
    calls = [call for step in steps for call in step.calls]
    return SubThread(
        session="",
        title=steps[0].gist.prompt,
        agent="",
        models=tuple(dict.fromkeys(call.model for call in calls if call.model)),
        calls=len(calls),
        took_ms=_span(calls),
        cost=cost_of(calls),
        lines=tuple(_line(step, str(number)) for step in steps[:24]),
        more=max(0, len(steps) - 24),
        answer=steps[-1].gist.words,
        threads=(),
        call=calls[0].id,
    )


def _span(calls: Sequence[CallRow]) -> int:
    if not calls:
        return 0
    return (max(call.ended_ns or call.started_ns for call in calls) - calls[0].started_ns) // 10**6


def _line(step: Step, number: str) -> ThreadLine:
    gist = step.gist
    return ThreadLine(f"{number}.{step.number}", step.call.id, gist.words, gist.tools, step.bad, step.call.total_ms)
