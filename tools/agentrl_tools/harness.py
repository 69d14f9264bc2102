"""Runs inside a sandbox, as a program of its own: a candidate's code against tests, in fresh processes for each.

Reads one JSON object from stdin, writes one line a test to stdout: the token, then JSON. The candidate's processes hold neither
that stdout nor the token, and none of their code ever runs where a check does: a check calls the candidate over a pipe, and
what comes back is read as a literal. All run as the same user; the candidate's cannot look into the others (`seal`).
"""

import json
import os
import select
import signal
import sys
import time

LONGEST = 1 << 16
"""Bytes of a value that are read."""


def main():
    """The program."""
    asked = json.loads(sys.stdin.buffer.read())
    if any("check" in test for test in asked["tests"]):
        seal()
    for test in asked["tests"]:
        began = time.monotonic()
        told = (checked if "check" in test else called)(asked, test)
        told["seconds"] = round(time.monotonic() - began, 4)
        os.write(1, (asked["token"] + json.dumps(told) + "\n").encode())


def seal():
    """Keeps other processes of this user out of the memory and the files of this one and of its forks."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")


def called(asked, test):
    """The value of one call, as text: it is compared where the candidate cannot see with what."""
    ours, theirs = os.pipe()

    def run():
        names = loaded(asked["code"])
        return {"value": repr(eval(test["call"], names))}

    child = fork(theirs, lambda: answer(theirs, run))
    os.close(theirs)
    return outcome(ours, [child], asked["timeout"])


def checked(asked, test):
    """Whether a check passes. It runs in one process, the candidate in another."""
    (from_check, to_candidate), (from_candidate, to_check) = os.pipe(), os.pipe()
    candidate = fork(from_check, to_check, lambda: serve(asked["code"], test["entry"], from_check, to_check))
    os.close(from_check)
    os.close(to_check)
    ours, verdict = os.pipe()

    def run():
        names = {}
        exec(compile(test["given"], "given", "exec"), names)
        names["candidate"] = names[test["entry"]] = remote(to_candidate, from_candidate)
        exec(compile(test["check"], "check", "exec"), names)
        names["check"](names["candidate"])
        return {"passed": True}

    judge = fork(verdict, to_candidate, from_candidate, lambda: answer(verdict, run, test["check"]))
    for end in (verdict, to_candidate, from_candidate):
        os.close(end)
    return outcome(ours, [candidate, judge], asked["timeout"])


def loaded(code):
    """The names of a program; it finds the packages and the files that it finds when it is run by itself."""
    if "import" in code:
        import site

        sys.path[:0] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
        site.main()
    module = sys.modules["solution"] = type(sys)("solution")
    exec(compile(code, "solution", "exec"), module.__dict__)
    return module.__dict__


def serve(code, entry, source, sink):
    """The candidate's side: calls come as literals, values go as text."""
    try:
        function, broken = loaded(code)[entry], ""
    except BaseException as error:  # noqa: BLE001 - whatever the code does is told
        function, broken = None, said(error)
    for line in os.fdopen(source, "rb"):
        try:
            if broken:
                raise RuntimeError(broken)
            told = {"value": repr(function(*eval(json.loads(line), {"inf": float("inf"), "nan": float("nan")})))}
        except BaseException as error:  # noqa: BLE001 - whatever the code does is told
            told = {"error": said(error)}
        os.write(sink, json.dumps(told).encode() + b"\n")


def remote(sink, source):
    """The candidate as the check sees it."""
    from ast import literal_eval  # here, for most tests do without: it takes milliseconds to load

    replies = os.fdopen(source, "rb")

    def candidate(*arguments):
        os.write(sink, json.dumps(repr(arguments)).encode() + b"\n")
        told = json.loads(replies.readline(LONGEST))
        if "error" in told:
            raise RuntimeError(told["error"])
        return literal_eval(told["value"])

    return candidate


def fork(*keep_then_run):
    """A process of its own session that holds these ends alone, and no stream of the host's."""
    *keep, run = keep_then_run
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        kept = sorted(keep)
        for low, high in zip([2, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        run()
    finally:
        os._exit(0)


def answer(end, run, source=""):
    """Writes what `run` gives, or what it raised."""
    try:
        told = run()
    except BaseException as error:  # noqa: BLE001 - whatever the code does is told
        told = {"error": said(error, source)}
    data = json.dumps(told).encode()
    if len(data) > LONGEST:
        data = json.dumps({"error": f"its value is longer than {LONGEST} bytes"}).encode()
    while data:
        data = data[os.write(end, data) :]


def said(error, source=""):
    """An error in a line; of a bare assertion, which."""
    text = f"{type(error).__name__}: {str(error)[:500]}".removesuffix(": ")
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == "check":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{text} ({source.splitlines()[line - 1].strip()[:200]})" if line and source else text


def outcome(end, children, seconds):
    """What came from a pipe until its end; then nothing of the children is left."""
    data, last = b"", time.monotonic() + seconds
    while len(data) <= LONGEST and select.select([end], [], [], max(0.0, last - time.monotonic()))[0]:
        part = os.read(end, LONGEST)
        if not part:
            break
        data += part
    late = time.monotonic() >= last
    os.close(end)
    for child in children:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)  # it has not come to its session yet, or is a zombie
        os.waitpid(child, 0)
    try:
        told = json.loads(data)
        return told if isinstance(told, dict) else {"error": "gave nothing"}
    except ValueError:
        return {"error": f"gave nothing within {seconds:g} s" if late else "ended without a value"}


if __name__ == "__main__":
    main()
