"""The one place that escapes."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from resty_upstream.status.html import join, tag


class Reader(HTMLParser):
    """What a browser would make of HTML: elements with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))


@given(anything, anything)
def test_whatever_is_no_markup_stays_text(text: str, value: str) -> None:
    read = Reader(tag("p", text, title=value))
    assert read.tags == [("p", {"title": value})]
    assert read.text == text


def test_what_text_and_markup_are_joined_to_is_no_longer_trusted() -> None:
    assert join(tag("b", "x") + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"


def test_attributes_are_written_as_html_has_them() -> None:
    assert (
        tag("input", class_="a", data_x=1, hidden=True, open=False, id=None)
        == '<input class="a" data-x="1" hidden>'
    )
