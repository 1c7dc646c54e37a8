"""What changed between two requests: found by structure, marked by words, in time that grows with their size."""

import copy
import json
import random
import string
import time

import pytest

from llm_proxy.explorer import diffing
from llm_proxy.explorer.diffing import Break, aligned, common_prefix, marked, sections, texts


def request(tools=31, messages=21):
    return {
        "model": "m",
        "max_tokens": 32000,
        "system": [{"type": "text", "text": "You are.\nBe brief.\n"}],
        "tools": [
            {"name": f"tool{n}", "description": f"Does {n} at the end of the current day."} for n in range(tools)
        ],
        "messages": [{"role": "user", "content": f"message {n}"} for n in range(messages)],
    }


def by_name(before, after, **how):
    return {one.name: one for one in sections(before, after, **how)}


def kinds(section):
    return [(row.kind, row.text) for row in section.rows]


def test_sections_with_counts_and_equal_ones_without_rows():
    """Parameters, tools, system, messages, headers, each once."""
    found = by_name(request(), request(), headers=({"A": ["1"]}, {"A": ["1"]}), scale=(0.25, 0.25))
    assert list(found) == ["Parameters", "Tools", "System", "Messages", "Headers"]
    assert all(one.equal and not one.rows for one in found.values())
    assert found["Tools"].summary == "31 tools equal"
    assert (found["Messages"].count_before, found["Messages"].count_after) == (21, 21)
    assert found["Tools"].tokens_after == round(len(json.dumps(request()["tools"])) / 4)


def test_a_changed_text_has_its_path_and_its_words_marked():
    """With what is equal around it in one line, and the rule where the cached prefix ends between old and new."""
    after = request()
    after["tools"][17]["description"] = "Does 17 at the end of a given day."
    at = Break(("tools", 17, "description"), "cached prefix ends here: 9,214 tokens")
    tools = by_name(request(), after, at=at)["Tools"]
    assert (tools.changed, tools.added, tools.removed) == (1, 0, 0)
    assert kinds(tools) == [
        ("same", "tools[0…16] equal"),
        ("path", "tools[17] tool17 › description"),
        ("del", "Does 17 at the end of the current day."),
        ("break", "cached prefix ends here: 9,214 tokens"),
        ("add", "Does 17 at the end of a given day."),
        ("same", "tools[18…30] equal"),
    ]
    assert [text for text, mark in tools.rows[2].pieces if mark] == ["the", "current"]


def test_tools_that_came_and_went_are_told_by_name():
    """Though all places behind them have moved."""
    after = request(tools=31)
    del after["tools"][3]
    after["tools"].insert(10, {"name": "new"})
    tools = by_name(request(), after)["Tools"]
    assert (tools.changed, tools.added, tools.removed) == (0, 1, 1)
    assert [row.text for row in tools.rows if row.kind == "path"] == ["tools[3] tool3", "tools[10] new"]


def test_added_messages_are_told_block_by_block():
    """Each block has a head, and what it says stands in lines."""
    after = request()
    use = {"type": "tool_use", "id": "t", "name": "Edit", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "one\ntwo", "cache_control": {"type": "ephemeral"}}
    after["messages"] += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    messages = by_name(request(), after)["Messages"]
    assert messages.added == 2
    assert kinds(messages) == [
        ("same", "messages[0…20] equal"),
        ("path", "messages[21] assistant › tool_use Edit"),
        ("add", '{"a": 1}'),
        ("path", "messages[22] user › tool_result · cache_control"),
        ("add", "one"),
        ("add", "two"),
    ]


def test_null_false_and_zero_are_not_nothing():
    """A value that is null has not gone; true is not 1; keys in another order are told."""
    assert by_name({"a": None}, {})["Parameters"].removed == 1
    came = by_name({}, {"a": None})["Parameters"]
    assert (came.added, kinds(came)) == (1, [("path", "a"), ("add", "null")])
    assert by_name({"a": True}, {"a": 1})["Parameters"].changed == 1
    assert by_name({"a": 1}, {"a": 1.0})["Parameters"].changed == 1
    moved = by_name({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}})["Parameters"]
    assert moved.changed == 1
    assert moved.rows[-1].text == "the same keys in another order"


@pytest.mark.parametrize("seed", range(40))
def test_aligned_lists_hold_every_item_once_and_in_order(seed):
    """Whatever was put in, taken out or changed."""
    rng = random.Random(seed)
    before = [rng.choice(string.ascii_lowercase[:6]) for _ in range(rng.randrange(30))]
    after = [one for one in before if rng.random() > 0.2]
    for _ in range(rng.randrange(5)):
        after.insert(rng.randrange(len(after) + 1), rng.choice("xyz"))
    pairs = aligned(before, after)
    assert sorted(one for one, _ in pairs if one is not None) == list(range(len(before)))
    assert [other for _, other in pairs if other is not None] == list(range(len(after)))


@pytest.mark.parametrize("names", [(), ("one",) * 40])
def test_what_is_equal_is_paired_with_its_equal(names):
    """Where items only went or came, no pair is of two that differ, whatever they are called."""
    before = [str(n) for n in range(30)]
    after = [one for n, one in enumerate(before) if n not in (4, 11, 12)]
    after.insert(20, "new")
    pairs = aligned(before, after, names, names)
    assert all(before[one] == after[other] for one, other in pairs if one is not None and other is not None)
    assert [one for one, other in pairs if other is None] == [4, 11, 12]


def test_long_lists_are_compared_where_they_differ():
    """Beyond what is compared pair by pair, what is equal before and after the difference stays so."""
    before = [str(n) for n in range(5000)]
    after = [*before[:2500], "new", *before[2500:]]
    assert [(one, other) for one, other in aligned(before, after) if one is None or other is None] == [(None, 2500)]
    del after[-5]
    changed = [(one, other) for one, other in aligned(before, after) if one is None or other is None]
    assert changed == [(None, 2500), (4995, None)]


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_a_text_are_its_lines(seed):
    """What is kept or taken away stands in the one text, what is kept or added in the other."""
    rng = random.Random(seed)
    before = [rng.choice(["alpha beta", "gamma", "", "delta  epsilon"]) + str(rng.randrange(4)) for _ in range(30)]
    after = [one for one in before if rng.random() > 0.15]
    after.insert(rng.randrange(len(after) + 1), "new line")
    found = list(texts("\n".join(before), "\n".join(after)))
    assert {row.text for row in found if row.kind == "del"} <= set(before)
    assert {row.text for row in found if row.kind == "add"} <= set(after)
    for row in found:
        if row.kind in ("keep", "add"):
            assert after[row.number - 1] == row.text
        elif row.kind == "del":
            assert before[row.number - 1] == row.text


@pytest.mark.parametrize(
    ("one", "other", "length"), [("", "", 0), ("a", "", 0), ("abc", "abd", 2), ("ab", "abc", 2), ("xa", "ya", 0)]
)
def test_common_prefix(one, other, length):
    """In characters."""
    assert common_prefix(one, other) == length
    assert common_prefix("z" * 5000 + one, "z" * 5000 + other) == 5000 + length


def test_long_lines_show_the_place_that_differs():
    """A line of 100 kB is not shown for one word."""
    long = "word " * 20_000
    was, now = marked(long + "the end" + long, long + "an end" + long)
    assert sum(len(text) for text, _ in now) < 300
    assert ("an", True) in now
    assert ("the", True) in was
    assert now[0][0].startswith("…")


def test_two_megabytes_are_compared_in_time():
    """400 messages, one of them changed; and texts that have nothing in common are told as replaced."""
    before = request(messages=0)
    before["messages"] = [{"role": "user", "content": f"{n} " + "lorem ipsum dolor " * 300} for n in range(400)]
    after = copy.deepcopy(before)
    after["messages"][200]["content"] += "!"
    after["messages"].append({"role": "user", "content": "x"})
    rng = random.Random(1)
    after["system"][0]["text"] = "\n".join(str(rng.random()) for _ in range(20_000))
    before["system"][0]["text"] = "\n".join(str(rng.random()) for _ in range(20_000))
    start = time.process_time()
    found = by_name(before, after)
    took = time.process_time() - start
    assert (found["Messages"].changed, found["Messages"].added) == (1, 1)
    assert len(found["System"].rows) < 200
    assert took < 5


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"messages": []}),
        ([], {}),
        ("x", 5),
        ({"tools": 5}, {"tools": [1]}),
        ({"messages": [None, [[]], {"content": [None, {"type": 4}]}]}, {"messages": {"a": 1}}),
        ({"input": "text"}, {"input": [{"role": "user"}]}),
        ({"messages": []}, {"messages": [{"content": [None, 5, {"text": None}]}]}),
    ],
)
def test_odd_bodies_are_compared_too(before, after):
    """Requests are anybody's."""
    assert any(not one.equal for one in sections(before, after))
    assert all(one.equal for one in sections(before, before))


def test_deep_bodies_do_not_end_the_recursion():
    """Nested beyond what is walked."""
    deep, other = [], []
    for _ in range(300):
        deep, other = [deep, 1], [other, 2]
    assert diffing.sections({"messages": deep}, {"messages": other})
