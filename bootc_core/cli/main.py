"""The command line: parser, error ladder, exit status (0 fine, 1 failed, 2 usage).

Commands are modules that are imported when they run, so that ``--help`` and ``status`` start fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from bootc_core import __version__
from bootc_core.cli import parser as parsers

if TYPE_CHECKING:
    from bootc_core.errors import BootcError


def show_error(error: BootcError) -> None:
    """Print ``error`` on standard error: text, or JSON with ``BOOTC_ERROR_FORMAT=json``."""
    from bootc_core.render import errors

    if os.environ.get("BOOTC_ERROR_FORMAT") == "json":
        text = errors.to_json(error)
    else:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        text = errors.to_text(error, colour=colour)
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen command; its exit status."""
    from importlib import import_module

    module, _, function = arguments.run.partition(":")
    status: int = getattr(import_module(module), function)(arguments)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one message and an exit status."""
    from bootc_core.errors import BootcError, UsageError

    arguments = parsers.build(__version__).parse_args(argv)
    if os.environ.get("BOOTC_DEBUG"):
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    try:
        status = run(arguments)
        sys.stdout.flush()
    except BootcError as error:
        if os.environ.get("BOOTC_DEBUG"):
            raise
        show_error(error)
        return 2 if isinstance(error, UsageError) and error.reference == "usage" else 1
    except BrokenPipeError:
        # whoever read our output has enough; an update that was made is made
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was switched unless the last line says so\n")
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
