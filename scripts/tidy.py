#!/usr/bin/env python3
"""Checks the rules of CONTRIBUTING.md that no compiler and no formatter checks.

Usage: scripts/tidy.py [root]     Exits with 1 after printing every violation as path:line: message.
"""

import pathlib
import re
import sys

# The layer diagram of docs/architecture.md. A module may include itself and what it lists.
LAYERS = {
    "engine": set(),
    "transport": {"engine"},
    "stages": {"engine", "transport"},
    "storage": {"engine"},
    "actors": {"engine", "transport", "stages", "storage"},
    "cli": {"engine", "transport", "stages", "storage", "actors"},
}

# Of a module it may see, a module may see these headers alone.
NARROWED = {
    ("stages", "transport"): {"troupe/transport/collective.hpp"},
    # None of which includes CAF, which takes seconds to compile.
    ("cli", "actors"): {"troupe/actors/batch_source.hpp", "troupe/actors/cluster.hpp",
                        "troupe/actors/memory_need.hpp", "troupe/actors/node.hpp",
                        "troupe/actors/step_report.hpp", "troupe/actors/trainer.hpp"},
}

# Where each third party may be included. A prefix of the including file's path decides.
VENDORS = {
    r"caf/": ("actors/", "tests/actors/", "tests/fuzz/read_message.cpp", "bench/actors"),
    r"(dnnl|oneapi)": ("stages/src/cpu/", "tests/stages/allocations"),
    r"toml\+\+": ("engine/src/",),
    r"nlohmann/": ("storage/src/", "cli/", "tests/"),
    r"CLI/": ("cli/",),
    r"(fmt|spdlog)/": ("cli/", "storage/src/", "bench/"),
    r"boost/asio": ("transport/src/", "cli/", "tests/transport/"),
    r"openssl/": ("transport/src/gate/", "storage/src/", "actors/src/door_port",
                  "tests/transport/tls"),
    r"(ucp|uct|ucs|ucm)/": ("transport/src/ucx/", "tests/transport/ucx"),
    r"nccl\.h": ("transport/src/nccl/", "tests/transport/nccl"),
    r"(cuda|cublas|cudnn|curand)[\w/]*\.h": ("stages/src/cuda/", "tests/stages/cuda"),
    r"(gtest|gmock)/": ("tests/",),
    r"benchmark/": ("bench/",),
}

# The engine is pure: it may not touch threads, clocks, files, sockets or global random state.
IMPURE = re.compile(
    r"<(thread|mutex|shared_mutex|condition_variable|future|atomic|semaphore|latch|barrier"
    r"|fstream|iostream|filesystem|chrono|random|unistd\.h|sys/.*)>")

COLUMNS_MAX = 100
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh"}


def check_file(path, root):
    name = path.relative_to(root).as_posix()
    module = name.split("/")[0]
    lines = path.read_text().splitlines()
    is_public_header = "/include/" in name

    if path.suffix == ".hpp" and "tests/" not in name:
        include_name = name.split("/include/")[-1] if is_public_header else name
        if not lines or not lines[0].startswith(f"// {include_name} -- "):
            yield 1, f"the first line must be '// {include_name} -- <what it is for>'"
        if "#pragma once" not in lines:
            yield 1, "a header needs '#pragma once'"

    for number, line in enumerate(lines, start=1):
        if len(line) > COLUMNS_MAX:
            yield number, f"{len(line)} columns, at most {COLUMNS_MAX}"
        if path.suffix == ".hpp" and re.match(r"\s*using namespace ", line):
            yield number, "no 'using namespace' in a header"
        if re.search(r"\b(FIXME|XXX|DO NOT MERGE)\b", line):
            yield number, "leftover marker"
        match = INCLUDE.match(line)
        if not match:
            continue
        target = match.group(2)
        if target.startswith("troupe/") and module in LAYERS:
            other = target.split("/")[1]
            if other != module and other not in LAYERS[module]:
                yield number, f"{module} may not include {other}"
            seen = NARROWED.get((module, other))
            if seen is not None and target not in seen:
                yield number, f"{module} may see only {', '.join(sorted(seen))} of {other}"
        for pattern, places in VENDORS.items():
            if re.match(pattern, target):
                if not name.startswith(places):
                    yield number, f"<{target}> belongs in {' or '.join(places)}"
                if is_public_header and module != "actors":
                    yield number, f"<{target}> in a public header"
        if module == "engine" and IMPURE.match(f"<{target}>") and name != "engine/src/check.cpp":
            yield number, f"the engine is pure and may not include <{target}>"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    folders = ["engine", "transport", "stages", "storage", "actors", "cli", "examples", "tests", "bench"]
    violations = 0
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                for number, message in check_file(path, root):
                    print(f"{path.relative_to(root)}:{number}: {message}")
                    violations += 1
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
