"""The suites at system calls: kill, errno and medium; each repeats a command once for each call on the sysroot.

    kill      all processes die before the call, then (if it was a child's) that child alone
    errno     the call fails: once with EIO, EDQUOT, ENOMEM, and with EMFILE where something is opened; with ENOSPC and EROFS
              it and all calls after it
    medium    the call is a write that lies: nothing, half or something else reaches the file

A case is called ``suite:backend:command:number:what``; the number is the call's, from 1, in an undisturbed run.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from typing import Final

from bootc_core.testing.chaos import tracer
from bootc_core.testing.chaos.bench import Bench, Command, Judgement, chosen
from bootc_core.testing.chaos.report import Tally
from bootc_core.testing.chaos.tracer import Action, Call, Fail, Falsify, Kill

_OPENS: Final = frozenset({"open", "openat", "openat2", "creat"})
_ONCE: Final = (errno.EIO, errno.EDQUOT, errno.ENOMEM)
_FOR_GOOD: Final = (errno.ENOSPC, errno.EROFS)

Mine = Callable[[int], bool]


def trace(bench: Bench, command: Command) -> list[Call]:
    """The calls of an undisturbed run.

    Raises:
        AssertionError: it fails, or ends in another state than it should.
    """
    bench.prepare(command)
    done = tracer.run(bench.work(command.name), watch=[bench.root])
    found = bench.judge()
    whole = done.status == 0 and found.versions == command.new and not found.problems
    if not whole:
        raise AssertionError(
            f"{command.name} without any disturbance: status {done.status}, {found}, {done.stderr[-800:]}"
        )
    bench.expected_names = bench.names()
    return done.calls


def _actions(suite: str, call: Call) -> Iterator[tuple[str, Action]]:
    if suite == "kill":
        yield "all", Kill()
        if not call.own:
            yield "alone", Kill(alone=True)
    elif suite == "errno":
        for number in _ONCE:
            yield errno.errorcode[number], Fail(number)
        if call.name in _OPENS:
            yield "EMFILE", Fail(errno.EMFILE)
        for number in _FOR_GOOD:
            yield errno.errorcode[number], Fail(number, rest=True)
    elif call.name in tracer.WRITES:
        for kind in ("lost", "short", "flipped"):
            yield kind, Falsify(kind)


def sweep(suite: str, bench: Bench, command: Command, every: int, mine: Mine) -> Tally:
    """All cases, or those of every n-th call; ``mine`` says which ones this process does."""
    begin = time.monotonic()
    tally = Tally(f"{suite}:{bench.subject.name}:{command.name}")
    calls = trace(bench, command)
    tally.counts["calls"] = len(calls)
    numbers = chosen(len(calls), every)
    for number in numbers:
        if not mine(number):
            continue
        call = calls[number - 1]
        for what, action in _actions(suite, call):
            one_case(suite, bench, command, number, what, action, tally)
    tally.seconds = time.monotonic() - begin
    return tally


def replay(suite: str, bench: Bench, command: Command, number: int, what: str) -> Tally:
    """One case again."""
    tally = Tally(f"{suite}:{bench.subject.name}:{command.name}")
    calls = trace(bench, command)
    for name, action in _actions(suite, calls[number - 1]):
        if name == what:
            one_case(suite, bench, command, number, what, action, tally)
    return tally


def one_case(
    suite: str,
    bench: Bench,
    command: Command,
    number: int,
    what: str,
    action: Action,
    tally: Tally,
) -> None:
    """Prepare, disturb, judge, run again, judge."""
    case = f"{suite}:{bench.subject.name}:{command.name}:{number}:{what}"
    bench.prepare(command)
    done = tracer.run(bench.work(command.name), watch=[bench.root], at={number: action})
    tally.counts["cases"] += 1
    if len(done.calls) < number:  # threads: this run made fewer calls
        tally.counts["not reached"] += 1
    call = done.calls[number - 1] if len(done.calls) >= number else None
    try:
        if done.timed_out:
            tally.fail(case, [f"it hangs at {call}"])
            return
        found = bench.judge()
        judge = {"kill": _killed, "errno": _failed, "medium": _falsified}[suite]
        problems = judge(bench, command, done, found, action, tally)
        if not problems and suite != "medium":
            problems = bench.converges(command, found)
            tally.counts["converged"] += not problems
        if problems:
            tally.fail(case, [f"at {call}", *problems, f"it said: {done.stderr.strip()[-300:]}"])
    except (OSError, ValueError, KeyError) as problem:
        tally.fail(case, [f"at {call}: the judgement broke: {type(problem).__name__}: {problem}"])


def _is_state(command: Command, found: Judgement, tally: Tally) -> list[str]:
    """Old or new, and whole."""
    problems = list(found.problems)
    first = found.first
    if first == command.new[0] and (first != command.old[0] or found.staged == command.stages):
        tally.counts["new"] += 1
    elif first == command.old[0]:
        tally.counts["old"] += 1
    else:
        problems.append(f"version {first} boots")
    return problems


def _killed(
    bench: Bench,
    command: Command,
    done: tracer.Result,
    found: Judgement,
    action: Action,
    tally: Tally,
) -> list[str]:
    del bench
    alone = isinstance(action, Kill) and action.alone
    if not alone and done.status != -9 and "not reached" not in tally.counts:
        return [f"it was not killed: status {done.status}"]
    return _is_state(command, found, tally)


def _failed(
    bench: Bench,
    command: Command,
    done: tracer.Result,
    found: Judgement,
    action: Action,
    tally: Tally,
) -> list[str]:
    del action
    return failed(bench, command, done, found, tally)


def failed(
    bench: Bench, command: Command, done: tracer.Result, found: Judgement, tally: Tally
) -> list[str]:
    """What is wrong with a run that met an error: it has to be refused, naming what could not be done, or done in spite of it."""
    problems = list(found.problems)
    is_new = found.first == command.new[0] and found.staged == command.stages
    if done.status == 0:
        tally.counts["done all the same"] += 1
        # tidying up may fail after the switch, if the run says so
        is_new = is_new or (found.first == command.new[0] and "warning: " in done.stderr)
        if not is_new:
            problems.append("it reports success, and the new state is not there")
        return problems
    tally.counts["refused"] += 1
    if done.status != 1:
        problems.append(f"exit status {done.status}")
    if found.first != command.old[0] and command.old[0] != command.new[0]:
        problems.append(f"it reports failure, and version {found.first} boots")
    return problems + _error_problems(done.stderr, str(bench.root))


def _error_problems(text: str, root: str) -> list[str]:
    """What an error message lacks: a class, the step, the place."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if "Traceback" in text or not lines:
        return [f"no clear error: {text.strip()[-500:]}"]
    error = json.loads(lines[-1]).get("error", {})
    said = " ".join(str(error.get(key) or "") for key in ("message", "found", "expected"))
    if error.get("reference") in {None, "defect"}:
        return [f"a defect: {said}"]
    if root not in said and not any(word in said for word in ("layer", "ostree", "worker")):
        return [f"nothing is named: {said}"]
    return []


def _falsified(
    bench: Bench,
    command: Command,
    done: tracer.Result,
    found: Judgement,
    action: Action,
    tally: Tally,
) -> list[str]:
    """Noticed before the switch, found by the check afterwards, or without effect. Never: unnoticed."""
    del action
    if done.status != 0:
        if found.first == command.old[0] and not found.problems:
            tally.counts["refused"] += 1
            return []
        if found.first == command.old[0] or command.old[0] == command.new[0]:
            return [f"it reports failure, and what boots is damaged: {found.problems}"]
        return [f"it reports failure, and version {found.first} boots"]
    reported = list(bench.subject.check(bench.sysroot))
    if reported:
        tally.counts["found by check"] += 1
        return []
    if found.problems or found.first != command.new[0] or found.staged != command.stages:
        return [f"unnoticed: {found.first} {found.problems}"]
    tally.counts["without effect"] += 1
    return []
