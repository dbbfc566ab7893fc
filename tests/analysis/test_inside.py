"""The report's sections about the models themselves: heads, text, vocabularies."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inside import circuits_frame, write_circuits, write_samples
from page import Page, section
from synthetic import write_parquet

from analysis import circuits, samples, vocabularies
from analysis.circuitplots import FIGURES
from analysis.read import DataError
from analysis.report import html, main
from analysis.samples import MAX_TEXT
from analysis.words import number

PROMPT = 'if x < 3:\n\tprint("<b>")'
TEXT = "\n    return <script>alert(1)</script> & 'café'\n\n"


@pytest.fixture(scope="module")
def runs(analysed):
    return analysed.study.table


def written(runs, text=lambda row: TEXT, prompts=(PROMPT,)):
    """A sample of every run after every prompt."""
    names = ["run_id", "trunk_id", "n_total", "seed", "tokens"]
    rows = [
        {**row, "prompt": prompt, "text": text(row)}
        for row in runs[names].to_dict("records")
        for prompt in prompts
    ]
    return pd.DataFrame(rows)


def heads(model):
    score = 0.7 if model["run_id"] else 0.05
    return {"induction": score, "structure_bracket": score, "structure_parent": 0.1}


@pytest.fixture
def folder(good, analysed, tmp_path, monkeypatch):
    """A copy of the sweep; the command finds what `analysed` has, and draws no figure."""
    monkeypatch.setattr("analysis.report.FIGURES", ())
    monkeypatch.setattr("analysis.circuitplots.FIGURES", ())
    monkeypatch.setattr("analysis.report.analyse_arguments", lambda _: analysed)
    shutil.copytree(good, tmp_path / "good", ignore=shutil.ignore_patterns("figures", "report*"))
    return tmp_path / "good"


def page_of(folder):
    assert main([str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


# Where a section stands, and where none does


def test_without_the_files_the_report_is_as_it_was(folder):
    page = page_of(folder)
    assert not {"circuits", "samples", "vocabularies"} & set(Page(page).ids)
    assert "experiments.circuits" not in page
    assert not list((folder / "figures").iterdir())


def test_with_weights_but_not_looked_at_the_page_says_what_to_run(folder, analysed):
    (folder / "trunks").mkdir()
    told = "Not looked at yet, inside the models: "
    command = f"python -m experiments.{{}} {folder}"
    both = told + command.format("circuits") + " and " + command.format("samples") + " ."
    assert both in section(page_of(folder), "provenance")
    write_circuits(folder, circuits_frame(analysed.study.table, heads))
    one = told + command.format("samples") + " ."
    assert one in section(page_of(folder), "provenance")


def test_models_of_ready_made_tokens_are_not_asked_for_text(folder, analysed, monkeypatch):
    config = {"config": {"data": {"source": "tokens"}}}
    other = replace(analysed, study=replace(analysed.study, config=config))
    monkeypatch.setattr("analysis.report.analyse_arguments", lambda _: other)
    (folder / "trunks").mkdir()
    assert "experiments.samples" not in page_of(folder)


def test_with_the_files_the_page_has_the_sections_and_still_needs_nothing_but_itself(
    folder, runs, monkeypatch
):
    monkeypatch.setattr("analysis.circuitplots.FIGURES", FIGURES)
    write_circuits(folder, circuits_frame(runs, heads))
    write_samples(folder, written(runs), "greedy, at most 9 tokens")
    page = page_of(folder)
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    names = ["curves", "circuits", "samples", "runs"]
    assert [i for i in parsed.ids if i in names] == names
    links = {v for _, k, v in parsed.attributes if k in ("href", "xlink:href")}
    assert {"#circuits", "#samples"} <= links
    assert "#vocabularies" not in links
    assert all(v.startswith("#") and v[1:] in parsed.ids for v in links)
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert not re.search(r"\bnan\b|\binf\b|None", section(page, "circuits"))
    assert page.count("<svg") == 2
    files = {f"{name}.{kind}" for name in ("circuits", "structure") for kind in ("png", "svg")}
    assert {file.name for file in (folder / "figures").iterdir()} == files
    assert (folder / "figures" / "circuits.png").read_bytes()[:4] == b"\x89PNG"


def test_the_section_says_what_emerges_and_what_does_not(folder, runs):
    write_circuits(folder, circuits_frame(runs, heads))
    text = section(page_of(folder), "circuits")
    assert "emerge in 7 of 7 sizes." in text
    assert "1 of 2 relations of the text emerges: matching bracket; not: parent node." in text
    assert "24k 2 3 by 500k 0.70 1" in text
    assert "matching bracket 1.1 0.700 0.680 to 0.720 0.200 0.050 emerges" in text
    assert "parent node 1.1 0.100 0.080 to 0.120 0.200 0.100 does not emerge" in text
    assert "What the induction heads are for" not in text  # nothing was ablated


# Samples


def shown(runs, frame):
    return samples.select(frame, "greedy", runs)


def test_text_is_escaped_and_its_blanks_are_kept(analysed, runs):
    page = html(analysed, {}, texts=shown(runs, written(runs)))
    assert "<script" not in page
    own = "\n    return &lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;café&#39;\n\n"
    assert f"<pre>\n{own}</pre>" in page  # HTML drops the first line end within pre
    assert 'After <code class="prompt">if x &lt; 3:\n\tprint(&#34;&lt;b&gt;&#34;)</code>' in page
    text = section(page, "samples")
    assert "(greedy)" in text
    assert text.count("N = ") == 7
    assert text.count("D = ") == 35


def test_a_row_per_size_and_a_cell_per_horizon_of_the_first_seed(runs):
    frame = written(runs, lambda row: f"{row['n_total']} {row['tokens']} {row['seed']}")
    shuffled = frame.sample(frac=1, random_state=0)
    (prompt,) = shown(runs, shuffled).prompts
    assert [name for name, _ in prompt.rows] == [
        "N = 24k", "N = 40k", "N = 70k", "N = 120k", "N = 240k", "N = 400k", "N = 700k",
    ]  # fmt: skip
    for n, (_, cells) in zip(sorted(runs["n_total"].unique()), prompt.rows, strict=True):
        assert [cell.D for cell in cells] == [
            "D = 500k", "D = 750k", "D = 1.2M", "D = 2M", "D = 4M",
        ]  # fmt: skip
        assert [cell.text.split() for cell in cells] == [
            [str(n), str(int(d)), "0"] for d in sorted(runs["tokens"].unique())
        ]


def test_prompts_keep_their_order_and_gaps_stay_gaps(runs):
    frame = written(runs, prompts=("b", "a"))
    gone = (frame["prompt"] == "a") & (frame["n_total"] == 24_000) & (frame["tokens"] == 750_000)
    first, second = shown(runs, frame[~gone]).prompts
    assert (first.text, second.text) == ("b", "a")
    assert [cell is None for cell in second.rows[0][1]] == [False, True, False, False, False]


def test_the_page_stays_small(runs):
    (prompt,) = shown(runs, written(runs, lambda row: "x" * (MAX_TEXT + row["seed"]))).prompts
    assert not prompt.rows[0][1][0].cut
    longer = shown(runs, written(runs, lambda row: "ab" * MAX_TEXT)).prompts[0].rows[0][1][0]
    assert longer.cut
    assert longer.text == "ab" * (MAX_TEXT // 2)
    many = pd.DataFrame(
        [
            {"run_id": f"{n}-{d}", "n_total": n * 1000, "seed": 0, "tokens": d * 1000}
            for n in range(1, 31)
            for d in range(1, 13)
        ]
    ).assign(prompt="p", text="t", vocab_size=257)
    found = shown(many, many)
    assert found.left_out == ("10 of 30 sizes are shown", "6 of 12 horizons are shown")
    names = [name for name, _ in found.prompts[0].rows]
    assert (len(names), names[0], names[-1]) == (10, "N = 1k", "N = 30k")
    for _, cells in found.prompts[0].rows:
        assert [cells[0].D, cells[-1].D, len(cells)] == ["D = 1k", "D = 12k", 6]


def test_sizes_with_horizons_of_their_own_are_all_shown():
    """As on an isoFLOP grid, where hardly two sizes share a horizon."""
    rows = pd.DataFrame(
        [
            {"run_id": f"{n}-{d}", "n_total": n * 1000, "seed": 0, "tokens": d * 1000 // n}
            for n in (1, 2, 3, 5)
            for d in (7, 11, 13)
        ]
    ).assign(prompt="p", text="t")
    found = shown(rows, rows)
    assert found.left_out == ()
    assert [len(cells) for _, cells in found.prompts[0].rows] == [3] * 4
    assert all(cell for _, cells in found.prompts[0].rows for cell in cells)


def test_models_of_several_vocabularies_are_told_apart(runs):
    frame = written(runs)
    table = runs.assign(vocab_size=np.where(runs["n_total"] > 100_000, 2048, 257))
    names = [name for name, _ in samples.select(frame, "", table).prompts[0].rows]
    assert (names[0], names[-1]) == ("N = 24k, vocabulary 257", "N = 700k, vocabulary 2,048")


def test_signs_that_steer_and_texts_that_end_at_once(analysed, runs):
    frame = written(runs, lambda row: "" if row["tokens"] < 1e6 else "a\x1b[2J\0b\tc")
    page = html(analysed, {}, texts=shown(runs, frame))
    assert "\x1b" not in page
    assert "\0" not in page
    assert "<pre>\na\ufffd[2J\ufffdb\tc</pre>" in page
    assert section(page, "samples").count("ends at once") == 14


def test_runs_that_are_not_in_the_results_are_counted(analysed, runs):
    frame = written(runs)
    frame.loc[:1, "run_id"] = ["x", "y"]
    told = f"2 of {len(runs)} runs in samples.parquet are not in results.parquet and are left out."
    assert told in section(html(analysed, {}, texts=shown(runs, frame)), "samples")
    none = shown(runs, frame.assign(run_id="x"))
    assert none.prompts == ()
    assert "1 of 1 runs" in section(html(analysed, {}, texts=none), "samples")


# Damaged files


@pytest.mark.parametrize("name", ["circuits", "samples"])
@pytest.mark.parametrize("damage", ["text", "schema", "column"])
def test_damage_is_one_message_before_anything_is_analysed(
    folder, runs, monkeypatch, capsys, name, damage
):
    monkeypatch.setattr("analysis.report.analyse_arguments", lambda _: pytest.fail("too late"))
    file = folder / f"{name}.parquet"
    frame = circuits_frame(runs, heads) if name == "circuits" else written(runs)
    if damage == "text":
        file.write_bytes(b"PAR1 and no more")
    else:
        schema = "other/1" if damage == "schema" else f"{name}/1"
        write_parquet(frame.drop(columns=["tokens"]), file, schema)
    before = sorted(path.name for path in folder.iterdir())
    assert main([str(folder)]) == 2
    shown, said = capsys.readouterr()
    assert shown == ""
    assert said.count("\n") == 1
    assert said.startswith(f"error: {file}: ")
    assert f"make it again with `python -m experiments.{name} {folder}`" in said
    assert sorted(path.name for path in folder.iterdir()) == before


def test_readers_of_folders_without_the_files(tmp_path: Path):
    assert samples.read(tmp_path) is None
    (tmp_path / "samples.parquet").mkdir()
    with pytest.raises(DataError, match="not a parquet file"):
        samples.read(tmp_path)
    assert circuits.read(tmp_path) is None


# Vocabularies


def arms(runs):
    """The sweep once with bytes and once with a vocabulary of 2048, in which a token is 3 bytes."""
    main = runs.assign(vocab_size=257, bytes=runs["tokens"], val_bpb=runs["val_loss"] / np.log(2))
    other = main.assign(
        vocab_size=2048, arm="vocab=2048", n_total=runs["n_total"] + 90_000,
        bytes=3 * runs["tokens"], val_loss=2.7 * runs["val_loss"], val_bpb=0.9 * main["val_bpb"],
    )  # fmt: skip
    worse = other.assign(arm="lr*2 vocab=2048", val_bpb=0.1)
    return pd.concat([main, other, worse], ignore_index=True)


def test_vocabularies_are_compared_in_bits_per_byte(analysed, runs):
    both = arms(runs)
    table = vocabularies.table(both)
    assert len(table.body) == 14
    first, second = table.body[0], table.body[1]
    assert first[:5] == ("19.2k", "257", "24k", "4M", "4M")
    assert second[:5] == ("19.2k", "2,048", "114k", "4M", "12M")
    small = both[(both["n_non_embedding"] == 19_200) & (both["tokens"] == 4e6)]
    bits = small[small["arm"] == "vocab=2048"]["val_bpb"].mean()
    assert second[6] == f"<b>{number(bits)}</b>"
    assert "<b>" not in first[6]
    study = replace(analysed.study, table=both)
    text = section(html(replace(analysed, study=study), {}), "vocabularies")
    assert "19.2k 2,048 114k 4M 12M" in text


def test_one_vocabulary_or_unknown_bytes_have_no_such_table(runs):
    both = arms(runs)
    assert vocabularies.table(both[both["vocab_size"] == 257]) is None
    assert vocabularies.table(both.assign(val_bpb=np.nan)) is None
    assert vocabularies.table(both.drop(columns=["bytes"])) is None
