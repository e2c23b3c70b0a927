"""Programming languages that code rewards run: a table entry each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PYTHON = "{python}"
"""Stands for the interpreter that runs Python programs, with its switches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """How to compile and run programs of one language. Words may hold {memory_mib}, the limit of the problem."""

    name: str
    aliases: Sequence[str] = ()
    """Other names, as they stand behind code fences."""
    file: str
    """Name that the source gets."""
    compile: Sequence[str] = ()
    """Empty: nothing to compile."""
    made: Sequence[str] = ()
    """Files that compiling makes and running needs."""
    run: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    address_factor: float = 2.0
    """Address space over memory limit, plus 512 MiB; 0: no such limit, for engines that reserve without using."""
    stack_mib: int = 8
    runtime_mib: int = 0
    """Memory that the run time takes for itself, on top of a problem's limit."""
    memory_marks: Sequence[bytes] = ()
    """What its run time writes to standard error when it gets no more memory."""
    harness: str = ""
    """Program that calls a function (file name in `HARNESSES`); empty: only programs that read and write."""
    remote: str
    """Its name in SandboxFusion."""

    @property
    def tool(self) -> str:
        """The program that has to be there."""
        return (self.compile or self.run)[0]


_PYTHON_CALL = """
import json, os, sys

with open("args.json") as file:
    call = json.load(file)
with open("program.py") as file:
    source = file.read()
scope = {"__name__": "program"}
exec(call["prelude"], scope)
exec(compile(source, "program.py", "exec"), scope)
name = call["fn_name"]
function = getattr(scope["Solution"](), name) if "Solution" in scope and name not in scope else scope[name]
text = json.dumps(function(*call["args"]))
with open("result.json", "w") as file:
    file.write(text)
    file.flush()
os._exit(0)
"""

# Names that sites for such tasks import for everybody, so that `List[int]` in a signature works.
_PYTHON_PRELUDE = """
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, chain, combinations, permutations, product
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, log2, sqrt
from typing import *
sys.setrecursionlimit(50000)
"""

_JAVASCRIPT_CALL = """
const fs = require("fs"), vm = require("vm");
const call = JSON.parse(fs.readFileSync("args.json", "utf8"));
const name = call.fn_name;
const find = `\\n;return typeof ${name} === "function" ? ${name} : (...args) => new Solution().${name}(...args);`;
const load = vm.compileFunction(fs.readFileSync("program.js", "utf8") + find, ["require", "module", "exports"]);
const module_ = { exports: {} };
const number = (key, value) => {
  if (typeof value === "number" && !Number.isFinite(value)) throw new TypeError("not a finite number");
  return value;
};
(async () => {
  const result = await load(require, module_, module_.exports)(...call.args);
  const text = JSON.stringify(result, number);
  if (text === undefined) throw new TypeError("no result");
  fs.writeFileSync("result.json", text);
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
"""

HARNESSES: Mapping[str, str] = {"call.py": _PYTHON_CALL, "call.js": _JAVASCRIPT_CALL}
PRELUDES: Mapping[str, str] = {"python": _PYTHON_PRELUDE}
RESULT_FILE = "result.json"
"""A harness leaves its result here, as JSON. A program may write what it likes into it: it can only claim a value, and
which value is right it does not know."""

_CC = ("-O2", "-w", "-o", "program")

LANGUAGES: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(
            name="python",
            aliases=("py", "python3"),
            file="program.py",
            run=(PYTHON, "program.py"),
            # Programs may print large numbers: their time is limited, not their digits.
            env={"PYTHONINTMAXSTRDIGITS": "0"},
            runtime_mib=16,
            memory_marks=(b"MemoryError",),
            harness="call.py",
            remote="python",
        ),
        Language(
            name="cpp",
            aliases=("c++", "cc", "cxx"),
            file="program.cpp",
            compile=("g++", "-std=gnu++20", *_CC, "program.cpp"),
            made=("program",),
            run=("./program",),
            stack_mib=256,
            memory_marks=(b"std::bad_alloc",),
            remote="cpp",
        ),
        Language(
            name="c",
            file="program.c",
            compile=("gcc", "-std=gnu17", *_CC, "program.c", "-lm"),
            made=("program",),
            run=("./program",),
            stack_mib=256,
            remote="cpp",
        ),
        Language(
            name="javascript",
            aliases=("js", "node", "nodejs"),
            file="program.js",
            run=("node", "--max-old-space-size={memory_mib}", "program.js"),
            address_factor=0,
            runtime_mib=160,
            memory_marks=(b"JavaScript heap out of memory", b"Fatal process out of memory"),
            harness="call.js",
            remote="nodejs",
        ),
    )
}


def find_language(name: str) -> Language | None:
    """By its name or an alias, in any case."""
    name = name.lower()
    for language in LANGUAGES.values():
        if name == language.name or name in language.aliases:
            return language
    return None


def find_tool(word: str, folders: Sequence[str]) -> str | None:
    """Path of a compiler or interpreter, among the system's or in ``bin`` of one of the folders."""
    places = [*(f"{folder}/bin" for folder in folders), "/usr/local/bin", "/usr/bin", "/bin"]
    return shutil.which(word, path=":".join(places))
