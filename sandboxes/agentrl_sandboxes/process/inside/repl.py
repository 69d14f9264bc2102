"""The one Python of a session: a child of process 1 whose names last from call to call."""

from __future__ import annotations
import __future__

import atexit
import builtins
import os
import sys

TYPE_CHECKING = False  # `typing` and `signal` take milliseconds to load, of each sandbox
if TYPE_CHECKING:
    import signal
    from types import CodeType, TracebackType
    from typing import Any, NoReturn
else:
    import _signal as signal

ONLY_AST = 0x400  # ast.PyCF_ONLY_AST; `ast` itself takes milliseconds to load
ENDED_WELL, RAISED = b"\0", b"\1"
NAME = "<python>"


OWN = (lambda: None).__code__.co_filename


class Shown:
    """Takes in what the code raises: a traceback goes to stderr as a REPL shows it; `exit` and its like end the process."""

    raised = False

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or kind is None:
            return True
        self.raised = True
        if isinstance(error, SystemExit):
            leave(error.code)
        while trace is not None and trace.tb_frame.f_code.co_filename == OWN:
            trace = trace.tb_next
        sys.excepthook(kind, error.with_traceback(trace), trace)
        return True


class Repl:
    """Compiles and runs code in `__main__`, as a file but for its last statement, whose value is printed."""

    def __init__(self, paths: list[str]) -> None:
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        self._names: dict[str, Any] = module.__dict__
        self._flags = 0
        sys.path[:] = ["", *paths, *sys.path]
        sys.argv = [""]
        for name in ("exit", "quit"):  # `site` would have made them
            setattr(builtins, name, sys.exit)

    def compiled(self, source: str) -> list[CodeType]:
        import _ast  # a millisecond that sandboxes without a Python session do not pay

        tree: Any = compile(source, NAME, "exec", ONLY_AST | self._flags, dont_inherit=True)
        last = _ast.Interactive([tree.body.pop()]) if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        first = compile(tree, NAME, "exec", self._flags, dont_inherit=True)
        self._flags |= first.co_flags & __future__.annotations.compiler_flag
        return [first] if last is None else [first, compile(last, NAME, "single", self._flags, dont_inherit=True)]

    def run(self, source: str) -> bool:
        """Whether it ended without an exception. `exit` does not come back."""
        own = os.getpid()
        with Shown() as shown:
            for code in self.compiled(source):
                exec(code, self._names)
        if os.getpid() != own:  # a fork that the code forgot: it must not answer in this one's place
            leave(int(shown.raised))
        flush()
        return not shown.raised


def flush() -> None:
    """Both streams, whatever the code put in their places."""
    for stream in (sys.stdout, sys.stderr):
        with Shown():
            stream.flush()


def leave(code: object) -> NoReturn:
    """Ends the process as `sys.exit(code)` does."""
    status = code if isinstance(code, int) else 0 if code is None else 1
    if code is not None and not isinstance(code, int):
        os.write(2, f"{code}\n".encode("utf-8", "backslashreplace"))
    with Shown():
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    flush()
    os._exit(status & 0xFF)


def serve(commands: int, answers: int, paths: list[str]) -> NoReturn:
    """Runs what comes: eight bytes that say how long, then the code; one byte back for each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # exceptions, as in any Python
    repl = Repl(paths)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what was printed is there when time is up
    while True:
        source = _exactly(commands, int.from_bytes(_exactly(commands, 8), "little")).decode("utf-8", "surrogateescape")
        os.write(answers, ENDED_WELL if repl.run(source) else RAISED)


def _exactly(fd: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(fd, min(size - len(parts), 1 << 16))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)
