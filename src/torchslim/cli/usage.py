"""What is said of command lines that do not parse, and of library messages on the command line: flags for keywords."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_type_hints

import typer

from torchslim.errors import RequestError
from torchslim.utils.text import did_you_mean, quoted

MAY_BE_EMPTY = ("--milestones", "--later-milestones")
"""Options for which an empty text is a value: no milestone."""


def check_arguments(arguments: Sequence[str], parser: Any) -> None:
    """Refuse an unknown command, or an argument that is empty, before anything is parsed.

    Raises:
        RequestError: one of them.
    """
    names = list(parser.commands)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        word = quoted(arguments[0])
        hint = did_you_mean(arguments[0], names, f"a command comes first, such as `torchslim profile {word}`; "
                            "`torchslim --help` lists them")
        raise RequestError(f"{word}: no such command; {hint}")
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            option, value = (arguments[index - 1] if index else ""), argument
        if value.strip() or option in MAY_BE_EMPTY or (equals and not option.startswith("--")):
            continue
        where = f"{option} {quoted(value)}" if option.startswith("--") else quoted(value)
        raise RequestError(f"{where}: is empty; {_about(option, arguments, parser)}")


def usage_message(error: Any, arguments: Sequence[str], parser: Any) -> str:
    """What is wrong with a command line, by the error of its parser: the value, what was wanted, where to look."""
    context: Any = getattr(error, "ctx", None)
    kind = type(error).__name__
    path = "torchslim" if context is None else context.command_path
    message, param = str(error.message).rstrip("."), getattr(error, "param", None)
    if kind == "NoSuchOption":
        names = [name for option in context.command.params for name in (*option.opts, *option.secondary_opts)
                 if name.startswith("--")]
        return f"{error.option_name}: no such option; {did_you_mean(error.option_name, names, f'see {_help(path)}')}"
    if kind == "BadOptionUsage":
        option = error.option_name
        given = next((argument for argument in arguments if argument.startswith(f"{option}=")), None)
        return f"{option}: its value is missing; {_about(option, arguments, parser)}" if given is None else \
            f"{quoted(given)}: {option} takes no value; give {option} alone, or leave it out"
    if kind == "MissingParameter" and param is not None:
        name = param.metavar or str(param.name).upper() if _is_argument(param) else param.opts[0]
        return f"{name}: is missing; {_about(param.opts[0], arguments, parser)}"
    if kind == "BadParameter" and param is not None:
        return _bad_value(param, message, arguments, context, path)
    takes = " ".join(param.metavar or str(param.name).upper() for param in context.command.params
                     if _is_argument(param)) if context is not None else ""
    return f"{path}: {message[:1].lower()}{message[1:]}; it takes {takes or 'options alone'}, see {_help(path)}"


@contextmanager
def flags_for_keywords(context: typer.Context) -> Iterator[None]:
    """What the library refuses in there is refused in the words of the command line: `--macs`, not `macs=`."""
    try:
        yield
    except RequestError as error:
        error.args = (_with_flags(str(error), context),)
        raise


def _with_flags(message: str, context: typer.Context) -> str:
    options = {str(option.name): option for option in context.command.params if not _is_argument(option)}
    head = re.match(r"(\w+)( [^\s:]+|=\S+)?: ", message)
    start = ""
    if str(context.params.get("model", " ")).partition("?")[0] in message.partition(": ")[0]:
        return message  # about the model, whose options are not those of the command
    if head and head[1] in options:
        flag_name, value = options[head[1]].opts[0], context.params.get(head[1])
        values = value if isinstance(value, list | tuple) else [value]
        start = f"{' '.join(f'{flag_name} {quoted(str(each))}' for each in values)}: "
        message = message[head.end():]
    message = message.replace("strict=False (--nearest)", "--nearest").replace("allow_approximate=", "approximate=")

    def flag(match: re.Match[str]) -> str:
        option = options.get(match[1])
        if option is None:
            return match[0]
        if match[2] in ("True", "False"):
            return str((option.secondary_opts or option.opts)[0] if match[2] == "False" else option.opts[0])
        return f"{option.opts[0]}{' ' if match[2] else ''}{match[2]}"

    return start + re.sub(r"(?<![\w?&.'-])(\w+)=([^\s,;)]*)", flag, message)


def _about(name: str, arguments: Sequence[str], parser: Any) -> str:
    """What the command wants as an option of this name, else as its arguments, and where to look."""
    params = parser.commands[arguments[0]].params if arguments and arguments[0] in parser.commands else []
    wanted = [param for param in params if name in param.opts] or [param for param in params if _is_argument(param)]
    texts = [f"wanted {param.metavar or str(param.name).upper()}: {(param.help or '').rstrip('.')}; "
             for param in wanted]
    return f"{''.join(texts)}see {_help(' '.join(['torchslim', *(arguments[:1] if params else [])]))}"


def _bad_value(param: Any, message: str, arguments: Sequence[str], context: Any, path: str) -> str:
    """The value that is refused, and what was wanted: a number and its range, or what the option's reader says."""
    name = param.metavar if _is_argument(param) else param.opts[0]
    kind, least, most = _number(context.command.callback, str(param.name))
    if kind is None:
        return f"{name} {message}; see {_help(path)}"
    values = _values(param.opts, arguments)
    value = next((value for value in values if not _fits(value, kind, least, most)), values[-1] if values else "")
    range_ = f"{least} or more" if most is None else f"from {least} to {most}"
    return (f"{name} {quoted(value)}: wanted a {'whole ' if kind is int else ''}number"
            f"{f', {range_}' if least is not None else ''}; see {_help(path)}")


def _number(callback: Any, name: str) -> tuple[type | None, float | None, float | None]:
    """The type and the range of an option that is a number, by the signature of its command; None for others."""
    callback = inspect.unwrap(callback)
    parameter = inspect.signature(callback).parameters[name]
    annotation = get_type_hints(callback, include_extras=True)[name]
    kinds = re.findall(r"\b(int|float)\b", str(annotation).partition(", <typer")[0])
    info = next((each for each in getattr(annotation, "__metadata__", ()) if hasattr(each, "min")), parameter.default)
    if not kinds or getattr(info, "parser", None) is not None:
        return None, None, None
    return {"int": int, "float": float}[kinds[0]], getattr(info, "min", None), getattr(info, "max", None)


def _fits(text: str, kind: type, least: float | None, most: float | None) -> bool:
    try:
        number = kind(text)
    except ValueError:
        return False
    return (least is None or number >= least) and (most is None or number <= most)


def _values(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The values that are given to an option."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return [following if argument in names else argument.partition("=")[2] for argument, following in pairs
            if argument.partition("=")[0] in names]


def _is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


def _help(path: str) -> str:
    return f"`{path} --help`"
