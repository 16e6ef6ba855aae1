"""Load WordNet's data files (wndb(5WN)) into SQLite: senses, words, and an index of the glosses."""

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}

SCHEMA = """
CREATE TABLE sense (id INTEGER PRIMARY KEY, part TEXT NOT NULL, gloss TEXT NOT NULL);
CREATE TABLE word (word TEXT NOT NULL, sense INTEGER NOT NULL REFERENCES sense);
CREATE VIRTUAL TABLE gloss_index USING fts5(gloss, content=sense, content_rowid=id);
"""


def senses(path: Path) -> Iterator[tuple[list[str], str]]:
    """Give the words and the gloss of each line of a data file."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        parts = fields.split()
        count = int(parts[3], 16)
        words = [parts[4 + 2 * n].partition("(")[0].replace("_", " ") for n in range(count)]
        yield words, gloss.strip()


def main() -> None:
    """Make the database: load.py FOLDER DATABASE."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(target) as database:
        database.executescript(SCHEMA)
        for suffix, part in PARTS.items():
            for words, gloss in senses(folder / f"data.{suffix}"):
                row = database.execute(
                    "INSERT INTO sense (part, gloss) VALUES (?, ?)", (part, gloss)
                )
                database.executemany(
                    "INSERT INTO word VALUES (?, ?)", [(word, row.lastrowid) for word in words]
                )
        database.execute("CREATE INDEX word_word ON word (word COLLATE NOCASE)")
        database.execute("INSERT INTO gloss_index (gloss_index) VALUES ('rebuild')")
        database.execute(
            "CREATE TABLE stats AS SELECT (SELECT count(*) FROM sense) AS senses,"
            " (SELECT count(DISTINCT word) FROM word) AS words"
        )
    database.execute("VACUUM")
    database.close()


if __name__ == "__main__":
    main()
