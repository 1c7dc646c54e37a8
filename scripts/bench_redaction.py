"""How long the record's redaction takes per body: `python scripts/bench_redaction.py [--size BYTES] [--rounds N]`.

Bodies as agents send them, source code in JSON, without a secret and with one, each for the first time and once more
(`again`); an answer as a stream; and texts made to take long. Prints the best and the median of the rounds, in
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from llm_proxy.records.redaction import Entry, Redactor
from llm_proxy.records.secrets import FAMILIES

ROOT = Path(__file__).parent.parent
KEY = "sk-ant-api03-" + "aB3dE5gH7jK9mN1pQ2rS" * 4
HOSTILE = ("-----BEGIN PRIVATE KEY-----\n", "eyJ", "-eyJ.", "sk-", " AKIA", "a://b:", "\\", "Bearer ", "_API_KEY=\\n")


def request(text: str) -> Entry:
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]})
    return {"type": "request", "body": body}


def stream(text: str) -> Entry:
    """Five characters a piece, as models talk."""
    chunks = []
    for at in range(0, len(text), 5):
        delta = {"type": "text_delta", "text": text[at : at + 5]}
        event = {"type": "content_block_delta", "index": 0, "delta": delta}
        lines = ("event: content_block_delta\n", f"data: {json.dumps(event)}\n", "\n")
        chunks += [{"ts": "", "delta_ms": 1, "raw": line} for line in lines]
    return {"type": "response", "chunks": chunks}


def fresh() -> Redactor:
    return Redactor((), lambda kind, secret: 1)


def milliseconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1000)
    return min(taken), statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    code = "".join(path.read_text() for path in sorted(ROOT.glob("llm_proxy/proxy/*.py")))
    code = (code * (options.size // len(code) + 1))[: options.size]
    half, answer = options.size // 2, code[:2000]
    cases = {
        "request, no secret": request(code),
        "request, one secret": request(f"{code[:half]} {KEY} {code[half:]}"),
        "2 kB stream, no secret": stream(answer),
        "2 kB stream, a secret in pieces": stream(answer[:1000] + f" {KEY} " + answer[1000:]),
    }
    print(sum(len(family.shapes) for family in FAMILIES), "shapes")
    print(f"{'case':<32} {'bytes':>8} {'best':>8} {'median':>8} {'again':>8}")
    for name, entry in cases.items():
        size = len(entry.get("body", "")) or sum(len(chunk["raw"]) for chunk in entry["chunks"])
        best, median = milliseconds(lambda entry=entry: fresh().entry(entry), options.rounds)
        known = fresh()
        again, _ = milliseconds(lambda entry=entry, known=known: known.entry(entry), options.rounds)
        print(f"{name:<32} {size:>8} {best:>8.3f} {median:>8.3f} {again:>8.3f}")
    for word in HOSTILE:
        text = word * (1_000_000 // len(word))
        best, median = milliseconds(lambda text=text: fresh().text(text), 3)
        print(f"{'1 MB of ' + repr(word):<32} {len(text):>8} {best:>8.3f} {median:>8.3f}")


if __name__ == "__main__":
    main()
