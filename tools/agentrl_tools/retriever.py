"""`Retriever`: a search tool over HTTP, in the protocol of Search-R1's retrieval server.

    POST URL {"queries": ["capital of Peru"], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id": "17", "contents": "\\"Lima\\"\\nLima is the capital ..."}, "score": 0.71}, ...]]}

One list of documents a query. Queries that come within a few milliseconds, from however many episodes, go as one request: a
dense retriever answers a batch in about the time of one.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentrl.errors import ToolError, UserError, capture, describe
from agentrl.tool import ToolOutput

if TYPE_CHECKING:
    import aiohttp

NOTHING = "no document"
"""What the model reads when nothing fits."""
_GRACE_S = 5.0
"""The tool's own deadline comes so much later than the request's, whose message says more."""
_BACKOFF_S = 0.25
"""Before the first retry; twice as long before each further one."""
_CURE = "is it the address of a Search-R1 retrieval server, such as http://127.0.0.1:8000/retrieve?"


@dataclass(frozen=True, slots=True)
class Passage:
    """One document that a retriever gave, and how well it fits."""

    id: str
    title: str
    text: str
    score: float | None


class Retriever:
    """A tool, `search(query)`: the `topk` best documents of a retrieval server, as Search-R1 writes them.

    `timeout` bounds one call with all its `retries`, which are for connection errors and the statuses 429 and 5xx. `window` is
    how long the first query of a batch waits for others, in seconds (0 = only those of the same moment), `batch` how many go
    into a request, `concurrency` how many requests are under way at once. A server that cannot be reached, or answers with
    anything but documents, is a `ToolError`: the episode is lost, and is no failure of the model. One object serves any number
    of agents and event loops; its connections are closed with the loop, or by `aclose`.
    """

    name = "search"
    idempotent = True

    def __init__(
        self,
        url: str,
        *,
        topk: int = 3,
        timeout: float = 30.0,
        retries: int = 3,
        window: float = 0.002,
        batch: int = 64,
        concurrency: int = 8,
        max_bytes: int = 16 << 20,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"Retriever needs an address such as http://127.0.0.1:8000/retrieve, got {url!r}")
        least = {"topk": topk, "batch": batch, "concurrency": concurrency, "max_bytes": max_bytes}
        for what, value in least.items():
            if value < 1:
                raise UserError(f"Retriever needs {what} >= 1, got {value}")
        if timeout <= 0 or retries < 0 or window < 0:
            raise UserError(f"Retriever needs timeout > 0, retries and window >= 0, got {timeout}, {retries} and {window}")
        try:
            import aiohttp  # noqa: F401
        except ImportError as error:
            raise UserError("Retriever needs aiohttp: pip install 'agentrl-runtime[retriever]'") from error
        self.url, self.topk, self.timeout = url, topk, timeout + _GRACE_S
        self._timeout, self._tries, self._window, self._batch = timeout, retries + 1, window, batch
        self._concurrency, self._max_bytes = concurrency, max_bytes
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = weakref.WeakKeyDictionary()

    async def __call__(self, query: str) -> ToolOutput:
        """Search the documents for `query` and return the ones that fit best."""
        found = await self.find(query)
        data = {"documents": [passage.id for passage in found], "scores": [passage.score for passage in found]}
        return ToolOutput(render(found), data=data)

    async def find(self, query: str) -> list[Passage]:
        """The documents that the tool would give for `query`, best first."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            link = self._links[loop] = _Link(self)
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                return await link.ask(query)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise ToolError(
                f"retriever {self.url} gave nothing within {self._timeout:g} s; allow it more, or fewer queries"
            ) from error

    async def aclose(self) -> None:
        """Closes the connections of this event loop; the next call opens new ones."""
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    async def request(self, session: aiohttp.ClientSession, queries: Sequence[str]) -> list[list[Passage]]:
        """The documents of each query. Tries again what may pass."""
        problem = ""
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(_BACKOFF_S * 2 ** (attempt - 1))
            status, body, problem = await self._post(session, queries)
            if not problem and status != 200:
                problem = f"answered {status}: {_excerpt(body)}"
                if status != 429 and status < 500:
                    raise ToolError(f"retriever {self.url} {problem}; {_CURE}")
            if not problem:
                return read_answer(body, len(queries), self.topk, f"retriever {self.url}")
        tried = f" after {self._tries} tries" if self._tries > 1 else ""
        raise ToolError(f"retriever {self.url} {problem}{tried}; look whether the server runs, and into its log")

    async def _post(self, session: aiohttp.ClientSession, queries: Sequence[str]) -> tuple[int, bytes, str]:
        """The status and body of one request, or what kept it from coming."""
        import aiohttp

        asked = {"queries": list(queries), "topk": self.topk, "return_scores": True}
        try:
            async with session.post(self.url, json=asked) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > self._max_bytes:
                        what = f"answered with more than {self._max_bytes} bytes for {len(queries)} queries"
                        raise ToolError(f"retriever {self.url} {what}; lower topk or batch, or raise max_bytes")
                return response.status, bytes(body), ""
        except (aiohttp.ClientError, OSError) as error:
            return 0, b"", f"could not be reached ({describe(error)})"


class _Link:
    """One retriever in one event loop: a session, the queries that wait for company, and the requests under way."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[asyncio.Future[list[Passage]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(retriever._concurrency)
        self._session = _open_session()

    async def ask(self, query: str) -> list[Passage]:
        if not self._waiting:
            self._loop.call_later(self._retriever._window, self._send)
        future: asyncio.Future[list[Passage]] = self._loop.create_future()
        self._waiting.setdefault(query, []).append(future)
        return await future

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._session.aclose()

    def _send(self) -> None:
        waiting, self._waiting = list(self._waiting.items()), {}
        size = self._retriever._batch
        for start in range(0, len(waiting), size):
            task = self._loop.create_task(self._request(dict(waiting[start : start + size])), name="retriever")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _request(self, batch: dict[str, list[asyncio.Future[list[Passage]]]]) -> None:
        """Asks for what somebody still waits for, and tells those who wait."""
        try:
            async with self._room:
                queries = [query for query, futures in batch.items() if not all(future.done() for future in futures)]
                if queries:
                    await self._answer(batch, queries)
        finally:
            for future in chain.from_iterable(batch.values()):
                future.cancel()  # of those that have no answer: the connections were closed

    async def _answer(self, batch: dict[str, list[asyncio.Future[list[Passage]]]], queries: list[str]) -> None:
        found: list[list[Passage]] = []
        with capture() as caught:
            found = await self._retriever.request(await anext(self._session), queries)
        for at, query in enumerate(queries):
            for future in batch[query]:
                if future.done():  # whoever asked was cancelled
                    continue
                if caught.error is not None:
                    future.set_exception(caught.error)
                else:
                    future.set_result(found[at])


async def _open_session() -> AsyncGenerator[aiohttp.ClientSession, None]:
    """One session, again and again. The event loop closes its async generators at its end, and so the session's connections."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        while True:
            yield session


def render(found: Sequence[Passage]) -> str:
    """What the model reads, as Search-R1 writes it: `Doc 1(Title: "Lima") Lima is ...`, a line each."""
    return "\n".join(f"Doc {at}(Title: {passage.title}) {passage.text}" for at, passage in enumerate(found, 1)) or NOTHING


def read_answer(body: bytes, queries: int, topk: int, who: str) -> list[list[Passage]]:
    """The documents in an answer, at most `topk` a query. `ToolError` in a line for anything else."""
    answer: Any = None
    with capture() as caught:
        answer = json.loads(body)
    if caught.error is not None:
        raise ToolError(f"{who} answered with something that is no JSON: {_excerpt(body)}; {_CURE}")
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list):
        raise ToolError(f"{who} answered without a list 'result': {_excerpt(body)}; {_CURE}")
    if len(result) != queries:
        raise ToolError(f"{who} answered {queries} queries with {len(result)} lists of documents; {_CURE}")
    return [_passages(documents, topk, who) for documents in result]


def _passages(documents: Any, topk: int, who: str) -> list[Passage]:
    if not isinstance(documents, list):
        raise ToolError(f"{who} answered a query with {_excerpt(documents)}, which is no list of documents; {_CURE}")
    found: list[Passage] = []
    for entry in documents[:topk]:
        document = entry.get("document", entry) if isinstance(entry, dict) else None
        contents = document.get("contents") if isinstance(document, dict) else None
        score = entry.get("score") if isinstance(entry, dict) else None
        if not isinstance(contents, str) or isinstance(score, bool) or not isinstance(score, int | float | None):
            what = '{"document": {"id", "contents"}, "score"}'
            raise ToolError(f"{who} gave a document that is not {what}: {_excerpt(entry)}; {_CURE}")
        title, _, text = contents.partition("\n")
        name = document.get("id")
        found.append(Passage(title.strip('"') if name is None else str(name), title, text, score))
    return found


def _excerpt(value: Any) -> str:
    """The beginning of what was got, in a line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else json.dumps(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= 120 else f"{text[:120]}...")
