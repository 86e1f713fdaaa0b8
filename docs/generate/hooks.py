"""Hooks of MkDocs: generate the API and configuration references, and link to files outside docs/."""

import re
from pathlib import Path

import configuration
import reference
from markdown import Extension, Markdown
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
COPIED = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md", "experiments/README.md": "studies.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


class PlainFormulas(Extension):
    """Keep underscores and ε* as they are: in these pages only other `*` mark emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Before emphasis, at 60
        md.inlinePatterns.register(SimpleTextInlineProcessor(r"(_+|(?<=ε)\*)"), "formulas", 65)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the two generated sections of the navigation."""
    config.markdown_extensions.append(PlainFormulas())  # type: ignore[arg-type]
    for entry in config.nav or []:
        if "Configuration" in entry:
            entry["Configuration"] += configuration.navigation()
        if "API reference" in entry:
            entry["API reference"] = reference.navigation()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pages whose text lives in the repository's root."""
    pages = configuration.pages() | reference.pages()
    for source, page in COPIED.items():
        pages[page] = _links_from((ROOT / source).read_text(), ROOT / source)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that lead out of docs/ into links to the repository, or into plain text if it has no address."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        image, text, target, _ = match.groups()
        path = (folder / target).resolve()
        if image or path.is_relative_to(config.docs_dir) or not path.exists():
            return match[0]  # MkDocs checks these
        if not config.repo_url:
            place = str(path.relative_to(ROOT))
            return f"`{place}`" if text.strip("`/") == place else f"{text} (`{place}`)"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path.relative_to(ROOT)})"

    return LINK.sub(replace, markdown)


def _links_from(text: str, source: Path) -> str:
    """The text of a file outside docs/, with its links written as seen from docs/."""

    def replace(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        path = (source.parent / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return f"{image}[{label}]({path.relative_to(ROOT / 'docs')}{anchor or ''})"
        page = COPIED.get(str(path.relative_to(ROOT)))
        return f"{image}[{label}]({page or f'../{path.relative_to(ROOT)}'}{anchor or ''})"

    return LINK.sub(replace, text)
