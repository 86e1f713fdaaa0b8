from html.parser import HTMLParser

import pytest

from safemax_pl.reports.report import report

VOID = {"meta", "link", "img", "br", "wbr", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and refuses what isn't closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def folder(write_run_to, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for seed in (0, 1, 2):
        write_run_to(runs, "a", seed, guidance=(0, 2))
        write_run_to(runs, "b", seed, guidance=(0, 2), hardware="H200" if seed == 2 else "CPU")
    return report([runs], title="Digits <& more>")


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def test_tags_are_balanced_and_the_title_is_escaped(folder, page):
    text = (folder / "report.html").read_text()
    assert "<title>Digits &lt;&amp; more&gt;</title>" in text and "<h1>Digits &lt;&amp; more&gt;</h1>" in text
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_needs_nothing_but_itself(folder, page):
    sources = [tag.get("src") or tag.get("href") for name in ("img", "script", "link", "a") for tag in page.all(name)]
    assert all(source is None or source.startswith(("data:", "#")) for source in sources)
    text = (folder / "report.html").read_text()
    assert "@import" not in text and "url(" not in text and "http" not in text.replace("http-equiv", "")


def test_every_picture_has_a_text(page):
    pictures = page.all("img")
    assert len(pictures) >= 14
    assert all(len(picture["alt"]) > 60 for picture in pictures)


def test_every_table_has_a_caption_and_every_header_a_scope(page):
    assert len(page.all("caption")) == len(page.all("table")) == 5
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    scrolling = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)


def test_the_page_has_landmarks_and_its_links_lead_somewhere(page):
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("nav")) == len(page.all("h1")) == 1
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [link["href"] for link in page.all("a")]
    assert links[0] == "#content"
    assert {link.removeprefix("#") for link in links} <= ids


def test_every_protocol_field_and_command_is_on_the_page(folder):
    for text in ((folder / "report.html").read_text().replace("<wbr>", ""), (folder / "report.md").read_text()):
        for field in ("sampler.steps", "data.fingerprint", "reference.n", "plan.forget_per_class", "3: 1292"):
            assert field in text, field
        for seed in (0, 1, 2):
            assert f"python -m safemax_pl.fit name=a-{seed}-3" in text


def test_different_hardware_is_marked_and_its_seconds_are_not_bold(folder):
    text = (folder / "report.md").read_text()
    assert "**Note:** Different hardware: CPU (cpu); CPU, 1 threads (cpu); H200 (cpu)." in text
    assert "**10" not in text and "**1.5e+12**" in text
    assert "No front: seconds on different hardware can't be compared." in text


def test_how_the_weights_were_made_is_on_both_pages(folder):
    line = "| a | SAFEMax | 4 | Adam | 0.0002 | 16 | 32 | – | raw | 3 | c0ffee |"
    assert line in (folder / "report.md").read_text()
    cells = "</td><td>".join(line.strip("| ").split(" | ")[1:])
    assert f'<th scope="row">a</th><td>{cells}</td>' in (folder / "report.html").read_text()


def test_the_files_with_the_numbers_are_named(folder):
    for name in ("report.html", "report.md"):
        assert "per_class.csv" in (folder / name).read_text()
    assert (folder / "per_class.csv").exists()


def test_markdown_links_pictures_that_exist(folder):
    links = [
        line.split("](")[1].rstrip(")") for line in (folder / "report.md").read_text().splitlines() if "![" in line
    ]
    assert len(links) >= 14
    assert all((folder / link).exists() for link in links)
