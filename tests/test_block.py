"""The managed block: what is put into a file of the user's comes out again, byte for byte, whatever the file holds."""

import os

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_proxy.service import block
from llm_proxy.service.block import HalfBlock, patch, unpatch

EXAMPLES = int(os.environ.get("BLOCK_EXAMPLES", "4000"))
BODY = b"one\ntwo\n"
PIECES = [b"\n", b"\r\n", b"\\", b" ", b"\t", b"a", b"# LLM Proxy", b'eval "$(llm-proxy --env)"', b"\0", b"\xff", b"#"]
FILES = st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
REFERENCE = b'\n# LLM Proxy\neval "$(llm-proxy --env)"\n'


def _assume_nothing_of_ours(raw):
    """Nor of the reference program, whose block is replaced for good."""
    assume(block.BEGIN not in raw and block.END not in raw and block._REFERENCE.search(raw) is None)


@settings(max_examples=EXAMPLES, deadline=None)
@given(FILES)
def test_what_is_put_in_comes_out(raw):
    """unpatch(patch(x)) == x, and patching twice is patching once."""
    _assume_nothing_of_ours(raw)
    once = patch(raw, BODY)
    assert unpatch(once) == raw
    assert patch(once, BODY) == once
    assert once.count(BODY) == raw.count(BODY) + 1


@settings(max_examples=2_000, deadline=None)
@given(FILES, st.binary(min_size=1, max_size=30))
def test_what_the_user_appends_stays(raw, more):
    """Text after the block survives, on a line of its own."""
    _assume_nothing_of_ours(raw)
    _assume_nothing_of_ours(more)
    left = unpatch(patch(raw, BODY) + more)
    assert left.startswith(raw) and left.endswith(more)
    assert set(left[len(raw) : len(left) - len(more)]) <= set(b"\n")
    if raw and not raw.endswith(b"\n"):
        assert left != raw + more


@settings(max_examples=2_000, deadline=None)
@given(FILES)
def test_the_block_begins_on_a_line_of_its_own(raw):
    """Also after a last line without an end, or one that a backslash continues."""
    _assume_nothing_of_ours(raw)
    head = patch(raw, BODY).partition(block.BEGIN)[0]
    assert head == b"" or head.endswith(b"\n")
    assert not head.endswith(b"\\\n") or head.endswith(b"\\\\\n")


def test_a_file_that_is_made_says_so():
    """So that uninstall may remove it, and the folders made for it."""
    made = patch(None, BODY, folders=2)
    assert unpatch(made) == b"" and patch(made, BODY) == made
    assert [(b.made, b.folders) for b in block.blocks(made)] == [(True, 2)]
    assert block.blocks(patch(made, b"other\n"))[0].folders == 2


def test_a_block_is_renewed_where_it_stands():
    """Moved or edited by the user: it stays in its place, with our lines."""
    old = patch(b"", b"old\n")
    moved = b"top\n" + old.replace(b"old\n", b"old\nedited\n") + b"bottom\n"
    assert patch(moved, BODY) == b"top\n" + patch(b"", BODY) + b"bottom\n"
    assert unpatch(patch(moved, BODY)) == b"top\nbottom\n"
    indented_crlf = b"top\r\n  " + old.replace(b"\n", b"\r\n") + b"bottom\r\n"
    assert unpatch(indented_crlf).endswith(b"bottom\r\n") and b"llm-proxy" not in unpatch(indented_crlf)


def test_two_blocks_become_one():
    """The first stays."""
    text = patch(b"a\n", BODY)
    assert patch(text + b"b\n" + patch(b"", BODY), BODY) == text + b"b\n"
    assert unpatch(text + text) == b"a\na\n"


@pytest.mark.parametrize(
    "half", [block.BEGIN, block.END, block.END + b"\n" + block.BEGIN, b"\n".join([block.BEGIN] * 2 + [block.END])]
)
def test_half_a_block_is_not_guessed_at(half):
    """The line is named; nothing comes out."""
    for work in (lambda: patch(b"a\n" + half + b"\n", BODY), lambda: unpatch(b"a\n" + half + b"\n")):
        with pytest.raises(HalfBlock, match=r"line [23]"):
            work()


def test_the_reference_programs_block_is_replaced():
    """With the empty line it put before; what only mentions it stays."""
    assert unpatch(patch(b"a\n" + REFERENCE + b"b\n", BODY)) == b"a\nb\n"
    assert unpatch(patch(REFERENCE, BODY)) == b""
    mention = b"# LLM Proxy is fine\n# LLM Proxy\necho hello\n"
    assert unpatch(patch(mention, BODY)) == mention
