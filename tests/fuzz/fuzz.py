"""Coverage-guided fuzzing on demand: ``make fuzz``, or ``python tests/fuzz/fuzz.py TARGET SECONDS``.

With atheris (libFuzzer for Python), which ``make fuzz`` installs where it has a wheel; without it, or with BOOTC_FUZZ=simple, by a
loop of our own: inputs that reach new lines (``sys.settrace``) are kept and mutated further. What fails is written to
``corpus/TARGET/`` and belongs into the repository together with its correction.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def simple(name: str, seconds: float, seed: int = 1) -> int:
    """Our own loop; the number of runs. Raises what a target raised, the input written."""
    import targets

    work = targets.TARGETS[name]
    own = work.__code__.co_filename
    chance = random.Random(seed)
    reached: set[tuple[Any, int]] = set()
    fresh = False

    def watched(file: str) -> bool:
        return "bootc_" in file or file == own

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal fresh
        if event == "call" and not watched(frame.f_code.co_filename):
            return None
        place = (frame.f_code, frame.f_lineno)
        if place not in reached:
            reached.add(place)
            fresh = True
        return trace

    kept = targets.seeds(name)
    runs, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = kept[runs] if runs < len(kept) else mutated(chance, kept)
        fresh = False
        sys.settrace(trace)
        try:
            work(data)
        except BaseException:
            sys.settrace(None)
            keep(name, data)
            raise
        finally:
            sys.settrace(None)
        if fresh and runs >= len(kept):
            kept.append(data)
        runs += 1
    print(
        f"{name}: {runs} runs, {len(kept)} inputs kept, {len(reached)} lines reached, nothing found"
    )
    return runs


def mutated(chance: random.Random, kept: list[bytes]) -> bytes:
    data = bytearray(chance.choice(kept))
    for _ in range(chance.randint(1, 4)):
        how = chance.randrange(5)
        place = chance.randrange(len(data) + 1)
        if how == 0 and data:
            data[place % len(data)] = chance.randrange(256)
        elif how == 1:
            data[place:place] = chance.randbytes(chance.randint(1, 8))
        elif how == 2 and data:
            del data[place : place + chance.randint(1, 8)]
        elif how == 3:
            other = chance.choice(kept)
            start = chance.randrange(len(other) + 1)
            data[place:place] = other[start : start + 32]
        elif data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data[:4096])


def keep(name: str, data: bytes) -> Path:
    place = HERE / "corpus" / name
    place.mkdir(parents=True, exist_ok=True)
    path = place / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    print(f"{name}: failed; the input is {path}", file=sys.stderr)
    return path


def guided(name: str, seconds: float) -> None:
    """By atheris; ends the process."""
    import atheris

    with atheris.instrument_imports(
        include=["bootc_core", "bootc_composefs", "bootc_signing", "bootc_registry", "bootc_ostree"]
    ):
        import targets

        for work in targets.TARGETS.values():  # the modules are imported by the first run
            work(b"")
    work = targets.TARGETS[name]

    def one(data: bytes) -> None:
        try:
            work(data)
        except BaseException:
            traceback.print_exc()
            keep(name, data)
            raise

    place = Path(os.environ.get("BOOTC_FUZZ_CORPUS", f"/tmp/bootc-fuzz/{name}"))
    place.mkdir(parents=True, exist_ok=True)
    for data in targets.seeds(name):
        (place / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0],
            str(place),
            f"-max_total_time={int(seconds)}",
            "-max_len=4096",
            "-print_final_stats=1",
        ],
        one,
    )
    atheris.Fuzz()


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    try:
        import atheris  # noqa: F401
    except ImportError:
        simple(name, seconds)
        return
    if os.environ.get("BOOTC_FUZZ") == "simple":
        simple(name, seconds)
    else:
        guided(name, seconds)


if __name__ == "__main__":
    main()
