"""Functions as commands: help with examples, the nearest name, exit statuses, errors in few lines."""

import inspect
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
import tyro
from rich.console import Console
from rich.table import Table

import edgewise
from edgewise.arguments import UnknownNameError, known_name
from edgewise.errors import EdgewiseError
from edgewise.lab import user_errors

Command = Callable[..., None]

FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # exit statuses; the last two as shells have them


def option(metavar: str, default: str | None = None, *, name: str | None = None) -> object:
    """Return how the help shows an argument: what is to be put there, and in words what holds if nothing is."""
    hint = None if default is None else f"(default: {default})"
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=hint)


def one_of(names: Mapping[str, object] | tuple[str, ...]) -> object:
    """Return how the help shows an argument that takes one of some names."""
    return option(f"{{{','.join(names)}}}")


def run(commands: Mapping[str, Command], purpose: str) -> None:
    """Run what `sys.argv` says, and leave with its exit status unless that is 0.

    Args:
        commands: by name; the first line of a docstring is what the command is for, its last section are examples.
        purpose: of the program, a sentence.
    """
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if name in ("-h", "--help"):
        _help(commands, purpose, Console())
    elif name == "--version":
        print(_versions())
    elif not name:
        _help(commands, purpose, Console(stderr=True))
        sys.exit(MISUSED)
    else:
        try:
            known_name("command", name, commands)
        except UnknownNameError as error:
            leave(MISUSED, f"edgewise: {error}")
        _call(commands[name], name, arguments)


def check_writable(file: Path | None) -> None:
    """Raise where a file that was asked for could not be written."""
    if file is not None and file.is_dir():
        raise ValueError(f"{file} cannot be written: it is a folder; name a file in it.")
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"{file} cannot be written: there is no folder {file.absolute().parent}.")


def leave(status: int, words: str) -> NoReturn:
    """Say why on standard error, and exit."""
    print(words, file=sys.stderr)
    sys.exit(status)


def _call(command: Command, name: str, arguments: list[str]) -> None:
    """Parse the arguments and call the command; whatever it raises is told in a few lines."""
    summary, examples = _about(command)
    # tyro breaks no line of a description, and joins those that begin with a letter.
    summary = textwrap.fill(summary, shutil.get_terminal_size().columns, subsequent_indent="  ")
    try:
        tyro.cli(
            command,
            prog=f"edgewise {name}",
            description=f"{summary}\n\nExamples:\n{examples}",
            args=arguments,
            config=(tyro.conf.DisallowNone,),
        )
    except (EdgewiseError, ValueError) as error:
        message = f"edgewise: {error}"
        leave(FAILED, user_errors.told(error, message) if user_errors.own_line(error) else message)
    except KeyboardInterrupt:
        leave(
            INTERRUPTED,
            "\nedgewise: interrupted; nothing is lost: finished runs are kept, run the same command again to continue.",
        )
    except Exception as error:
        leave(FAILED, user_errors.told(error, f"edgewise: {user_errors.in_short(error)}"))


def _about(command: Command) -> tuple[str, str]:
    """Return what a command is for, and its examples."""
    text = inspect.getdoc(command) or ""
    return text.partition("\n")[0], text.partition("Examples:\n")[2]


def _help(commands: Mapping[str, Command], purpose: str, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, command in commands.items():
        table.add_row(f"  {name}", _about(command)[0])
    console.print(
        f"usage: edgewise [--help] [--version] {{{','.join(commands)}}} ...\n", markup=False, highlight=False
    )
    console.print(f"{purpose}\n", highlight=False)
    console.print(table, highlight=False)
    console.print("\nedgewise COMMAND --help says more of each, with examples.", highlight=False)


def _versions() -> str:
    return f"edgewise {edgewise.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
