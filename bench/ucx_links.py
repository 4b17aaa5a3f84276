#!/usr/bin/env python3
"""What links between two processes reach of what ucx_perftest measures, in turns, as a Markdown table.

Two processes, each on a core of its own. Both use the same UCX with error handling for peers, the interface
lo and the settings below; what troupe leaves to UCX is left to UCX here, unless the environment says otherwise
for both.
Usage: bench/ucx_links.py [--rounds N]     needs build/release (cmake --preset release) and ucx-utils
"""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
TRANSPORTS = {"shared memory": ("shared_memory", "posix,tcp,self"), "tcp": ("tcp", "tcp,self")}
SETTINGS = {
    "UCX_NET_DEVICES": "lo",
    "UCX_MM_ERROR_HANDLING": "y",
    "UCX_TCP_PUT_ENABLE": "n",
    "UCX_ZCOPY_THRESH": "inf",
    "UCX_TCP_TX_SEG_SIZE": "64kb",
    "UCX_MM_FIFO_SIZE": "256",
    "UCX_KEEPALIVE_INTERVAL": "1s",
    "UCX_ERROR_SIGNALS": "",
    "UCX_DEBUG_SIGNO": "0",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
}
# What is measured: its name and size for us, the test and repetitions for ucx_perftest, the bar.
CASES = [
    ("latency_us", 8, "ucp_am_lat", 20000, "<= 15 us"),
    ("latency_us", 64 * KIB, "ucp_am_lat", 2000, ""),
    ("latency_us", MIB, "ucp_am_lat", 1000, "<= 1.4x"),
    ("bandwidth_mb_per_s", MIB, "ucp_am_bw", 2000, ">= 70 %"),
    ("bandwidth_mb_per_s", 16 * MIB, "ucp_am_bw", 200, ">= 90 %"),
]
PORT = 18730
# Columns of ucx_perftest's CSV: the median latency in microseconds, the bandwidth of the whole run.
COLUMN = {"ucp_am_lat": 1, "ucp_am_bw": 5}


def of_troupe(program, name):
    out = subprocess.run([program, name], check=True, capture_output=True, text=True, timeout=300).stdout
    lines = [line.split(",") for line in out.splitlines()]
    return {(what, int(size)): float(value) for what, size, value in lines}


def wait_for_listener():
    """ucx_perftest does not say when it listens, and takes whoever connects for its client."""
    listening = f":{PORT:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 10
    while not any(listening in Path(f"/proc/net/tcp{kind}").read_text() for kind in ("", "6")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"ucx_perftest does not listen on port {PORT}; see whether something else does")
        time.sleep(0.01)


def of_perftest(tls, test, size, count):
    environment = {**SETTINGS, **os.environ, "UCX_TLS": tls}
    command = ["ucx_perftest", "-p", str(PORT), "-e"]
    server = subprocess.Popen(["taskset", "-c", "1", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener()
        arguments = ["127.0.0.1", "-t", test, "-s", str(size), "-n", str(count), "-w", "50", "-f", "-v"]
        client = subprocess.run(["taskset", "-c", "0"] + command[:1] + arguments + command[1:], env=environment, check=True,
                                capture_output=True, text=True, timeout=300)
    finally:
        server.kill()
        server.wait()
    return float(client.stdout.splitlines()[-1].split(",")[COLUMN[test]])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", default="build/release/bench/link_bench")
    args = parser.parse_args()
    if shutil.which("ucx_perftest") is None:
        raise SystemExit("ucx_perftest comes with a Debian package: apt-get install ucx-utils")
    print("| transport | what | size | links | best | ucx_perftest | best | ratio of medians | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for transport, (name, tls) in TRANSPORTS.items():
        ours = {case: [] for case in CASES}
        theirs = {case: [] for case in CASES}
        for _ in range(args.rounds):
            measured = of_troupe(args.program, name)
            for case in CASES:
                what, size, test, count, _ = case
                ours[case].append(measured[what, size])
                theirs[case].append(of_perftest(tls, test, size, count))
        for case in CASES:
            what, size, _, _, bar = case
            best = min if what == "latency_us" else max
            here, there = statistics.median(ours[case]), statistics.median(theirs[case])
            print(f"| {transport} | {what} | {size} | {here:.4g} | {best(ours[case]):.4g} | {there:.4g} | "
                  f"{best(theirs[case]):.4g} | {here / there:.3g} | {bar} |", flush=True)


if __name__ == "__main__":
    main()
