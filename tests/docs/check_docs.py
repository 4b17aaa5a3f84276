#!/usr/bin/env python3
"""Checks what the documents say about the tree.

Usage: check_docs.py ROOT     Exits with 1 after printing every violation as path:line: message.

  - A fenced block under `<!-- quoted from PATH -->` is found in that file, word for word.
  - A relative link leads to a file or a folder.
  - A file that is named in backticks by its path from the root exists.
  - In "`name` in `path`" and "`name` and `other` in `path`" the file holds the names.
"""

import pathlib
import re
import sys

FOLDERS = "actors|bench|cli|cmake|docs|engine|examples|scripts|stages|storage|tests|transport"
QUOTE = re.compile(r"<!-- quoted from (\S+) -->\n+```\w*\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
NAMED_FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.(?:hpp|cpp|py|md|txt|toml|cmake|sh|json|csv))`")
NAMES_IN_FILE = re.compile(rf"`([\w:]+)`(?:(?:,| and)\s+`([\w:]+)`)?\s+in\s+`((?:{FOLDERS})/[\w./-]+\.\w+)`")


def violations_of(document, root):
    text = document.read_text()

    def line_of(match):
        return text.count("\n", 0, match.start()) + 1

    for match in QUOTE.finditer(text):
        source = root / match.group(1)
        if not source.is_file():
            yield line_of(match), f"quotes {match.group(1)}, which does not exist"
        elif match.group(2) not in source.read_text():
            yield line_of(match), f"does not quote {match.group(1)} word for word"
    for match in LINK.finditer(text):
        target = match.group(1)
        if not re.match(r"\w+:", target) and not (document.parent / target).exists():
            yield line_of(match), f"links to {target}, which does not exist"
    for match in NAMED_FILE.finditer(text):
        if not (root / match.group(1)).exists():
            yield line_of(match), f"names {match.group(1)}, which does not exist"
    for match in NAMES_IN_FILE.finditer(text):
        source = root / match.group(3)
        for name in filter(None, match.groups()[:2]):
            if source.is_file() and name.split("::")[-1] not in source.read_text():
                yield line_of(match), f"looks for {name} in {match.group(3)}, where it is not"


def main():
    root = pathlib.Path(sys.argv[1])
    documents = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")]
    documents += root.glob("bench/**/*.md")
    count = 0
    for document in sorted(documents):
        for line, message in violations_of(document, root):
            print(f"{document.relative_to(root)}:{line}: {message}")
            count += 1
    print(f"{len(documents)} documents, {count} violations")
    return 1 if count or not documents else 0


if __name__ == "__main__":
    sys.exit(main())
