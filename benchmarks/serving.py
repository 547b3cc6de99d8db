"""
Latency and throughput of a server with exits, against the same server at full depth.

    python benchmarks/serving.py quickstart-output [--threshold 0.45] [--seconds 30] [--batch_size 8]

Starts `examples/serve_fastapi.py` in processes of their own, one thread each, and sends them real sentences (the
quickstart's test half, or `--file ROWS.jsonl`) at three loads: 40, 70 and 90 % of the requests a second that the full
depth answers when 16 clients ask without a pause. Arrivals are random (Poisson) and do not slow down when the server
does. Full depth (threshold 0, which is the stock model bit for bit) and exits take turns, full depth a second time as
the control; latency is from the planned arrival to the answer.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from json_lines import read_lines

from transformers_deebert.analysis import describe_machine, format_table


EXAMPLES = Path(__file__).parents[1] / "examples"
LOADS = (0.4, 0.7, 0.9)


class Server:
    """`serve_fastapi.py` at one threshold, on a free port of this machine."""

    def __init__(self, checkpoint: str, threshold: float, batch_size: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        script = [sys.executable, str(EXAMPLES / "serve_fastapi.py"), checkpoint, "--port", str(port)]
        options = ["--threshold", str(threshold), "--batch_size", str(batch_size), "--threads", "1"]
        self.process = subprocess.Popen([*script, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        while self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/health", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("the server ended: start examples/serve_fastapi.py by hand to see why.")


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=120, limits=httpx.Limits(max_connections=1000))


async def saturate(url: str, texts: list[str], seconds: float, clients: int = 16) -> float:
    """Answers a second where so many clients ask without a pause."""
    end, count = time.perf_counter() + seconds, 0
    async with client() as http:

        async def ask(place: int) -> None:
            nonlocal count
            while time.perf_counter() < end:
                (await http.post(f"{url}/classify", json={"text": texts[place % len(texts)]})).raise_for_status()
                count, place = count + 1, place + clients

        await asyncio.gather(*(ask(place) for place in range(clients)))
    return count / seconds


async def load(url: str, texts: list[str], rate: float, seconds: float, seed: int) -> tuple[list[float], float, float]:
    """Latencies in seconds, answers a second, mean exit layer, of random arrivals at a rate."""
    generator, arrivals, now = random.Random(seed), [], 0.0
    while (now := now + generator.expovariate(rate)) < seconds:
        arrivals.append(now)
    latencies, layers = [], []
    async with client() as http:
        start = time.perf_counter()

        async def ask(arrival: float, text: str) -> None:
            await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
            answer = await http.post(f"{url}/classify", json={"text": text})
            answer.raise_for_status()
            latencies.append(time.perf_counter() - start - arrival)
            layers.append(answer.json()["exit_layer"])

        await asyncio.gather(*(ask(one, generator.choice(texts)) for one in arrivals))
        taken = time.perf_counter() - start
    return latencies, len(arrivals) / taken, statistics.mean(layers)


def measure(servers: dict[str, Server], texts: list[str], options: argparse.Namespace) -> list[dict]:
    for server in servers.values():
        server.wait()
        asyncio.run(saturate(server.url, texts, 3))  # warm-up
    most = {name: asyncio.run(saturate(one.url, texts, options.seconds / 2)) for name, one in servers.items()}
    rows = [{"server": name, "load": "16 clients", "answered": rate} for name, rate in most.items()]
    for share in LOADS:
        rate = share * most["full depth"]
        found: dict[str, list] = {name: [] for name in servers}
        for turn in range(options.turns):
            for name, server in servers.items():
                found[name].append(asyncio.run(load(server.url, texts, rate, options.seconds / options.turns, turn)))
                print(f"{name}, {rate:.0f} a second, turn {turn + 1} of {options.turns}", file=sys.stderr, flush=True)
        for name, turns in found.items():
            milliseconds = sorted(1000 * one for latencies, _, _ in turns for one in latencies)
            quantiles = statistics.quantiles(milliseconds, n=100)
            rows.append(
                {"server": name, "load": f"{share:.0%}", "asked": rate}
                | {"answered": statistics.mean(answered for _, answered, _ in turns)}
                | {"p50": quantiles[49], "p95": quantiles[94], "p99": quantiles[98]}
                | {"layer": statistics.mean(layer for _, _, layer in turns)}
            )
    return rows


def read_texts(file: str | None) -> list[str]:
    if file is not None:
        return [row["text"] for row in read_lines(Path(file))]
    sys.path.insert(0, str(EXAMPLES))
    import quickstart_data

    return [row["text"] for row in quickstart_data.split_reviews(quickstart_data.fetch_reviews(), 42)["test"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a model with off-ramps")
    parser.add_argument("--threshold", type=float, help="early_exit_entropy; default: the checkpoint's")
    parser.add_argument("--file", help="JSON lines with `text`; default: the quickstart's test half")
    parser.add_argument("--seconds", type=float, default=30, help="of each load and server")
    parser.add_argument("--turns", type=int, default=3, help="turns that these seconds are cut into")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    threshold = options.threshold
    if threshold is None:
        threshold = json.loads(Path(options.checkpoint, "config.json").read_text())["early_exit_entropy"]
    texts = read_texts(options.file)
    servers = {
        "full depth": Server(options.checkpoint, 0.0, options.batch_size),
        f"exits at {threshold:.3g}": Server(options.checkpoint, threshold, options.batch_size),
        "full depth again": Server(options.checkpoint, 0.0, options.batch_size),
    }
    try:
        rows = measure(servers, texts, options)
    finally:
        for server in servers.values():
            server.process.terminate()
    print(describe_machine())
    columns = {
        "server": ("server", ""),
        "load": ("load", ""),
        "asked": ("requests/s", ".1f"),
        "answered": ("answers/s", ".1f"),
        "p50": ("p50 ms", ".0f"),
        "p95": ("p95 ms", ".0f"),
        "p99": ("p99 ms", ".0f"),
        "layer": ("mean exit layer", ".2f"),
    }
    print(format_table(rows, columns, markdown=True))
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
