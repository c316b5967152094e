"""mkdocs hooks: pages that lie outside docs/, links to them, and equations as MathML.

The README, the changelog and the model cards belong to the site as well, and their links have to
work on a code host too. So the files stay where they are, and every relative link is resolved from
the file that contains it.
"""

import html
import os
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# Page of the site -> file of the repository.
PAGES = {
    "index.md": ROOT / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    **{
        f"models/{card.parent.name}.md": card
        for card in sorted(ROOT.glob("emu_jax/weights/*/README.md"))
    },
}
SITE = {path: uri for uri, path in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
EQUATION = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL
)


def on_files(files, config):
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for image in sorted(ROOT.glob("emu_jax/weights/*/*.png")):
        uri = f"models/{image.parent.name}/{image.name}"
        SITE[image] = uri
        files.append(File.generated(config, uri, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown, page, config, files):
    source = Path(page.file.abs_src_path)

    def resolve(link: re.Match) -> str:
        target = (source.parent / link[1]).resolve()
        uri = SITE.get(target)
        if uri is None and target.is_relative_to(DOCS):
            uri = target.relative_to(DOCS).as_posix()
        if uri is None:  # mkdocs reports it: a page links to what the site does not have
            return link[1]
        return os.path.relpath(uri, Path(page.file.src_uri).parent)

    return LINK.sub(resolve, markdown)


def on_page_content(content, page, config, files):
    def mathml(equation: re.Match) -> str:
        display = "block" if equation[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(equation[2]), display=display)

    return EQUATION.sub(mathml, content)
