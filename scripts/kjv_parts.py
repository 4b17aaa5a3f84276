#!/usr/bin/env python3
"""Makes labelled texts of the King James Bible: passages, each with the part of the Bible that it is from.

A passage is a few verses in a row of one chapter, without their numbers, and every verse is in exactly one passage.
Its label is the part that its book is usually counted among, and its group is the chapter: `troupe train` holds out
whole chapters, so that none has passages on both sides.

Usage: scripts/kjv_parts.py [--verses N] [FILE]     writes kjv-parts.tsv, which examples/classes.toml reads
Needs Debian's bible-kjv.
"""

import argparse
import itertools
import pathlib
import re
import shutil
import subprocess

PARTS = {
    "Law": "Ge Exo Lev Num Deu",
    "History": "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est",
    "Wisdom": "Job Psa Prv Eccl SSol",
    "Prophets": "Isa Jer Lam Eze Dan Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal",
    "Gospels and Acts": "Mat Mark Luke John Acts",
    "Letters": "Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude",
    "Revelation": "Rev",
}
PART_OF = {book: part for part, books in PARTS.items() for book in books.split()}
VERSE_COUNT = 31_102


def verses():
    """Yields book, chapter and words of each verse."""
    if shutil.which("bible") is None:
        raise SystemExit("the text comes from a Debian package: apt-get install bible-kjv")
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          check=True, text=True).stdout
    lines = text.splitlines()
    if len(lines) != VERSE_COUNT:
        raise SystemExit(f"bible has printed {len(lines)} lines, expected a verse on each of {VERSE_COUNT}")
    for line in lines:
        book, chapter, words = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+ (.+)", line).groups()
        yield book, chapter, words


def passages(verses_max):
    """Yields label, group and text of each passage: the last of a chapter may be shorter."""
    for (book, chapter), rows in itertools.groupby(verses(), key=lambda verse: verse[:2]):
        words = [row[2] for row in rows]
        for begin in range(0, len(words), verses_max):
            yield PART_OF[book], f"{book} {chapter}", " ".join(words[begin:begin + verses_max])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verses", type=int, default=3, help="in a passage (3)")
    parser.add_argument("file", nargs="?", default="kjv-parts.tsv", type=pathlib.Path)
    args = parser.parse_args()
    if args.verses < 1:
        parser.error(f"--verses: expected at least 1, found {args.verses}")
    table = "".join(f"{label}\t{group}\t{text}\n" for label, group, text in passages(args.verses))
    args.file.write_text("label\tgroup\ttext\n" + table)
    print(f"{table.count(chr(10))} passages in {args.file}")


if __name__ == "__main__":
    main()
