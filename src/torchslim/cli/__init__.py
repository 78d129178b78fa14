"""The command line: parse, call, print. Exit status 0 done, 1 the work failed, 2 the request was wrong, 130 Ctrl-C.

Nothing heavy is imported before a command runs, so that `torchslim --help` answers without torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache
from typing import Annotated, Any

import typer

from torchslim import __version__
from torchslim.cli import (
    advise,
    bench,
    compare,
    export,
    ladder,
    lighten,
    models,
    profile,
    prune,
    recipes,
    sensitivity,
    slim,
    sweep,
    train,
)
from torchslim.cli.interrupts import interrupts
from torchslim.cli.several import check_command, print_once, quiet_processes
from torchslim.cli.usage import check_arguments, usage_message
from torchslim.errors import RequestError, TorchslimError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(name="torchslim", add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False)
for command in (models.models, profile.profile, compare.compare, advise.advise, lighten.lighten, prune.prune,
                sensitivity.sensitivity, train.train, slim.slim, sweep.sweep, slim.demo, recipes.recipes, export.export,
                bench.bench, ladder.ladder):
    app.command()(command)


@app.callback(invoke_without_command=True)
def torchslim(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make convolutional networks light, and prove it.

    A MODEL is torchslim:NAME, torchvision:NAME, timm:NAME, ultralytics:NAME.yaml, a bare NAME (looked up in these, in
    this order), package.module:factory or file.py:factory, each with options after a question mark
    (torchvision:resnet18?num_classes=10&weights=DEFAULT), or the path of a saved slim model. Weights are random
    unless asked for.
    """
    if version:
        typer.echo(f"torchslim {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache
def parser() -> Any:
    """The parser of all commands, made once."""
    return typer.main.get_command(app)


def main() -> int:
    """Run the command line; the exit status."""
    quiet_processes()
    status = INTERRUPTED
    try:
        with interrupts.heeded():
            status = _run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    status = interrupts.status or status
    if status == INTERRUPTED or interrupts.status:
        print_once(f"interrupted; {interrupts.remedy}" if interrupts.remedy else
                   "error: interrupted; run the same command again")
    return status


def _run() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1  # --debug may stand anywhere
    warnings.formatwarning = _one_line
    try:
        check_arguments(arguments, parser())
        check_command(arguments)
        status = parser()(arguments, prog_name="torchslim", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as error:
        # The parser exits where the reader of stdout, such as `head`, has closed it; others are a model's own code.
        if not isinstance(error.__context__, BrokenPipeError):
            return _report(RequestError(f"the code that was called ended the process with sys.exit({error.code!r}); "
                                        "guard it with `if __name__ == '__main__':`"), arguments)
        return _forget_output()
    except BrokenPipeError:
        return _forget_output()
    except Exception as error:
        if interrupts.status:  # it came of that
            return interrupts.status
        if debug:
            raise
        return _report(error, arguments)
    return status if isinstance(status, int) else 0


def _forget_output() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _report(error: Exception, arguments: list[str]) -> int:
    """One line on stderr; the exit status."""
    if callable(getattr(error, "format_message", None)):  # the parser's own errors
        text, status = usage_message(error, arguments, parser()), 2
    elif isinstance(error, TorchslimError):
        text, status = str(error), 2 if isinstance(error, RequestError) else 1
    elif isinstance(error, OSError):
        text, status = str(error), 1
    else:
        text, status = f"{type(error).__name__}: {error}; run again with --debug for the traceback", 1
    # What is no Unicode in an argument can't be printed as it is.
    print_once("error: " + " ".join(text.encode("utf-8", "backslashreplace").decode().split()))
    return status


def _one_line(message: Warning | str, *_args: object, **_kwargs: object) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
