#!/usr/bin/env python3
"""package.py ROOT: whether the documentation of the package that is unpacked in ROOT is complete.

Each relative link of its pages leads to a file of the package, and to a heading of it; each path of the package that a page, an example or the unit names
is there. All of them put guests' sockets into the folder that the unit makes.
"""

import pathlib
import re
import sys

DOC = "usr/share/doc/crosspoint"
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths of the package, but for those that only an administrator makes.
NAMED = re.compile(r"(?<![\w.])/(?:usr/share/(?:doc|man)|usr/lib/systemd|etc)/[\w./@-]*crosspoint[\w./-]*\w")
MADE = ("/etc/crosspoint/ports.d", "/etc/systemd/")
SOCKET = re.compile(r"/run/crosspoint/[\w./-]*\.sock")
# Not of guests.
OWN_SOCKETS = {"/run/crosspoint/control.sock", "/run/crosspoint/supervisor.sock"}


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors of its headings, as GitHub and others make them."""
    times, found = {}, set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", prose(text), re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        before = times.get(slug, 0)
        times[slug] = before + 1
        found.add(f"{slug}-{before}" if before else slug)
    return found


def wrong_links(root, page):
    text = page.read_text()
    for target in LINK.findall(prose(text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.is_relative_to(root) or not to.exists():
            yield f"{target}: the package has no such file"
        elif anchor and anchor not in anchors(to.read_text()):
            yield f"{target}: there is no such heading"


def wrong_names(root, text):
    for path in sorted(set(NAMED.findall(text))):
        if not path.startswith(MADE) and not (root / path.lstrip("/")).exists():
            yield f"{path}: the package does not have it"
    for path in sorted(set(SOCKET.findall(text)) - OWN_SOCKETS):
        if not path.startswith("/run/crosspoint/guests/"):
            yield f"{path} is not in /run/crosspoint/guests"


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    texts = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix in (".md", ".toml", ".yaml", ".yml", ".xml", ".args", ".service", ".conf", ".j2")]
    wrong = [f"{path.relative_to(root)}: {why}" for path in texts for why in wrong_names(root, path.read_text())]
    pages = [path for path in texts if path.suffix == ".md"]
    wrong += [f"{page.relative_to(root)}: {why}" for page in pages for why in wrong_links(root, page)]
    links = sum(len(LINK.findall(page.read_text())) for page in pages)
    if links < 100 or not (root / DOC / "README.md").exists():
        wrong.append(f"{root} has only {links} links: is that the package?")
    if wrong:
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    print(f"{links} links in {len(pages)} pages lead to files of the package")


main()
