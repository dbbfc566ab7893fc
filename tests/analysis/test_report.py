"""The report: one self-contained page that says what matters first, and its files."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic import Plan, results_frame, write_sweep

from analysis import plots
from analysis.describe import headline
from analysis.fit import analyse
from analysis.load import load
from analysis.report import html, main

SECTIONS = (
    "headline", "law", "forms", "figures", "holdout", "sensitivity", "optimal", "next", "curves",
    "runs", "excluded", "provenance",
)  # fmt: skip


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


def report(folder, *arguments):
    assert main([str(folder), *arguments]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def good_page(good):
    return report(good, "--strict")


@pytest.fixture(scope="module")
def ray_page(ray):
    return report(ray)


def test_the_page_needs_nothing_but_itself(good_page):
    page = Page(good_page)
    assert page.open == []
    assert "http:" not in good_page
    assert "https:" not in good_page
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "data", "action")]
    links = [v for _, k, v in page.attributes if k in ("href", "xlink:href")]
    assert links
    assert all(v.startswith("#") for v in links)
    assert "<script" not in good_page
    assert "@import" not in good_page
    used = {v[1:] for v in links} | set(re.findall(r"url\(#([^)]+)\)", good_page))
    assert used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_its_sections_in_reading_order(good_page):
    found = [i for i in Page(good_page).ids if i in SECTIONS]
    assert tuple(found) == SECTIONS


def test_the_page_shows_figures_tables_and_provenance(good_page, good):
    page = Page(good_page)
    assert good_page.count("<svg") == 6
    for row in load(good).table["row"]:
        assert row in page.text
    for words in ("0123abc", "d" * 64, "numpy", "90 % interval", "Certified optimum"):
        assert words in page.text.replace("\u00a0", " ")


def test_the_files_beside_the_page(good, good_page):
    data = json.loads((good / "fits.json").read_text(encoding="utf-8"))
    assert data["selected"] == "chinchilla"
    names = {f.name for f in (good / "figures").iterdir()}
    for figure, _ in plots.FIGURES:
        assert {f"{figure}.png", f"{figure}.svg"} <= names
    assert (good / "figures" / "law.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unidentified_design_gets_no_constants_and_says_what_to_run(ray_page):
    text = Page(ray_page).text
    assert "not identified by this design: every run has D/N near 20" in text
    assert "train each size at 4 or more horizons" in text
    assert "Break the tie between N and D" in text
    law = ray_page[ray_page.index('id="law"') : ray_page.index('id="forms"')]
    assert law.count("<td>–</td>") == 6
    assert "no line of it is drawn" in text
    assert "No runs were held out" in text


def test_a_rejected_law_is_said_in_the_first_sentence(bent):
    analysis = analyse(load(bent))
    first = headline(analysis)[0]
    assert first.startswith(f"The {analysis.selected} law is rejected at this noise")
    assert re.search(r"lack of fit F\(\d+, 6\) = [\d.]+, p < 0.001", first)
    text = Page(html(analysis, {})).text
    assert text.index("is rejected at this noise") < text.index("trust")


def test_strict_fails_where_trust_is_low(ray, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert main([str(ray), "--out", str(out), "--strict"]) == 1
    captured = capsys.readouterr()
    assert f"report: {out}" in captured.out
    assert "trust is low" in captured.err
    assert out.exists()


def test_bad_input_exits_2_and_writes_nothing(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_table_gets_a_report_without_the_parts_it_cannot_have(tmp_path):
    frame = results_frame(Plan(holdout=()))
    table = pd.DataFrame({"n": frame["n_total"], "d": frame["tokens"], "loss": frame["val_loss"]})
    table["name"] = "<b>" + frame["trunk_id"]
    table.to_csv(tmp_path / "t.csv", index=False)
    arguments = ["--n", "n", "--d", "d", "--loss", "loss", "--trunk", "name"]
    assert main([str(tmp_path / "t.csv"), *arguments]) == 0
    text = (tmp_path / "t-report" / "report.html").read_text(encoding="utf-8")
    assert "The source has no training curves." in text
    assert "6ND" in text
    assert Page(text).open == []


def test_text_of_the_data_is_escaped(tmp_path):
    frame = results_frame(Plan())
    frame.loc[3, "status"], frame.loc[3, "reason"] = "failed", "<script>alert(1)</script>"
    page = html(analyse(load(write_sweep(tmp_path / "s", frame=frame))), {})
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_excluded_rows_stand_in_the_page(tmp_path):
    frame = results_frame(Plan())
    frame.loc[0, "steps"] = 100
    frame.loc[7, "arm"] = "lr*2"
    text = Page(html(analyse(load(write_sweep(tmp_path / "s", frame=frame))), {})).text
    assert "too few steps: 100 < 500" in text
    assert "another recipe (arm lr*2)" in text
    assert "too_few_steps" in text
