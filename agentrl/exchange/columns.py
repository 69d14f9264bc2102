"""Arrow: a row per episode with its turns as list<struct>, for Parquet files and Hugging Face datasets.

Free JSON is its text. What a column cannot hold (an integer beyond 64 bits, half a surrogate pair) stands in the column
`exact` instead, as the JSON line of the whole row; such a row's other columns hold only what finds it again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.episode import FloatArray, IntArray, token_ids
from agentrl.errors import UserError
from agentrl.exchange.lines import of_line, to_line
from agentrl.exchange.row import SCHEMA, Entry, check_schema, of_row, to_row
from agentrl.store.codec import encode_json

BATCH = 256
"""Episodes that are held in memory at once."""


class ArrowForm:
    """See `Form`."""

    def json(self, value: Any) -> Any:
        return encode_json(value)

    def of_json(self, held: Any) -> Any:
        return json.loads(held)

    def number(self, value: float) -> Any:
        return float(value)

    def of_number(self, held: Any) -> float:
        return held

    def ids(self, ids: IntArray) -> Any:
        return ids

    def of_ids(self, held: Any) -> IntArray:
        return token_ids(held)

    def floats(self, values: FloatArray) -> Any:
        return values

    def of_floats(self, held: Any) -> FloatArray:
        return np.asarray(held, np.float32)

    def data(self, data: bytes) -> Any:
        return data

    def of_data(self, held: Any) -> bytes:
        return held


_FORM = ArrowForm()


def need(package: str) -> Any:
    """A package of the extra `export`; `UserError` if it is not there."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f'this format needs {error.name}; pip install "agentrl-runtime[export]"') from error


def arrow_schema(messages: bool = False) -> Any:
    """The Arrow schema of `to_row`; its metadata name the version."""
    pa = need("pyarrow")
    text, whole, number, yes, data = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary()
    ids, floats = pa.list_(pa.int32()), pa.list_(pa.float32())

    def struct(**types: Any) -> Any:
        return pa.struct(list(types.items()))

    rewards = pa.list_(struct(name=text, value=number, turn=text, agent=text, after=text))
    version = {"lineage": text, "policy": text, "step": whole, "digest": text}
    call = struct(
        name=text, arguments=text, status=text, output=text, started=number, ended=number, attempts=whole, truncated=yes,
        call_id=text, data=text,
    )  # fmt: skip
    turn = struct(
        id=text, agent=text, index=whole, policy=text, predecessor=text, branch=text, logprobs_at=text, finish=text, seed=whole,
        text=text, kind=text, forced=whole, tokenizer=text, template=text, observation=text, valid=yes, cached_tokens=whole,
        untrained=text, versions=pa.list_(struct(**version, start=whole, end=whole, kv=text)),
        parent=struct(turn=text, kept=whole), context_ids=ids, sampled_ids=ids, logprobs=floats,
        sampling=struct(
            temperature=number, top_k=whole, top_p=number, max_tokens=whole, stop_ids=pa.list_(whole), stop=pa.list_(text)
        ),
        digest=text, segments=pa.list_(struct(role=text, start=whole, end=whole)),
        candidate=struct(set=text, index=whole, chosen=yes), tool_calls=pa.list_(call),
        state=struct(before=text, after=text, action=text, raw=text), rewards=rewards,
        probes=pa.list_(
            struct(name=text, position=whole, ids=ids, logprobs=floats, version=struct(**version), value=number)
        ),
        columns=pa.list_(
            struct(key=text, name=text, at=text, dtype=text, shape=pa.list_(whole), values=floats, data=data)
        ),
        media=pa.list_(text), started=number, ended=number, costs=text,
    )  # fmt: skip
    paid = ("sampled_tokens", "lost_tokens", "probe_tokens", "prompt_tokens", "cached_tokens", "tool_calls", "model_calls")
    columns: dict[str, Any] = {
        "schema": text, "id": text, "group": text, "member": whole, "wanted": whole, "split": text, "step": whole,
        "created": number, "task": text, "seed": whole, "workflow": text, "source": text, "status": text, "output": text,
        "reward": number, "rewards": rewards, "metrics": text,
        "ledger": struct(**dict.fromkeys(paid, whole), costs=text), "failure": struct(fault=text, message=text),
        "stops": pa.list_(struct(agent=text, reason=text)), "fork_of": text, "fork_cut": whole, "fork_forced": text,
        "seconds": number, "turns": pa.list_(turn), "blobs": pa.list_(struct(digest=text, data=data)), "exact": text,
    }  # fmt: skip
    if messages:
        function = struct(name=text, arguments=text)
        said = struct(
            role=text, content=text, name=text, tool_call_id=text,
            tool_calls=pa.list_(struct(id=text, type=text, function=function)),
        )  # fmt: skip
        columns["messages"] = pa.list_(said)
    return pa.schema(list(columns.items()), metadata={"schema": SCHEMA})


def to_batches(entries: Iterable[Entry], schema: Any) -> Iterator[Any]:
    """Record batches of entries."""
    pa = need("pyarrow")
    waiting = iter(entries)
    while some := list(islice(waiting, BATCH)):
        try:
            yield pa.RecordBatch.from_pylist([to_row(entry, _FORM) for entry in some], schema=schema)
        except (UnicodeEncodeError, OverflowError, pa.ArrowException):
            yield pa.RecordBatch.from_pylist([_fitting(entry, schema) for entry in some], schema=schema)


def _fitting(entry: Entry, schema: Any) -> Mapping[str, Any]:
    """The entry's row, or one that holds it as its JSON line."""
    pa = need("pyarrow")
    row = to_row(entry, _FORM)
    try:
        pa.RecordBatch.from_pylist([row], schema=schema)
    except (UnicodeEncodeError, OverflowError, pa.ArrowException):
        found = ("schema", "id", "group", "split", "status", "source", "reward", "workflow")
        return {name: row[name] for name in found} | {"exact": to_line(entry)}
    return row


def write_parquet(entries: Iterable[Entry], path: Path, messages: bool) -> int:
    """Writes a Parquet file; gives the number of its rows."""
    schema = arrow_schema(messages)
    # a dictionary takes one nan for any other and loses its bits, so numbers are written plainly
    count = 0
    with need("pyarrow.parquet").ParquetWriter(path, schema, compression="zstd", use_dictionary=_texts(schema)) as writer:
        for batch in to_batches(entries, schema):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _texts(schema: Any) -> list[str]:
    """Paths of the text columns, as Parquet names them."""
    pa = need("pyarrow")

    def below(kind: Any, path: str) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from below(field.type, f"{path}.{field.name}")
        elif pa.types.is_list(kind):
            yield from below(kind.value_type, f"{path}.list.element")
        elif pa.types.is_string(kind):
            yield path

    return [path for field in schema for path in below(field.type, field.name)]


def read_parquet(path: Path) -> Iterator[Entry]:
    """The entries of a Parquet file. `UserError` for what is none."""
    with _arrow_errors(path, "Parquet file"):
        file = need("pyarrow.parquet").ParquetFile(path)
        with file:
            check_columns(path, file.schema_arrow)
            done = 0
            for batch in file.iter_batches(batch_size=BATCH):
                yield from of_batch(path, batch, done)
                done += batch.num_rows


def write_dataset(entries: Iterable[Entry], folder: Path, messages: bool) -> int:
    """Writes a folder for `datasets.load_from_disk`; gives the number of its rows."""
    pa, datasets = need("pyarrow"), need("datasets")
    schema = arrow_schema(messages)
    count = 0
    # a dataset is made of a file, never of all episodes in memory
    with tempfile.NamedTemporaryFile(dir=folder.parent, prefix=f"{folder.name}.", suffix=".arrow") as flow, _quiet(datasets):
        with pa.OSFile(flow.name, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in to_batches(entries, schema):
                writer.write_batch(batch)
                count += batch.num_rows
        datasets.Dataset.from_file(flow.name).save_to_disk(str(folder), num_shards=None if count else 1)
    return count


def read_dataset(folder: Path) -> Iterator[Entry]:
    """The entries of a folder that `Dataset.save_to_disk` wrote. `UserError` for what is none."""
    datasets = need("datasets")
    with _arrow_errors(folder, "dataset"):
        found = datasets.load_from_disk(str(folder))
        if not isinstance(found, datasets.Dataset):
            raise UserError(f"{folder} holds several splits ({', '.join(found)}); give the folder of one of them")
        check_columns(folder, found.features.arrow_schema)
        done = 0
        for table in found.with_format("arrow").iter(BATCH):
            for batch in table.to_batches():
                yield from of_batch(folder, batch, done)
                done += batch.num_rows


@contextmanager
def _quiet(datasets: Any) -> Generator[None]:
    """No progress bars of the library."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _arrow_errors(path: Path, what: str) -> Generator[None]:
    pa = need("pyarrow")
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{path} is no whole {what} ({told}); it may have been cut off: copy or export it again") from error


def check_columns(path: Path, schema: Any) -> None:
    """`UserError` unless these are the columns of our schema."""
    missing = [name for name in arrow_schema().names if name not in schema.names and name != "exact"]
    if "schema" in missing:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names[:8])}, and no column `schema`; rows of {SCHEMA!r} are wanted: "
            "export it with `agentrl export`"
        )
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)} of {SCHEMA!r}; export it with all columns")


def of_batch(path: Path, batch: Any, before: int) -> Iterator[Entry]:
    """The entries of a record batch."""
    rows: list[dict[str, Any]] = [dict(zip(batch.schema.names, values, strict=True)) for values in zip(
        *(_values(column) for column in batch.columns), strict=True
    )]  # fmt: skip
    for number, row in enumerate(rows, start=before + 1):
        try:
            check_schema(row["schema"])
            exact = row.get("exact")
            entry = of_row(row, _FORM) if exact is None else of_line(exact)
        except UserError as error:
            raise UserError(f"{path}, row {number}: {error}") from error
        except KeyError as error:
            raise UserError(f"{path}, row {number} is no episode: it has no field {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, row {number} is no episode: {error}") from error
        yield entry


def _values(array: Any) -> list[Any]:
    """A column as Python values; lists of numbers are numpy arrays, which keep the bits of every nan."""
    pa = need("pyarrow")
    kind = array.type
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*map(_values, array.flatten()), strict=True)]
        return [row if there else None for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)]
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return array.to_pylist()
    inner = array.flatten()
    numbers = pa.types.is_int32(kind.value_type) or pa.types.is_float32(kind.value_type)
    values: Any = inner.to_numpy(zero_copy_only=False) if numbers else _values(inner)
    found: list[Any] = []
    at = 0
    for length in array.value_lengths().to_pylist():
        found.append(None if length is None else values[at : at + length])
        at += length or 0
    return found
