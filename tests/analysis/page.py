"""A report as a reader finds it: its tags, its text, its sections."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, attributes, ids and visible text of a page; unclosed tags are kept in `open`."""

    VOID = ("meta", "br", "hr", "path", "use", "rect", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def section(page, name):
    """Visible text of one section, with plain spaces."""
    start = page.index(f'<section id="{name}">')
    return Page(page[start : page.index("</section>", start)]).text.replace("\u00a0", " ")
