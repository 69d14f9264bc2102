"""`Search`: the documents of a corpus that fit a query best, by BM25.

The index is SQLite's FTS5, in memory and immutable. Measured on the 2,214 documents of the bundled atlas (CPU time, one
core of an AMD EPYC): a query that is a title, which is what agents mostly send, is looked up in 3 us; words take 20 us, or
180 us where one of them stands in many documents; the table takes 11 ms to build. bm25s (numpy, one more dependency) takes
57 us for any words and 33 ms to build. Of 300 documents asked for by their title and a common word, FTS5 puts 0.98 first and
bm25s 0.99; asked for by the title alone, 0.983 and 0.99 where this tool, which looks titles up, gives all.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl.tool import ToolOutput

TITLE_WEIGHT = 10.0
"""A word in the title counts as this many in the text."""
LOOP_LIMIT = 5000
"""A corpus of more documents is searched in a thread, so that a query of common words does not hold up the event loop."""
NOTHING = "no document"
"""What the model reads when nothing fits."""
_STOP_TEXT = (
    "a an and are as at be by did do does for from had has have how i in into is it its of on or that "
    "the their there these this to was were what when where which who whom whose why will with would you"
)
STOP_WORDS = frozenset(_STOP_TEXT.split())
"""Words of a query that are passed over when it has others."""
_FIND = "SELECT rowid FROM documents WHERE documents MATCH ? ORDER BY rank, rowid LIMIT ?"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus."""

    id: str
    title: str
    text: str


class Search:
    """A tool, `search(query)`: the `top_k` best documents of a corpus.

    The corpus is a JSONL file with {"title", "text"} and maybe "id" on each line, or such mappings. Without an id the title
    is the id (a repeated one gets #2, #3 ...). Documents whose title is the query come first, also where it differs by
    case, accents or blanks; then the rest by BM25 over the query's words, ties by id: the answer depends on corpus and query
    alone. `max_chars` cuts each document. One object serves any number of agents, threads and event loops. Raises
    `UserError` for a missing or empty corpus and for a malformed line, with its number.
    """

    name = "search"
    idempotent = True

    def __init__(self, corpus: str | Path | Sequence[Mapping[str, Any]], *, top_k: int = 1, max_chars: int = 2000) -> None:
        if top_k < 1 or max_chars < 1:
            raise UserError(f"Search needs top_k >= 1 and max_chars >= 1, got top_k={top_k}, max_chars={max_chars}")
        self.top_k = top_k
        self.max_chars = max_chars
        if isinstance(corpus, (str, Path)):
            self._index = _index_of(Path(corpus))
        else:
            self._index = _Index(_documents([(f"document {at}", entry) for at, entry in enumerate(corpus)], "the given corpus"))

    def __len__(self) -> int:
        return len(self._index.documents)

    def find(self, query: str) -> list[Document]:
        """The documents that the tool would give for `query`, best first."""
        return self._index.find(query, self.top_k)

    async def __call__(self, query: str) -> ToolOutput:
        """Search the documents for `query`, a name or a few words, and return the ones that fit best."""
        if len(self) <= LOOP_LIMIT or self._index.by_title(query):
            found = self.find(query)
        else:
            found = await asyncio.to_thread(self.find, query)
        return ToolOutput(self.render(found), data={"documents": [document.id for document in found]})

    def render(self, found: Sequence[Document]) -> str:
        """What the model reads of the documents: of each its title, then its text."""
        texts = [f"{document.title}\n{document.text}" for document in found]
        return "\n\n".join(text if len(text) <= self.max_chars else text[: self.max_chars] + "…" for text in texts) or NOTHING


class _Index:
    """Titles by their folded form, and an FTS5 table that is filled at the first query that is no title."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self._titles: dict[str, list[Document]] = {}
        for document in documents:
            self._titles.setdefault(fold(document.title), []).append(document)
        self._lock = threading.Lock()
        self._table: sqlite3.Connection | None = None
        self._by_row: list[Document] = []
        self._common: frozenset[str] = frozenset()

    def by_title(self, query: str) -> list[Document]:
        same = self._titles.get(fold(query), [])
        return same if len(same) < 2 else sorted(same, key=lambda document: document.title != query)

    def find(self, query: str, top_k: int) -> list[Document]:
        exact = self.by_title(query)[:top_k]
        words = list(dict.fromkeys(_WORD.findall(unicodedata.normalize("NFC", query))))
        if len(exact) == top_k or not words:
            return exact
        with self._lock:
            table = self._open()
            # FTS5 gives a word of most documents a weight of nearly nothing, at the price of scoring them all: such words
            # are asked for only where the others find too little.
            named = [word for word in words if fold(word) not in STOP_WORDS] or words
            rare = [word for word in named if fold(word) not in self._common]
            rows: list[tuple[int]] = []
            for chosen in (rare, named):
                if chosen and len(rows) < top_k + len(exact):
                    # Quoted, no word is read as FTS5 syntax; \w leaves no quote inside one.
                    match = " OR ".join(f'"{word}"' for word in chosen)
                    rows = table.execute(_FIND, (match, top_k + len(exact))).fetchall()
        ranked = (self._by_row[row] for (row,) in rows)
        return (exact + [document for document in ranked if document not in exact])[:top_k]

    def _open(self) -> sqlite3.Connection:
        if self._table is None:
            # One statement at a time, from whichever thread holds the lock.
            table = sqlite3.connect(":memory:", check_same_thread=False)
            table.execute("CREATE VIRTUAL TABLE documents USING fts5(title, text, tokenize='unicode61 remove_diacritics 2')")
            table.execute(f"INSERT INTO documents (documents, rank) VALUES ('rank', 'bm25({TITLE_WEIGHT})')")
            self._by_row = sorted(self.documents, key=lambda document: document.id)
            rows = ((row, document.title, document.text) for row, document in enumerate(self._by_row))
            table.executemany("INSERT INTO documents (rowid, title, text) VALUES (?, ?, ?)", rows)
            table.execute("CREATE VIRTUAL TABLE words USING fts5vocab(documents, row)")
            most = table.execute("SELECT term FROM words WHERE doc * 2 > ?", (len(self.documents),))
            self._common = frozenset(term for (term,) in most)
            self._table = table
        return self._table


def fold(text: str) -> str:
    """The text without case, accents and needless blanks."""
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return " ".join(text.casefold().split())


def _index_of(path: Path) -> _Index:
    """The index of a file as it is now; agents that search the same file share one."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"corpus {str(path)!r} cannot be read ({error.strerror}); give a JSONL file") from error
    return _cached_index(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _cached_index(path: str, changed: int, size: int) -> _Index:
    del changed, size
    entries: list[tuple[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    entries.append((f"{path}:{number}", _parsed(line, f"{path}:{number}")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus {path!r} cannot be read ({error}); give a JSONL file in UTF-8") from error
    return _Index(_documents(entries, f"corpus {path!r}"))


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f'{where} is no JSON ({error}); each line must be {{"title": ..., "text": ...}}') from error


def _documents(entries: Sequence[tuple[str, Any]], what: str) -> tuple[Document, ...]:
    """The documents of (where, entry) pairs, checked."""
    if not entries:
        raise UserError(f'{what} has no documents; each needs {{"title": ..., "text": ...}}')
    found: dict[str, Document] = {}
    for where, entry in entries:
        fields = entry if isinstance(entry, Mapping) else {}
        title, text = fields.get("title"), fields.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise UserError(f'{where} must be {{"title": text, "text": text, "id": optional}}, got {str(entry)[:80]}')
        given = fields.get("id")
        name = title if given is None else str(given)
        if given is not None and name in found:
            raise UserError(f"{where} has the id {name!r} of an earlier document; ids must differ")
        if name in found:
            name = next(f"{title}#{count}" for count in range(2, len(found) + 3) if f"{title}#{count}" not in found)
        found[name] = Document(name, title, text)
    return tuple(found.values())
