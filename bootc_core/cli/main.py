"""The command line: parser, error ladder, exit status (0 fine, 1 failed, 2 usage).

Commands are modules that are imported when they run, so that ``--help`` and ``status`` start fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from bootc_core import __version__
from bootc_core.cli import parser as parsers

if TYPE_CHECKING:
    from bootc_core.errors import BootcError
    from bootc_core.models.install import CommandOffer


# Set by users (error format, debugging), and by us for site scripts, which may call the command line in turn.
_ERROR_FORMATS: Final = ("text", "json")
_VARIABLES: Final = frozenset(
    {
        "BOOTC_DEBUG",
        "BOOTC_ERROR_FORMAT",
        "BOOTC_API",
        "BOOTC_DIRECT_IO",
        "BOOTC_SKIP_UNSHARE",
        "BOOTC_HOOK",
        "BOOTC_PHASE",
        "BOOTC_SCRIPT",
        "BOOTC_SYSROOT",
    }
)


def show_error(error: BootcError) -> None:
    """Print ``error`` on standard error: text, or JSON with ``BOOTC_ERROR_FORMAT=json``."""
    from bootc_core.render import errors, stream

    if os.environ.get("BOOTC_ERROR_FORMAT") == "json":
        text = errors.to_json(error)
    else:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        text = errors.to_text(error, colour=colour)
    stream.tell(sys.stderr, text)


def _look_at_environment() -> None:
    """Refuse what a variable of ours cannot mean; tell of names that we do not know, which are misspelt most likely.

    Raises:
        ConfigError: a value is none.
    """
    names = [name for name in os.environ if name.startswith("BOOTC_")]
    if not names:
        return
    from bootc_core.errors import ConfigError, printable
    from bootc_core.render import stream

    value = os.environ.get("BOOTC_ERROR_FORMAT", "text")
    if value not in _ERROR_FORMATS:
        raise ConfigError(
            "the environment variable BOOTC_ERROR_FORMAT has an unknown value",
            reference="bad-environment",
            expected=" or ".join(_ERROR_FORMATS),
            found=printable(value, 40),
        )
    for name in sorted(set(names) - _VARIABLES):
        stream.tell(
            sys.stderr, f"warning: the environment variable {printable(name, 80)} is not known\n"
        )


def _flush() -> int:
    """Bring the results to standard output; the exit status if that is all that went wrong."""
    try:
        sys.stdout.flush()
    except OSError as problem:
        from bootc_core.render import stream

        stream.abandon(1)
        if isinstance(problem, BrokenPipeError):
            return 0  # whoever read our output has enough; an update that was made is made
        stream.tell(
            sys.stderr,
            f"error: cannot write to standard output: {problem.strerror}; the command itself is done\n",
        )
        return 1
    return 0


def _quiet_end() -> None:
    """Standard error may be broken or full: the interpreter's own flush at the end must not fail or wait."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        from bootc_core.render import stream

        stream.abandon(2)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen command; its exit status."""
    from importlib import import_module

    module, _, function = arguments.run.partition(":")
    status: int = getattr(import_module(module), function)(arguments)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one message and an exit status."""
    from bootc_core.render import stream

    # pydantic would look for plugins of its own among all distributions, and run them as root; it costs 20 ms, too
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Trees have 100,000s of objects and no cycles: looking for some again and again costs a tenth of a run.
    gc.set_threshold(200_000, 20, 100)
    stream.repair()
    try:
        status = _guarded(argv)
        flushed = _flush()
        return status or flushed
    finally:
        _quiet_end()


def _is_builtin(words: Sequence[str]) -> bool:
    return next((word for word in words if not word.startswith("-")), None) in parsers.names()


def _commands(words: Sequence[str]) -> Sequence[CommandOffer]:
    from bootc_core.cli import commands

    return commands.wanted(words)


def _guarded(argv: Sequence[str] | None) -> int:
    from bootc_core.errors import BootcError, UsageError
    from bootc_core.render import stream

    words = sys.argv[1:] if argv is None else argv
    try:
        more = () if _is_builtin(words) else _commands(words)
    except BootcError as error:
        show_error(error)
        return 1
    arguments = parsers.build(__version__, more).parse_args(words)
    if os.environ.get("BOOTC_DEBUG"):
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    try:
        _look_at_environment()
        status = run(arguments)
    except BootcError as error:
        if os.environ.get("BOOTC_DEBUG"):
            raise
        show_error(error)
        return 2 if isinstance(error, UsageError) and error.reference == "usage" else 1
    except BrokenPipeError:
        # whoever read our output has enough; an update that was made is made
        stream.abandon(1)
        return 0
    except KeyboardInterrupt:
        stream.tell(
            sys.stderr, "error: interrupted; nothing was switched unless the last line says so\n"
        )
        return 1
    except OSError as problem:
        if os.environ.get("BOOTC_DEBUG"):
            raise
        from bootc_core.fs.atomic import storage_error

        show_error(storage_error(problem, "use", problem.filename or "the sysroot"))
        return 1
    except Exception as problem:
        if os.environ.get("BOOTC_DEBUG"):
            raise
        show_error(
            BootcError(
                "an unexpected defect of this program",
                reference="defect",
                found=f"{type(problem).__name__}: {problem}",
                hint="run again with BOOTC_DEBUG=1 and report what it prints",
            )
        )
        return 1
    return status


def entry() -> NoReturn:
    """For ``python -m bootc_core.cli.main``."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
