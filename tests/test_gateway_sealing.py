"""Provider keys at rest: what opens where, the canary, and a rotation that may be killed at any moment."""

import asyncio
import base64
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy import text as sql

from llm_proxy.gateway import rotating
from llm_proxy.gateway.facts import Provider, ProviderKey
from llm_proxy.gateway.options import Secrets
from llm_proxy.gateway.sealing import OURS, TOKENTRACER, Sealer, Unreadable, WrongKey, guard, hold
from llm_proxy.gateway.store.schema import audit_log, facts, provider_keys
from tests.gatewaystore import add_user, opened

SECRET = "sk-ant-api03-a-key-that-nobody-may-see"
OLD, NEW = "the old encryption key", "the new encryption key"
# Made by the other program: its key, its nonce, its text.
THEIRS = "AAECAwQFBgcICQoLiUwc9zxGUhw5HfRQl9N0AGpm2In5KtbjP1xX"
THEIR_KEY, THEIR_TEXT = "test-encryption-key", "sk-test-123"


def sealer(key=NEW, *old):
    return Sealer(Secrets("jwt", key, "", "", old))


def row(sealed, *, id=7, user=3, version=OURS):
    return ProviderKey(id, user, Provider.OPENAI, "", sealed, key_version=version)


# --- one text


@given(st.text(min_size=1), st.integers(1, 2**40), st.integers(1, 2**40))
def test_what_is_sealed_opens_in_its_place(text, id, user):
    """Any text comes back as it was, from the row and user it was sealed for, in another process too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    sealed = sealer().seal(text, row=id, user=user)
    assert (sealed.version, sealed.key_id) == (OURS, sealer().key_id)
    assert sealer().open(row(sealed.text, id=id, user=user)) == text


@pytest.mark.parametrize("moved", [{"id": 8}, {"user": 4}, {"version": TOKENTRACER}, {"version": 2}], ids=str)
def test_a_sealed_text_opens_nowhere_else(moved):
    """Copied into another row, or another user's, or said to be of another scheme, it is unreadable."""
    sealed = sealer().seal(SECRET, row=7, user=3)
    one = sealer()
    assert one.open(row(sealed.text)) == SECRET
    with pytest.raises(Unreadable) as caught:  # also by the sealer that has just opened it and remembers
        one.open(row(sealed.text, **moved))
    assert SECRET not in str(caught.value) and sealed.text not in str(caught.value)


@pytest.mark.parametrize("moved", [{"id": 8}, {"user": 4}], ids=str)
def test_the_place_is_authenticated_and_not_only_part_of_the_key(moved, monkeypatch):
    """Two nets: a key for each row, and the row as associated data. Each holds without the other."""
    from llm_proxy.gateway import sealing

    sealed = sealer().seal(SECRET, row=7, user=3).text
    with monkeypatch.context() as patch:
        patch.setattr(sealing._Place, "info", lambda place, purpose: b"one key for all")
        alike = sealer().seal(SECRET, row=7, user=3).text
        with pytest.raises(Unreadable):
            sealer().open(row(alike, **moved))
    if "id" in moved:
        with monkeypatch.context() as patch:
            patch.setattr(sealing._Place, "bound", lambda place, version: b"")
            unbound = sealer().seal(SECRET, row=7, user=3).text
            with pytest.raises(Unreadable):
                sealer().open(row(unbound, **moved))
    assert sealer().open(row(sealed)) == SECRET


def test_the_canary_and_a_row_are_not_interchangeable():
    """A text of one column does not open in another, so nothing that is readable somewhere tells of a key."""
    one = sealer()
    with pytest.raises(WrongKey):
        one.check_canary(one.seal(SECRET, row=0, user=0).text)
    with pytest.raises(Unreadable):
        one.open(row(one.canary(), id=0, user=0))


@pytest.mark.parametrize(
    ("sealed", "version"),
    [(sealer().seal(SECRET, row=7, user=3).text, OURS), (THEIRS, TOKENTRACER)],
    ids=["ours", "tokentracer"],
)
def test_each_altered_byte_is_noticed(sealed, version):
    """Of the nonce, the text and the tag, and each character of the base64 around them."""
    one = sealer(NEW, THEIR_KEY)
    good = one.open(row(sealed, version=version))
    data = base64.b64decode(sealed)
    altered = [bytes([*data[:at], data[at] ^ bit, *data[at + 1 :]]) for at in range(len(data)) for bit in (1, 128)]
    texts = [base64.b64encode(one).decode() for one in altered]
    texts += [
        sealed[:at] + other + sealed[at + 1 :] for at in range(len(sealed)) for other in "AQ=-\n" if sealed[at] != other
    ]
    texts += [sealed[:cut] for cut in range(len(sealed))] + [sealed + "=", sealed + "A", " " + sealed, sealed + "\n"]
    for text in texts:
        with pytest.raises(Unreadable):
            one.open(row(text, version=version))
    assert one.open(row(sealed, version=version)) == good


def test_one_text_has_one_spelling():
    """The last character of base64 has bits that decoders ignore: another spelling is refused, not taken as the same."""
    for length in range(1, 4):
        sealed = sealer().seal("x" * length, row=7, user=3).text
        body = sealed.rstrip("=")
        signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        for sign in signs:
            other = body[:-1] + sign + "=" * (len(sealed) - len(body))
            if other != sealed:
                with pytest.raises(Unreadable):
                    sealer().open(row(other))


def test_rows_of_tokentracer_open():
    """Its own vector, with its key as ours or as an old one; not with another."""
    theirs = row(THEIRS, version=TOKENTRACER)
    assert sealer(THEIR_KEY).open(theirs) == THEIR_TEXT
    assert sealer(NEW, OLD, THEIR_KEY).open(theirs) == THEIR_TEXT
    with pytest.raises(Unreadable):
        sealer(NEW, OLD).open(theirs)


def test_old_keys_still_open_and_seal_no_more():
    """A row under an old key opens where that is given; what is sealed then is under the new one."""
    before = sealer(OLD).seal(SECRET, row=7, user=3)
    assert sealer(NEW, OLD).open(row(before.text)) == SECRET
    with pytest.raises(Unreadable):
        sealer(NEW).open(row(before.text))
    after = sealer(NEW, OLD).seal(SECRET, row=7, user=3)
    assert sealer(NEW).open(row(after.text)) == SECRET
    assert before.key_id != after.key_id
    assert {before.key_id, after.key_id} == sealer(NEW, OLD).key_ids


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_encryption_key_is_refused(empty):
    """Nothing would be secret under it."""
    with pytest.raises(WrongKey, match="empty"):
        sealer(empty)
    with pytest.raises(WrongKey, match="empty"):
        sealer(NEW, empty)


_NONCES = """
import base64, os, sys
from llm_proxy.gateway.options import Secrets
from llm_proxy.gateway.sealing import Sealer

sealer = Sealer(Secrets("", "key", "", ""))
sealer.seal("k", row=1, user=1)
child = os.fork()
seals = [sealer.seal("k", row=1, user=1).text for _ in range(10_000)]
if child:
    os.waitpid(child, 0)
os.write(1, "".join(base64.b64decode(text)[:12].hex() + chr(10) for text in seals).encode())
"""


def test_no_nonce_comes_twice():
    """Not in one process, and not in two that were forked from the same one."""
    said = subprocess.run(
        [sys.executable, "-P", "-c", _NONCES], env=ours(), capture_output=True, check=True, timeout=60
    )
    nonces = said.stdout.split()
    assert len(nonces) == len(set(nonces)) == 20_000 and {len(nonce) for nonce in nonces} == {24}


def ours():
    """An environment in which a process finds the package that is tested."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_opened_keys_are_remembered_within_bounds(monkeypatch):
    """The hot path decrypts once; and what is remembered does not grow for ever."""
    from llm_proxy.gateway import sealing

    one = sealer()
    keys = [row(one.seal(f"key {id}", row=id, user=3).text, id=id) for id in range(20)]
    monkeypatch.setattr(sealing, "REMEMBERED", 8)
    for key in keys:
        assert one.open(key) == f"key {key.id}"
        assert len(one._opened) <= 8
    last = keys[-1]
    monkeypatch.setattr(sealing._Key, "open", lambda *_: pytest.fail("decrypted again"))
    assert one.open(last) == "key 19"


def test_a_sealer_shows_nothing():
    """Neither it nor what it is made of says a secret when it is printed, as in a traceback."""
    one = sealer(NEW, OLD)
    key = row(one.seal(SECRET, row=7, user=3).text)
    one.open(key)
    for shown in (repr(one), str(one), repr(one.secrets), repr(key)):
        assert not any(secret in shown for secret in (SECRET, NEW, OLD, key.sealed))


# --- the store's canary


async def canary_of(store):
    async with store.reading() as connection:
        return await connection.scalar(select(facts.c.value).where(facts.c.name == "canary"))


async def test_a_wrong_encryption_key_is_noticed_at_the_start(store):
    """The first start marks the store; later ones need the same key, or it as an old one."""
    await guard(store, sealer(OLD))
    marked = await canary_of(store)
    for good in (sealer(OLD), sealer(NEW, OLD)):
        await guard(store, good)
    with pytest.raises(WrongKey, match="another encryption key"):
        await guard(store, sealer(NEW))
    assert await canary_of(store) == marked


async def test_two_first_starts_agree(store_url):
    """Machines that start at once mark the store once; one with another key is refused, even then."""
    async with opened(store_url) as one, opened(store_url) as two:
        await asyncio.gather(guard(one, sealer(OLD)), guard(two, sealer(OLD)))
        sealer(OLD).check_canary(await canary_of(one))
        async with one.writing() as connection:
            await connection.execute(delete(facts))
        told = await asyncio.gather(guard(one, sealer(OLD)), guard(two, sealer(NEW)), return_exceptions=True)
        assert [type(one) for one in told].count(WrongKey) == 1 and told.count(None) == 1


async def test_rows_under_a_key_that_is_not_given_stop_the_start(store):
    """Half-rotated, or without its canary: rather than fail at calls, the gateway does not start."""
    await guard(store, sealer(OLD))
    await add_key(store, await add_user(store, "a@b.c"), sealer(NEW))
    with pytest.raises(WrongKey, match=sealer(NEW).key_id):
        await guard(store, sealer(OLD))
    await guard(store, sealer(OLD, NEW))
    async with store.writing() as connection:
        await connection.execute(delete(facts))
    with pytest.raises(WrongKey, match=sealer(NEW).key_id):
        await guard(store, sealer(OLD))
    assert await canary_of(store) is None


# --- rotation


async def add_key(store, user, by, text=SECRET):
    """A row as the gateway writes it, or as TokenTracer did, where `by` is None."""
    async with store.writing() as connection:
        values = {"user_id": user, "provider": "openai", "encrypted_key": THEIRS, "key_version": TOKENTRACER}
        id = await connection.scalar(insert(provider_keys).values(values).returning(provider_keys.c.id))
        if by is not None:
            sealed = by.seal(text, row=id, user=user)
            put = {"encrypted_key": sealed.text, "key_version": sealed.version, "key_id": sealed.key_id}
            await connection.execute(update(provider_keys).where(provider_keys.c.id == id).values(put))
    return id


async def opened_keys(store, by):
    """By id, all of them in clear. Raises Unreadable."""
    async with store.reading() as connection:
        rows = (await connection.execute(select(provider_keys).order_by(provider_keys.c.id))).all()
    return {r.id: by.open(row(r.encrypted_key, id=r.id, user=r.user_id, version=r.key_version)) for r in rows}


async def filled(store, rows=3):
    """Rows of two users under the old key, and one of TokenTracer's, whose key was the old one's too."""
    await guard(store, sealer(OLD))
    users = itertools.cycle([await add_user(store, "one@example.com"), await add_user(store, "two@example.com")])
    return {
        await add_key(store, user, sealer(OLD), f"key {number}"): f"key {number}"
        for number, user in zip(range(rows), users, strict=False)
    }


async def test_rotation_leaves_nothing_under_the_old_key(store):
    """All rows, TokenTracer's too, are ours and open with the new key alone; the old one opens none; said in the audit."""
    expected = await filled(store)
    expected[await add_key(store, await add_user(store, "three@example.com"), None)] = THEIR_TEXT
    seen = []
    both = sealer(NEW, OLD, THEIR_KEY)
    assert await rotating.rotate(store, both, lambda *told: seen.append(told)) == rotating.Rotated(4, 0)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert await opened_keys(store, sealer(NEW)) == expected
    await guard(store, sealer(NEW))
    with pytest.raises(WrongKey):
        await guard(store, sealer(OLD))
    async with store.reading() as connection:
        versions = set((await connection.scalars(select(provider_keys.c.key_version))).all())
        noted = (await connection.execute(select(audit_log.c.action, audit_log.c.detail))).all()
    assert versions == {OURS}
    assert [tuple(one) for one in noted] == [("provider_key.rotate", {"rewritten": 4, "key_id": sealer(NEW).key_id})]
    before = await canary_of(store)
    assert await rotating.rotate(store, both) == rotating.Rotated(0, 4)  # again: nothing to do, and nothing done
    assert await canary_of(store) == before


async def test_rotation_without_the_old_key_changes_nothing(store):
    """It is refused at once."""
    await filled(store)
    with pytest.raises(WrongKey) as caught:
        await rotating.rotate(store, sealer(NEW))
    assert caught.type is WrongKey  # and not that it went over the rows and found none that opens
    assert len(await opened_keys(store, sealer(OLD))) == 3


async def test_an_unreadable_row_holds_the_end_up_and_nothing_else(store):
    """The others are rotated, it is named, and the old key stays needed until it is gone."""
    expected = await filled(store)
    spoiled = next(iter(expected))
    async with store.writing() as connection:
        broken = update(provider_keys).where(provider_keys.c.id == spoiled).values(encrypted_key="AAAA" * 12)
        await connection.execute(broken)
    for _ in range(2):
        with pytest.raises(rotating.Unfinished, match=f"provider key {spoiled}: "):
            await rotating.rotate(store, sealer(NEW, OLD))
        await guard(store, sealer(OLD, NEW))
        with pytest.raises(WrongKey):
            await guard(store, sealer(NEW))
    async with store.writing() as connection:
        await connection.execute(delete(provider_keys).where(provider_keys.c.id == spoiled))
    assert await rotating.rotate(store, sealer(NEW, OLD)) == rotating.Rotated(0, 2)
    await guard(store, sealer(NEW))


async def test_rows_that_come_in_meanwhile_are_rotated_too(store_url):
    """A machine that knows the old key only writes on: what it still may write is rotated, then it is refused."""
    async with opened(store_url) as one, opened(store_url) as two:
        await filled(one)
        user, old, late = await add_user(one, "late@example.com"), sealer(OLD), []
        begun = asyncio.Event()

        async def write_on():
            with pytest.raises(WrongKey):
                for number in itertools.count():
                    async with two.writing() as connection:
                        await hold(connection, old)
                        if number < 10:
                            sealed = old.seal("late", row=100 + number, user=user)
                            values = {"encrypted_key": sealed.text, "key_version": OURS, "key_id": sealed.key_id}
                            values |= {"id": 100 + number, "user_id": user, "provider": "openai"}
                            await connection.execute(insert(provider_keys).values(values))
                            late.append("late")
                    begun.set()
                    await asyncio.sleep(0.005)

        writing = asyncio.create_task(write_on())
        await begun.wait()
        done = await rotating.rotate(one, sealer(NEW, OLD))
        await writing
        assert done.rewritten == 3 + len(late) and late
        assert sorted((await opened_keys(one, sealer(NEW))).values()) == ["key 0", "key 1", "key 2", *late]


async def test_nobody_seals_under_a_key_that_is_gone(store):
    """A process that was started before the rotation and knows the old key only is refused, inside its transaction."""
    await filled(store)
    async with store.writing() as connection:
        await hold(connection, sealer(OLD))
    await rotating.rotate(store, sealer(NEW, OLD))
    with pytest.raises(WrongKey):
        async with store.writing() as connection:
            await hold(connection, sealer(OLD))
    async with store.writing() as connection:
        await hold(connection, sealer(NEW))


async def test_a_rotation_waits_for_whoever_is_sealing(store_url):
    """While a transaction holds the canary, the rotation's end does not pass it: no row is left behind unseen."""
    async with opened(store_url) as one, opened(store_url) as two:
        await filled(one)
        user = await add_user(one, "slow@example.com")
        old, held, go = sealer(OLD), asyncio.Event(), asyncio.Event()

        async def slowly():
            async with two.writing() as connection:
                await hold(connection, old)
                held.set()
                await go.wait()
                sealed = old.seal("slow", row=100, user=user)
                values = {"encrypted_key": sealed.text, "key_version": OURS, "key_id": sealed.key_id, "id": 100}
                await connection.execute(insert(provider_keys).values(user_id=user, provider="openai", **values))

        def let_go(done, of):
            if done == of:
                asyncio.get_running_loop().call_later(0.2, go.set)

        slow = asyncio.create_task(slowly())
        await held.wait()
        if one.dialect == "sqlite":
            go.set()  # one writer at a time: there the rows wait too
        done = await rotating.rotate(one, sealer(NEW, OLD), let_go)
        await slow
        assert done.rewritten == 4
        assert (await opened_keys(one, sealer(NEW)))[100] == "slow"


_ROTATE = """
import asyncio, os, signal, sys
from sqlalchemy import Engine, event
from llm_proxy.gateway import rotating
from llm_proxy.gateway.options import Secrets
from llm_proxy.gateway.sealing import Sealer
from llm_proxy.gateway.store.database import Store

url, new, old, when, count = *sys.argv[1:5], int(sys.argv[5])
left = count

def die():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = Store(url, "/nowhere")
    await store.open()
    written = []
    if when == "before commit":
        event.listen(Engine, "after_execute", lambda c, clause, *_: written.append(1) if clause.is_update else None)
        event.listen(Engine, "commit", lambda c: (die(), written.clear()) if written else None)
    report = (lambda done, of: die()) if when == "after row" else (lambda done, of: None)
    await rotating.rotate(store, Sealer(Secrets("", new, "", "", (old,))), report)

asyncio.run(main())
"""


async def killed(url, when, count):
    """A process that rotates and kills itself at a boundary."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", _ROTATE, url, NEW, OLD, when, str(count)),
        env=ours(),
    )
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL, (when, count)


async def test_a_rotation_killed_at_any_row_is_finished_by_the_next(store_url):
    """SIGKILL after each row, and before each commit, the canary's too: every row opens with the two keys, always, and
    with the old one alone or the new one alone the gateway does not start."""
    rows = 2
    async with opened(store_url) as store:
        expected = await filled(store, rows)
        for when, boundaries in (("after row", rows), ("before commit", rows + 1)):
            both = sealer(NEW, OLD)
            for boundary in range(1, boundaries + 1):
                await killed(store_url, when, boundary)
                assert await opened_keys(store, both) == expected
                await guard(store, both)
                async with store.reading() as connection:
                    new = provider_keys.c.key_id == both.key_id
                    done = await connection.scalar(select(func.count()).where(new))
                assert done == (boundary if when == "after row" else boundary - 1)
                with pytest.raises(WrongKey):
                    await guard(store, sealer(NEW))
                if done:
                    with pytest.raises(WrongKey):
                        await guard(store, sealer(OLD))
                if boundary < boundaries:
                    await back(store, expected)
            assert await rotating.rotate(store, both) == rotating.Rotated(0, rows)
            assert await opened_keys(store, sealer(NEW)) == expected
            await guard(store, sealer(NEW))
            async with store.writing() as connection:
                await connection.execute(delete(facts))
            await back(store, expected)
            await guard(store, sealer(OLD))


async def back(store, expected):
    """All rows under the old key, as at the beginning."""
    async with store.writing() as connection:
        for r in (await connection.execute(select(provider_keys))).all():
            sealed = sealer(OLD).seal(expected[r.id], row=r.id, user=r.user_id)
            values = {"encrypted_key": sealed.text, "key_id": sealed.key_id}
            await connection.execute(update(provider_keys).where(provider_keys.c.id == r.id).values(values))


def test_facts_of_a_key_do_not_show_it():
    """What goes from part to part may be printed."""
    key = row("c2VhbGVk")
    assert "c2VhbGVk" not in repr(replace(key, label="x"))


async def test_a_lost_encryption_key_loses_no_more_than_it_must(store):
    """What the documentation says for that: the store takes another key, and the rows wait for their keys."""
    page = (Path(__file__).parent.parent / "docs/gateway-providers.md").read_text()
    await filled(store)
    with pytest.raises(WrongKey):
        await guard(store, sealer(NEW))
    async with store.writing() as connection:
        for statement in page.split("```sql\n")[1].split("```")[0].strip().split("\n"):
            await connection.execute(sql(statement))
    await guard(store, sealer(NEW))
    with pytest.raises(Unreadable):
        await opened_keys(store, sealer(NEW))
