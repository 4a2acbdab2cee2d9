"""``bootc completion SHELL``: scripts made from the parser, so that they cannot drift from it."""

from __future__ import annotations

import argparse
import sys

from bootc_core import __version__
from bootc_core.cli import parser as parsers

Words = dict[str, list[str]]  # "" and each command to what may follow


def words(parser: argparse.ArgumentParser, prefix: str = "") -> Words:
    """What can be completed after each (sub)command."""
    found: Words = {prefix: []}
    for action in parser._actions:
        found[prefix] += [name for name in action.option_strings if name.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found[prefix].append(name)
                found.update(words(child, f"{prefix} {name}".strip()))
        elif action.choices and not action.option_strings:
            found[prefix] += [str(choice) for choice in action.choices]
    return found


def _bash(table: Words) -> str:
    cases = "\n".join(
        f'        "{key}") words="{" ".join(value)}" ;;' for key, value in table.items()
    )
    return f"""_bootc() {{
    local words command="" word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) ;; *) case " {" ".join(sorted({w for k in table for w in k.split()}))} " in
            *" $word "*) command="${{command:+$command }}$word" ;; esac ;; esac
    done
    case "$command" in
{cases}
        *) words="" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _bootc bootc
"""


def _zsh(table: Words) -> str:
    return "#compdef bootc\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(table)


def _fish(table: Words) -> str:
    lines = ["complete -c bootc -f"]
    for key, value in table.items():
        parts = key.split()
        where = (
            "__fish_use_subcommand"
            if not parts
            else " ; and ".join(f"__fish_seen_subcommand_from {p}" for p in parts)
        )
        for word in value:
            form = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c bootc -n '{where}' {form}")
    return "\n".join(lines) + "\n"


def _elvish(table: Words) -> str:
    rows = "\n".join(f"    &'{key}'=[{' '.join(value)}]" for key, value in table.items())
    return f"""set edit:completion:arg-completer[bootc] = {{|@words|
  var table = [
{rows}
  ]
  var command = ''
  for word $words[1..-1] {{
    var longer = (if (eq $command '') {{ put $word }} else {{ put $command' '$word }})
    if (has-key $table $longer) {{ set command = $longer }}
  }}
  all $table[$command]
}}
"""


def _powershell(table: Words) -> str:
    rows = "\n".join(
        f"        '{key}' = @({', '.join(repr(word) for word in value)})"
        for key, value in table.items()
    )
    return f"""Register-ArgumentCompleter -Native -CommandName bootc -ScriptBlock {{
    param($wordToComplete, $commandAst, $cursorPosition)
    $table = @{{
{rows}
    }}
    $command = ''
    foreach ($element in $commandAst.CommandElements[1..99]) {{
        $longer = ($command + ' ' + $element.ToString()).Trim()
        if ($table.ContainsKey($longer)) {{ $command = $longer }}
    }}
    $table[$command] | Where-Object {{ $_ -like "$wordToComplete*" }} |
        ForEach-Object {{ [System.Management.Automation.CompletionResult]::new($_) }}
}}
"""


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish, "elvish": _elvish, "powershell": _powershell}


def completion(arguments: argparse.Namespace) -> int:
    """Print the script for ``arguments.shell``."""
    from bootc_core.cli import commands

    parser = parsers.build(__version__, commands.wanted(("--help",)))
    sys.stdout.write(_SHELLS[arguments.shell](words(parser)))
    return 0
