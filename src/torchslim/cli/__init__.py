"""The command line: parse, call, print. Exit status 0 done, 1 the work failed, 2 the request was wrong.

Nothing heavy is imported before a command runs, so that `torchslim --help` answers without torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

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
)
from torchslim.errors import RequestError, TorchslimError

INTERRUPTED = 130

app = typer.Typer(name="torchslim", add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False)
for command in (models.models, profile.profile, compare.compare, advise.advise, lighten.lighten, prune.prune,
                sensitivity.sensitivity, slim.slim, slim.demo, recipes.recipes, export.export, bench.bench,
                ladder.ladder):
    app.command()(command)


@app.callback(invoke_without_command=True)
def torchslim(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make convolutional networks light, and prove it.

    A MODEL is torchslim:NAME, torchvision:NAME, timm:NAME, a bare NAME (looked up in these, in this order),
    package.module:factory or file.py:factory, each with options after a question mark
    (torchvision:resnet18?num_classes=10&weights=DEFAULT), or the path of a saved slim model. Weights are random
    unless asked for.
    """
    if version:
        typer.echo(f"torchslim {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> int:
    """Run the command line; the exit status."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1  # --debug may stand anywhere
    warnings.formatwarning = _one_line
    try:
        status = app(arguments, prog_name="torchslim", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the reader of stdout, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        if debug:
            raise
        return _report(error)
    if status == INTERRUPTED:
        print("error: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _report(error: Exception) -> int:
    """One line on stderr; the exit status."""
    usage = getattr(error, "format_message", None)  # the parser's own errors
    if callable(usage):
        text, status = f"{str(usage()).rstrip('.')}; try --help", 2
    elif isinstance(error, TorchslimError):
        text, status = str(error), 2 if isinstance(error, RequestError) else 1
    elif isinstance(error, OSError):
        text, status = str(error), 1
    else:
        text, status = f"{type(error).__name__}: {error}; run again with --debug for the traceback", 1
    print("error:", " ".join(text.split()), file=sys.stderr)
    return status


def _one_line(message: Warning | str, *_args: object, **_kwargs: object) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
