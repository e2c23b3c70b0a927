"""Runs the tests of a repository, inside the box. A file by itself: nothing but the standard library and pytest.

Standard input holds the order (JSON). Results go to what standard output was, a line each that begins with a word
only the order knows; by the time the repository's code is imported, neither the word nor the place is lying about. A
program in the same process can still find both, so nobody believes these lines alone: see `controls`.

Python 3.8 or newer: repositories choose their own.
"""

import contextlib
import importlib
import json
import os
import sys

PREIMPORTED = """
argparse ast atexit bdb bisect builtins calendar cmd code codecs collections contextlib copy copyreg ctypes
dataclasses datetime decimal difflib dis doctest encodings enum errno fnmatch fractions functools gc genericpath
glob hashlib heapq importlib importlib.metadata importlib.util inspect io itertools json keyword linecache locale
logging math numbers opcode operator os pathlib pdb pkgutil platform posixpath pprint py queue random re reprlib
select selectors shlex shutil signal socket stat string struct subprocess sys sysconfig tempfile textwrap threading
time timeit token tokenize traceback types typing unittest unittest.async_case unittest.mock uuid warnings weakref
xml.etree.ElementTree zipfile
"""
"""Before anything of the repository, which might have a file of that name."""


def main():
    order = json.loads(sys.stdin.buffer.read())
    tell, accuse = _channel(order.pop("word"))
    # The folder of this file: a repository's modules are not to be found there.
    sys.path.pop(0)
    for name in PREIMPORTED.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _watch(accuse, os.getcwd())
    sys.argv[:] = ["pytest" if order["runner"] == "pytest" else "unittest"]
    run = {"pytest": _pytest_run, "unittest": _unittest_run}[order["runner"]]
    code = run(order, tell)
    tell({"finished": int(code)})
    # Not sys.exit: handlers and threads of the repository have nothing more to say.
    os._exit(int(code))


def _channel(word):
    place = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    mark, write, dumps, owner, getpid = word.encode() + b" ", os.write, json.dumps, os.getpid(), os.getpid
    quoted = json.encoder.encode_basestring_ascii

    def say(text):
        if getpid() != owner:
            return  # a fork of a test
        left = mark + text.encode() + b"\n"
        while left:
            left = left[write(place, left) :]

    def tell(record):
        say(dumps(record))

    def accuse(event, name):
        # Not by json.dumps, whose insides the accused could have changed.
        say(f'{{"looked": {quoted(event)}, "in": {quoted(name)}}}')

    return tell, accuse


INTROSPECTION = """
sys._getframe sys._current_frames sys._current_exceptions sys.settrace sys.setprofile sys.addaudithook gc.get_objects
gc.get_referrers gc.get_referents ctypes.dlopen ctypes.dlsym ctypes.cdata ctypes.cdata/buffer ctypes.string_at
code.__new__ sys.monitoring.register_callback
"""
"""Audit events of code that looks at, or into, those who call it."""
FRAMES = frozenset(("tb_frame", "gi_frame", "cr_frame", "ag_frame"))
LENDERS = ("inspect", "traceback", "ctypes")
"""Modules of the standard library that do it for somebody else."""


def _watch(accuse, repository):
    """Tell which files of the repository look into their callers. A hook cannot be taken away again."""
    root, getframe, told, busy = repository + os.sep, sys._getframe, set(), [False]
    events, lenders = frozenset(INTROSPECTION.split()), frozenset(sys.modules[name].__file__ for name in LENDERS)
    # Bound here: the repository may put others in their place.
    isa, kind, text, raw, is_of_its_file = isinstance, type, str, bytes, _origins()

    def name_of(frame):
        """The file to blame; "" is none of the repository's."""
        while frame is not None:
            code = frame.f_code
            place = code.co_filename
            if kind(place) is not text:
                return "code without a file"
            if place.startswith(root):
                return place[len(root) :]
            # Code made on the spot has no file, or claims one that is not its own.
            if not is_of_its_file(code):
                return "code without a file"
            if place not in lenders:
                return ""
            frame = frame.f_back
        return ""

    def hook(event, arguments):
        if busy[0]:
            return
        if event not in events and not (
            (event == "object.__getattr__" and arguments[1] in FRAMES)
            or (event == "object.__setattr__" and arguments[1] == "__code__")
            or (event == "open" and isa(arguments[0], text) and text.startswith(arguments[0], "/proc/"))
            or (event == "open" and isa(arguments[0], raw) and raw.startswith(arguments[0], b"/proc/"))
        ):
            return
        busy[0] = True
        try:
            name = name_of(getframe(1))
            if name and (event, name) not in told:
                told.add((event, name))
                accuse(event, name)
        finally:
            busy[0] = False

    sys.addaudithook(hook)


def _origins():
    """A function that says whether code stands in the file that it claims to be from."""
    codes, open_, read, close, only_read = {}, os.open, os.read, os.close, os.O_RDONLY
    compiled, kind, code_type = compile, type, type(_origins.__code__)
    failures = OSError, ValueError, SyntaxError, RecursionError

    def codes_of(place):
        try:
            file, source = open_(place, only_read), b""
            while block := read(file, 1 << 20):
                source += block
            close(file)
            found, left = set(), [compiled(source, place, "exec", dont_inherit=True)]
        except failures:
            return frozenset()
        while left:
            code = left.pop()
            found.add(code)
            left += [each for each in code.co_consts if kind(each) is code_type]
        return found

    def is_of_its_file(code):
        place = code.co_filename
        if place not in codes:
            codes[place] = codes_of(place)
        return code in codes[place]

    return is_of_its_file


def _paths(order):
    here = os.getcwd()
    return [os.path.join(here, each) for each in order["pythonpath"] if os.path.isdir(os.path.join(here, each))]


def _pytest_run(order, tell):
    import pytest

    functions = frozenset(order["functions"])

    def chosen(nodeid):
        return nodeid.partition("[")[0] in functions

    class Recorder:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, config, items):
            kept = [item for item in items if chosen(item.nodeid)]
            config.hook.pytest_deselected(items=[item for item in items if not chosen(item.nodeid)])
            items[:] = kept
            tell({"collected": [item.nodeid for item in kept]})

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report):
            outcome = report.outcome
            if hasattr(report, "wasxfail"):
                outcome = "xfailed" if report.skipped else "xpassed"
            detail = str(report.longrepr or "")[-400:] if outcome == "failed" else ""
            tell({"test": report.nodeid, "when": report.when, "outcome": outcome, "detail": detail})

        @pytest.hookimpl(tryfirst=True)
        def pytest_collectreport(self, report):
            if report.failed:
                tell({"broken": report.nodeid, "detail": str(report.longrepr)[-400:]})

    arguments = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir=" + os.getcwd(), "-q"]
    if order["plugins"] is not None:
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        for name in order["plugins"]:
            arguments += ["-p", name]
    sys.path[0:0] = _paths(order)
    return pytest.main([*arguments, *order["arguments"], *order["files"]], plugins=[Recorder()])


def _unittest_run(order, tell):
    import unittest

    class Result(unittest.TestResult):
        def _tell(self, test, outcome, detail=""):
            tell({"test": test.id(), "when": "call", "outcome": outcome, "detail": detail[-400:]})

        def addSuccess(self, test):  # noqa: N802 - unittest's name
            super().addSuccess(test)
            self._tell(test, "passed")

        def addFailure(self, test, err):  # noqa: N802 - unittest's name
            super().addFailure(test, err)
            self._tell(test, "failed", str(err[1]))

        def addError(self, test, err):  # noqa: N802 - unittest's name
            super().addError(test, err)
            self._tell(test, "failed", str(err[1]))

        def addSkip(self, test, reason):  # noqa: N802 - unittest's name
            super().addSkip(test, reason)
            self._tell(test, "skipped")

        def addExpectedFailure(self, test, err):  # noqa: N802 - unittest's name
            super().addExpectedFailure(test, err)
            self._tell(test, "xfailed")

        def addUnexpectedSuccess(self, test):  # noqa: N802 - unittest's name
            super().addUnexpectedSuccess(test)
            self._tell(test, "xpassed")

        def addSubTest(self, test, subtest, err):  # noqa: N802 - unittest's name
            super().addSubTest(test, subtest, err)
            if err is not None:
                self._tell(test, "failed", str(err[1]))

    sys.path[0:0] = _paths(order)
    suite = unittest.TestSuite()
    collected = []
    for name in order["functions"]:
        suite.addTest(unittest.defaultTestLoader.loadTestsFromName(name))
        collected.append(name)
    tell({"collected": collected})
    result = Result()
    suite.run(result)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    main()
