"""Texts that would do something in a page that does not escape them, and what they would do."""

from __future__ import annotations

from html.parser import HTMLParser

TEXTS = [
    "<script>window.hostile = 1</script>",
    "<img src=x onerror='window.hostile = 1'>",
    '"><svg/onload="window.hostile = 1">',
    "</td></script></style><script>window.hostile = 1</script>",
    "{raw}`html` {math}`x` [link](javascript:window.hostile=1) `code` $x$ **bold**",
]
ALL = " ".join(TEXTS)


class Tags(HTMLParser):
    """Names of the tags of a page, and of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]


def check(page: str) -> None:
    """No tag of these texts is live in the page."""
    parsed = Tags(page)
    assert not {"script", "img", "svg"} & set(parsed.tags)
    assert not {"onerror", "onload", "href"} & set(parsed.attributes)
