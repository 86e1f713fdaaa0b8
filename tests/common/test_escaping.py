"""Names are text: on the terminal, in CSV, Markdown, HTML, pictures and file names."""

import csv
import io
import json
import random
import re
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import torch

from safemax_pl.common import escaping
from safemax_pl.common.console import plain_console
from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.common.figures import panels, save_figure
from safemax_pl.common.files import remove_scratch, write_csv
from safemax_pl.evaluation import figures
from safemax_pl.runs import tables

matplotlib.use("Agg")

NASTY = [
    "<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "</script>", "[red]x[/]", "[/]", "$_$", r"a\$b$",
    "=1+1", "+cmd|' /C calc'!A1", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1",
    "\ufeff=1", "\u200b+1", "\u00a0-x", "\u00a0 @x", "../../x", "/etc/passwd", "a|b",
    "a\nb", "](javascript:alert(1))", "```", "\x1b]0;x\x07", "\u202etxt.exe", "\udcff", "x" * 300, "", "犬",
]  # fmt: skip
ALPHABET = "aZ9 _-=+@$<>&\"'`*[](){}|\\/.:;#!~^%\n\t\r\x00\x1b\x7f\u202e\ufeff犬é\U0001f600"
RANDOM = random.Random(0)
TEXTS = [*NASTY, *("".join(RANDOM.choices(ALPHABET, k=RANDOM.randrange(1, 30))) for _ in range(300))]


def test_the_terminal_shows_the_text_itself():
    for text in TEXTS:
        with redirect_stdout(io.StringIO()) as out:
            plain_console().print(escaping.printable(text), soft_wrap=True)
        shown = out.getvalue().removesuffix("\n")
        assert shown == escaping.printable(text)
        assert not any(ord(one) < 32 or ord(one) == 127 for one in shown)


def test_no_cell_of_a_csv_file_is_a_formula():
    for text in TEXTS:
        found = escaping.cell(text)
        seen = re.sub(r"^[\s\u200b\ufeff]+", "", found)
        if (seen[:1] and seen[0] in "=+-@＝＋－＠") or found[:1] in ("\t", "\r"):
            float(found)  # a number stays one


class Tags(HTMLParser):
    """The text of a page, and how many tags and comments it has."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.text, self.count = "", 0

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, *_):
        self.count += 1

    handle_endtag = handle_comment = handle_decl = handle_pi = handle_starttag


def test_html_and_markdown_hold_no_tags():
    for text in TEXTS:
        page = Tags()
        page.feed(f"{escaping.html(text)} ")
        page.close()
        assert not page.count and page.text == f"{escaping.printable(text)} "
        line = escaping.markdown(text)
        assert not set(line) & {"<", "\n", "$"} and not line.replace("\\\\", "").replace("\\|", "").count("|")


def test_a_part_of_a_file_name_is_one():
    for text in TEXTS:
        assert Path(f"a-{escaping.slug(text)}.png").name == f"a-{escaping.slug(text)}.png"
        assert escaping.slug(text).isascii() and 0 < len(escaping.slug(text)) <= 60 and "." not in escaping.slug(text)


def test_numbers_stay_numbers_and_formulas_become_text(tmp_path):
    rows = [{"step": 1, "=a": -0.5, "text": "-0.5"}, {"step": 2, "=a": None, "text": "=1+1"}]
    write_csv(tmp_path / "x.csv", rows)
    read = list(csv.reader((tmp_path / "x.csv").read_text().splitlines()))
    assert read == [["step", "'=a", "text"], ["1", "-0.5", "-0.5"], ["2", "", "'=1+1"]]


def test_errors_are_one_line_without_control_characters():
    with redirect_stderr(io.StringIO()) as out, pytest.raises(SystemExit), clear_errors():
        raise UserError("name \x1b[31mred\nnext\u202e")
    assert out.getvalue() == "error: name \\x1b[31mred next\\u202e\n"


def test_pictures_show_names_as_they_are(tmp_path):
    """And numbers along logarithmic axes as powers of ten."""
    figure, (axis,) = panels(1)
    axis.set_title("$_$")
    axis.set_xticks([0, 1], ["cost_$5_to_$9", r"\$a$"])
    axis.plot([0, 1], [1, 1e9], label="$^$")
    axis.set_yscale("log")
    axis.legend()
    figure.suptitle("a$_$b$\\frac$")
    save_figure(figure, tmp_path / "x.png")
    assert not axis.title.get_parse_math() and all(not label.get_parse_math() for label in axis.get_xticklabels())
    assert all(label.get_parse_math() for label in axis.get_yticklabels())


def test_a_table_of_a_run_shows_any_name(capsys):
    plan, sampler = {"name": "[/b]:cat:", "forget_per_class": 1, "retain_total": 9}, {"name": "[red]", "steps": 3}
    protocol = {"plan": plan, "sampler": sampler, "forget_classes": ["a[/]b"]}
    scores = {"w=0": {"[bold": {"ua": 1.0}, "x[/]": {"ua": 0.5}}}
    tables.print_scores({"protocol": protocol, "scores": scores, "cost": {"[/]": 1.0}}, "name[/]")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("name[/]", "a[/]b", "[bold", "x[/]", "plan [/b]:cat:", "[red] 3 steps"))


def test_scratch_that_is_not_ours_is_left_and_links_are_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".a.12345678.part").symlink_to(tmp_path / "kept")
    (tmp_path / ".b.12345678.part").touch()
    (tmp_path / ".c.12345678.part").mkdir()
    remove_scratch(tmp_path)
    left = {".a.12345678.part", ".b.12345678.part", "kept"}
    assert {path.name for path in tmp_path.iterdir()} == left and (tmp_path / "kept" / "file").exists()


def test_a_picture_of_images_takes_any_class_name(tmp_path):
    from safemax_pl.data.sampling_plan import SamplingPlan

    plan = SamplingPlan([0], [1], 2, 2)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    figures.sample_grid(tmp_path / "x.png", {"a$_$b": images}, plan, ["cost_$5_to_$9", "$^$"], [0], json.dumps("$_$"))
    assert (tmp_path / "x.png").stat().st_size > 1000
