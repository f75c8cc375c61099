"""Reads the page that `isotorus preview` writes: its text, and the pictures on its cards."""

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """The text of a page, and its cards: their caption, images by kind, and boxes by kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.html, self.text = text, ""
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def cards(self) -> list["Card"]:
        sheet = self.html.split('<div class="sheet">')[1].split("</section>")[0]
        return [Card(part) for part in sheet.split("<figure>")[1:]]


class Card:
    def __init__(self, html: str) -> None:
        original, *cuts = html.split('<div class="views ')
        self.original, *self.channels = images(original)
        self.views = {cut.split('"')[0].removeprefix("is-"): images(cut) for cut in cuts}
        self.boxes: dict[str, list[tuple[int, ...]]] = {}
        for kind, *box in re.findall(
            r'<rect class="is-(\w+)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', html
        ):
            self.boxes.setdefault(kind, []).append(tuple(map(int, box)))
        caption = html.split("<figcaption>")[1].split("</figcaption>")[0]
        self.caption = unescape(re.sub(r"<.*?>", "", caption))
        self.key = self.caption.split(" · ")[-3]


def images(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]
