"""`llm-proxy export --format dataset`: four styles, no repetition, no leak between parts, and nothing private unasked."""

import io
import json
import stat

import pytest
import yaml

from llm_proxy.formats import dataset, privacy
from llm_proxy.formats.call import Call
from tests.calls import row
from tests.recorded import QUESTIONS
from tests.test_ask import home, provider

__all__ = ["home", "provider"]

AWS = "AKIA" + "QX7ZP4M2RT5WN8KD"
PRIVATE = f"I am in /home/marguerite/work, write to marguerite.d@example.com; the key is {AWS}"


def answered(
    question, answer, number=1, *, session="s", thinking="", tools=(), model="claude-sonnet-4-5", before=(), **about
):
    """A Messages call with its answer."""
    asked = {
        "model": model,
        "max_tokens": 9,
        "system": "Be terse",
        "messages": [*before, {"role": "user", "content": question}],
    }
    content = [{"type": "thinking", "thinking": thinking, "signature": "sig"}] if thinking else []
    content += [{"type": "text", "text": answer}] if answer else []
    content += [{"type": "tool_use", "id": "t1", "name": name, "input": {"path": "/tmp/x"}} for name in tools]
    told = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    request = {"method": "POST", "path": "/v1/messages", "headers": {}, "body": json.dumps(asked)}
    response = {"status": 200, "headers": {"Content-Type": ["application/json"]}, "body": json.dumps(told)}
    return Call(row(number, at=60 * number, session=session, model=model, **about), request, response)


def written(calls, *, shares=None, clean=True, style="messages"):
    """(rows by part, what was told of them)."""
    outs = {part: io.BytesIO() for part in shares or {"data": 1.0}}
    told = dataset.write(calls, outs, style=style, shares=shares, clean=privacy.cleaner() if clean else None)
    return {part: [json.loads(line) for line in out.getvalue().splitlines()] for part, out in outs.items()}, told


def rows_of(calls, **options):
    return written(calls, **options)[0]["data"]


# --- styles


def test_messages_have_openais_roles_and_the_thinking():
    """System, user, assistant, tool; a tool's result is a message of its own."""
    before = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t0", "name": "read", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "a file"}]},
    ]
    (told,) = rows_of([answered("and now?", "It is a file.", thinking="hm", before=before)])
    roles = [message["role"] for message in told["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user", "assistant"]
    assert told["messages"][2]["tool_calls"][0]["function"]["name"] == "read"
    assert json.loads(told["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert told["messages"][3] == {"role": "tool", "tool_call_id": "t0", "content": "a file"}
    assert told["messages"][5] == {"role": "assistant", "content": "It is a file.", "reasoning": "hm"}


def test_reasoning_pairs_each_question_with_its_own_answer():
    """proxy-llm's row; there the answer of the turn before stood behind a question."""
    before = [{"role": "user", "content": "first question"}, {"role": "assistant", "content": "first answer"}]
    (told,) = rows_of(
        [answered("import os: second question", "second answer", thinking="why", before=before)], style="reasoning"
    )
    assert set(told) == {
        *("id", "problem", "system", "thinking", "solution", "difficulty", "category", "model", "provider"),
        *("hash", "source"),
    }
    assert told["problem"] == "first question\n\nimport os: second question"
    assert (told["thinking"], told["solution"]) == ("why", "second answer")
    assert (told["difficulty"], told["category"], told["source"]) == ("medium", "code", "llm-proxy/anthropic")
    assert len(told["hash"]) == 16 and told["id"] == f"proxy_{told['hash']}"


def test_sharegpt_has_turns_for_calls_and_results():
    """system, human, gpt, function_call, observation."""
    before = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t0", "name": "read", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "a file"}]},
        {"role": "assistant", "content": "seen"},
    ]
    (told,) = rows_of([answered("thanks", "You are welcome", before=before)], style="sharegpt")
    turns = told["conversations"]
    assert [turn["from"] for turn in turns] == [
        "system",
        "human",
        "function_call",
        "observation",
        "gpt",
        "human",
        "gpt",
    ]
    assert json.loads(turns[2]["value"]) == {"name": "read", "arguments": {"a": 1}}


def test_openai_finetune_has_no_other_fields():
    """What OpenAI's own checks take: no reasoning, and the tools that were called are named."""
    (told,) = rows_of([answered("look", "", thinking="hm", tools=("read",))], style="openai-finetune")
    assert set(told) == {"messages", "tools"} and told["tools"][0]["function"]["name"] == "read"
    allowed = {"role", "content", "tool_calls", "tool_call_id"}
    assert all(set(message) <= allowed for message in told["messages"])
    assert told["messages"][-1]["role"] == "assistant"


# --- what is in it


def test_nothing_is_told_twice():
    """The same conversation in another session, in every style, and a call that a later one continued."""
    calls = [
        answered("same", "the answer", 1),
        answered(
            "more",
            "again",
            2,
            before=[{"role": "user", "content": "same"}, {"role": "assistant", "content": "the answer"}],
        ),
        answered("alone", "one answer", 3, session="t"),
        answered("alone", "one answer", 4, session="u"),
    ]
    for style in dataset.STYLES:
        parts, told = written(calls, style=style)
        assert len(parts["data"]) == 2 and told.repeated == 1, style


def test_failed_and_empty_calls_are_left_out_and_counted():
    parts, told = written(
        [answered("a", "good answer"), answered("b", "bad", failed=True), answered("c", "", session="t")]
    )
    assert len(parts["data"]) == 1 and told.unfit == 2


def test_parts_follow_from_how_a_conversation_begins():
    """The same each time, near the shares asked for, and forks of one conversation in one part."""
    shares = {"train": 0.9, "val": 0.1}
    calls = [answered(f"question {number}", f"answer {number}", number, session=f"s{number}") for number in range(400)]
    first, _ = written(calls, shares=shares)
    again, _ = written(reversed(calls), shares=shares)
    assert {part: sorted(map(str, rows)) for part, rows in first.items()} == {
        part: sorted(map(str, rows)) for part, rows in again.items()
    }
    assert 20 <= len(first["val"]) <= 65 and len(first["train"]) + len(first["val"]) == 400
    opening = [{"role": "user", "content": "one opening"}, {"role": "assistant", "content": "yes?"}]
    forks = [answered(f"fork {n}", f"answer {n}", n, session=f"f{n}", before=opening) for n in range(40)]
    assert sorted(len(rows) for rows in written(forks, shares=shares)[0].values()) == [0, 40]


@pytest.mark.parametrize("style", list(dataset.STYLES))
def test_nothing_private_unless_it_is_asked_for(style):
    """Secrets that were recorded without redaction, mail addresses, owners of home folders, ids and times."""
    call = answered(PRIVATE, f"So {PRIVATE}", thinking=PRIVATE, session="the-session", project="secret-project")
    (told,) = rows_of([call], style=style)
    text = json.dumps(told)
    for word in ("marguerite", "example.com", AWS, "the-session", "secret-project", "call-1", "2023-11"):
        assert word not in text, word
    assert "/home/user/work" in text and "<EMAIL>" in text and "<AWS_KEY>" in text
    (asked,) = rows_of([call], style=style, clean=False)
    text = json.dumps(asked)
    assert "marguerite.d@example.com" in text and asked["session"] == "the-session"
    assert asked["timestamp"].startswith("2023-11")


def test_paths_and_addresses_of_all_kinds():
    clean = privacy.cleaner((("TEAM", r"team-\d+"),))
    told = {
        "/Users/ann/x and '/home/bob'": "/Users/user/x and '/home/user'",
        r"C:\Users\Carl Q\y": r"C:\Users\user Q\y",
        r'{"p": "C:\\Users\\dora\\z"}': r'{"p": "C:\\Users\\user\\z"}',
        "mail a.b+c@sub.example.co.uk.": "mail <EMAIL>.",
        "x = a @ b; @decorator": "x = a @ b; @decorator",
        "/homework/essay": "/homework/essay",
        "by team-42": "by <TEAM>",
        "": "",
    }
    assert {text: clean(text) for text in told} == told


# --- the command


def test_a_folder_gets_parts_and_a_card(home, tmp_path):
    """Private files; the card counts what is there, and is what hubs read."""
    folder = tmp_path / "set"
    said = home.run(
        "export", "--format", "dataset", "--split", "train=0.5,val=0.5", "--output", str(folder), "--from", "today"
    ).stdout
    assert said == f"9 calls written to {folder}\n"
    assert {path.name for path in folder.iterdir()} == {"train.jsonl", "val.jsonl", "README.md"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    counts = {part: len((folder / f"{part}.jsonl").read_text().splitlines()) for part in ("train", "val")}
    whole = home.run("export", "--format", "dataset").stdout.splitlines()
    assert sum(counts.values()) == len(whole) >= 3 and QUESTIONS[0] in whole[0] + "".join(whole)
    card = (folder / "README.md").read_text()
    for part, count in counts.items():
        assert f"| {part} | {count} | `{part}.jsonl` |" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other" and [one["split"] for one in head["configs"][0]["data_files"]] == ["train", "val"]
    assert "- from: today" in card and "## Licence" in card and "claude-sonnet-4-6" in card
    again = tmp_path / "again"
    home.run("export", "--format", "dataset", "--split", "train=0.5,val=0.5", "--output", str(again))
    assert (again / "train.jsonl").read_bytes() == (folder / "train.jsonl").read_bytes()


def test_an_existing_folder_without_parts(home, tmp_path):
    """One file in it, and the card."""
    home.run("export", "--format", "dataset", "--style", "sharegpt", "--include-private", "--output", f"{tmp_path}/")
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"data.jsonl", "README.md"}
    assert "keep it to yourself" in (tmp_path / "README.md").read_text()
    assert all(json.loads(line)["session"] for line in (tmp_path / "data.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "dataset", "--split", "train=0.9,val=0.2", "--output", "x"), "'train=0.9,val=0.2'"),
        (("--format", "dataset", "--split", "../a=1", "--output", "x"), "'../a=1'"),
        (("--format", "dataset", "--split", "a=0.5,a=0.5", "--output", "x"), "'a=0.5,a=0.5'"),
        (("--format", "dataset", "--split", "train=0.9,val=0.1"), "--output must name a folder"),
        (("--format", "dataset", "--style", "poem"), "poem"),
        (("--format", "csv", "--style", "messages"), "--style goes with --format dataset"),
    ],
)
def test_a_wrong_option_is_named(home, options, words):
    """And nothing is written."""
    done = home.run("export", *options, status=2)
    assert words in done.stderr and not (home.folder / "x").exists()
