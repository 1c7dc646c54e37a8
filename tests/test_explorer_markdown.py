"""What models and people write, as HTML that does nothing by itself."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.explorer.highlight import highlighted, visible
from llm_proxy.explorer.markdown import LONGEST, holds, mark, mark_in, rendered, words_of
from tests.explored import HOSTILE

ALLOWED = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span", "div", "mark"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Seen(HTMLParser):
    """All elements and their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError("a comment")


def assert_harmless(html):
    for tag, attributes in Seen(html).elements:
        assert tag in ALLOWED, tag
        for name, value in attributes.items():
            assert name in {"href", "title", "class", "rel", "target", "tabindex", "role", "aria-label", "start"}, name
            if name == "href":
                # A scheme begins with a letter (RFC 3986 §3.1); what has none stays on this site.
                assert re.match(r"(?:https?|mailto):|(?![A-Za-z][A-Za-z0-9+.-]*:)", value.strip()), value
        if tag == "a":
            assert attributes["rel"] == "noopener noreferrer nofollow" and attributes["target"] == "_blank"


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE), *(f"```{one}\n{one}\n```" for one in HOSTILE)])
def test_hostile_text_becomes_text(text):
    """Nothing that somebody wrote becomes an element of his choice, with words marked or not."""
    for marked in ((), ("script", "window", "pwned", "lt", "href", "a"), tuple(HOSTILE)):
        assert_harmless(rendered(text, marked))
        assert_harmless(mark(text, marked))


_PIECES = st.sampled_from(
    [
        "<",
        ">",
        "&",
        '"',
        "'",
        "`",
        "```",
        "\n",
        "[a](",
        ")",
        "![",
        "](javascript:x)",
        "<b",
        "<!--",
        "|",
        "$",
        "\\(",
        "*",
        "&lt;",
    ]
)


@settings(deadline=None)
@given(st.lists(_PIECES | st.text(max_size=6), max_size=30).map("".join), st.lists(st.text(max_size=5), max_size=3))
def test_whatever_is_written_is_harmless(text, words):
    """Any row of Markdown's own signs, any words marked."""
    assert_harmless(rendered(text, words))
    assert_harmless(highlighted(text, "html"))
    assert_harmless(mark_in(highlighted(text, "python"), words))
    assert Seen(mark(text, words)).text == visible(text).replace("\r\n", "\n") or "\r" in text


def test_what_markdown_is_for():
    """Emphasis, lists, tables, code with colours."""
    html = rendered("**b** ~~s~~\n\n1. one\n\n| a | n |\n| --- | ---: |\n| x | 1 |\n\n```python\ndef f(): pass\n```\n")
    for piece in ("<strong>b</strong>", "<s>s</s>", "<ol>", '<td class="r">1</td>', '<span class="k">def</span>'):
        assert piece in html


def test_links_say_where_they_lead_and_images_are_not_loaded():
    """The host stands beside the words; an image is its address, as text."""
    html = rendered("[here](https://evil.example/x?y) and ![p](https://evil.example/pixel.png)")
    assert '<span class="host">evil.example</span>' in html
    assert "<img" not in html and "https://evil.example/pixel.png" in Seen(html).text
    assert "host" not in rendered("<https://evil.example/>")


@pytest.mark.parametrize("formula", ["$a*b*c$", "$$x_1 * y_2 * z$$", r"\(a*b*c\)", r"\[ \sum_i a_i * b_i * c \]"])
def test_formulas_stay_as_they_were_typed(formula):
    """What stands between the signs of mathematics is no emphasis, and loses no backslash."""
    assert Seen(rendered(f"so {formula} holds")).text.strip() == f"so {formula} holds"


def test_prices_are_no_formulas():
    """Two amounts in a sentence leave what is between them as Markdown."""
    assert "<em>not</em>" in rendered("from $5 *not* to $10")


def test_long_texts_stay_plain():
    """Beyond the limit nothing is rendered or coloured."""
    assert rendered("**x** " * LONGEST).startswith('<div class="plain">**x** ')
    assert "<span" not in highlighted("def f(): pass\n" * LONGEST, "python")


def test_nothing_is_hidden():
    """Escape sequences and signs that turn the direction are spelled out."""
    for made in (
        rendered("a\x1b[2Jb \u202ec"),
        mark("a\x1b[2Jb \u202ec", ()),
        highlighted("a\x1b[2Jb \u202ec", "python"),
    ):
        told = Seen(made).text
        assert "\x1b" not in told and "\u202e" not in told and "[U+202E]" in told and "␛" in told


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("one two", ("one", "two")),
        ('"a phrase" more', ("a phrase", "more")),
        ("begin* -without project:ledger role:tool", ("begin*",)),
        ("", ()),
        ('-"not this" yes', ("yes",)),
    ],
)
def test_words_of_a_search(query, words):
    """Words, phrases and beginnings are marked; filters and what is not wanted are not."""
    assert words_of(query) == words


def test_marks():
    """Whole words from their beginning, in any case, in text only and never inside an entity."""
    assert mark("Lt & <lt> result", ("lt",)) == "<mark>Lt</mark> &amp; &lt;<mark>lt</mark>&gt; result"
    linked = rendered("a < b [lt](http://lt.example/?lt)", ("lt",))
    assert linked.count("<mark>lt</mark>") == 2, "the words and the host, not the address"
    assert mark("an order, ordering", ("order",)) == "an <mark>order</mark>, ordering"
    assert mark("an order, ordering", ("ord*",)) == "an <mark>order</mark>, <mark>ordering</mark>"
    assert mark("test_groups_match", ("groups_match",)) == "test_<mark>groups_match</mark>"
    assert holds("the ImportError there", ("importerror",)) and not holds("nothing", ("importerror",))


@pytest.mark.parametrize("nothing", [[" "], ["*"], ["", "\t*"]])
def test_what_is_no_word_is_not_marked(nothing):
    """Nor does it mark everything."""
    assert "<mark>" not in rendered("some **words** here", nothing) + mark("some words", nothing)
    assert not holds("some words", nothing)
