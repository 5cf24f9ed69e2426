"""How every command reads its arguments and shows them: empty ones are refused, before a path takes one for the current
folder, and neither messages nor help speak of Python's types.
"""

import inspect
import math
import sys
import typing
from collections.abc import Callable, Sequence
from copy import copy
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from cifarctl.cli.output import writing_to
from cifarctl.errors import CifarctlError, UsageError


class _PlainHelp:
    """Help in which options have our words for their values, and flags none. Typer 0.29 shows `<bool>`,
    `<list[train|val]>` and `[[IMAGE]...]...`.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with a word for the value of each option that has one."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                _hide_type(parameter)
            elif parameter.metavar is None:
                values = _choices(_annotation(self, parameter.name))
                if values or parameter.is_flag:
                    parameter.metavar = "|".join(values)
        return parameters

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments; --help, --version and --show-completion print. Raises OSError if they cannot."""
        with writing_to(sys.stdout):
            return super().make_context(*args, **extra)  # type: ignore[misc]


class Group(_PlainHelp, TyperGroup):
    """The command above the commands."""


class Command(_PlainHelp, TyperCommand):
    """A command none of whose options and arguments may be empty, as those of unset shell variables are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise UsageError on an empty value and on one of another type; all else as Typer does it."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.get_params(ctx):
            given = values.get(str(parameter.name))
            if "" in (given if isinstance(given, list | tuple) else [given]):
                is_option = parameter.param_type_name == "option"
                problem = f"{max(parameter.opts, key=len)} is empty" if is_option else "an argument is an empty name"
                raise UsageError(problem, hint="a variable of the shell may be unset")
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            parameter = getattr(error, "param", None)
            given = parameter and values.get(parameter.name)
            if given is None:  # it is missing
                raise
            raise self._refusal(parameter, given, ctx) from None
        for parameter in self.get_params(ctx):  # which is within all bounds
            if isinstance(value := ctx.params.get(parameter.name), float) and not math.isfinite(value):
                raise self._refusal(parameter, values[parameter.name], ctx)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises CifarctlError if the current folder has been deleted: torch's libraries would end the
        process.
        """
        try:
            Path.cwd()
        except OSError as error:
            raise CifarctlError(f"the current folder: {error.strerror}", hint="cd to one that is there") from None
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments as they were declared."""
        arguments = [each.metavar for each in self.get_params(ctx) if each.param_type_name == "argument"]
        return [str(self.options_metavar), *arguments]

    def _refusal(self, parameter: Any, given: Any, ctx: Any) -> UsageError:
        wanted = _wanted(_annotation(self, parameter.name))
        values = [str(value) for value in given] if isinstance(given, list | tuple) else [str(given)]
        allowed = _choices(_annotation(self, parameter.name))
        value = next((value for value in values if allowed and value not in allowed), values[0])
        return UsageError(f"{max(parameter.opts, key=len)} {value}: not {wanted}", hint=f"{ctx.command_path} --help")


def _annotation(command: Any, name: str) -> Any:
    """The annotation of the parameter `name`; None if it is Typer's own, as --help is."""
    function: Callable[..., Any] | None = command.callback
    return typing.get_type_hints(inspect.unwrap(function), include_extras=True).get(name) if function else None


def _choices(annotation: Any) -> Sequence[str]:
    """The words that an annotation such as `Literal`, an Enum, or a list of one admits; none if it admits others."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(value.value) for value in annotation]
    return next(filter(None, map(_choices, get_args(annotation))), ()) if get_args(annotation) else ()


def _wanted(annotation: Any) -> str:
    """What a parameter's value must be, in words."""
    if choices := _choices(annotation):
        return f"one of: {', '.join(choices)}"
    value_type, *extras = get_args(annotation)
    types = [each for each in (*get_args(value_type), value_type) if each is not NoneType]
    noun = "a whole number" if int in types else "a number" if float in types else "possible here"
    bounds = next((each for each in extras if isinstance(each, OptionInfo)), None)
    if bounds is None or (bounds.min is None and bounds.max is None):
        return noun
    least, most = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (bounds.min, bounds.max))
    return f"{noun} of at least {least}" if bounds.max is None else f"{noun} from {least} to {most}"


def _hide_type(argument: Any) -> None:
    """Show the name of an argument, without a type beside it. Typer has no setting for that."""
    argument.display_type_rich = lambda ctx: ""  # noqa: ARG005
    if hasattr(argument, "type"):  # before Typer 0.29
        argument.type = copy(argument.type)
        argument.type.get_metavar = lambda **_: ""
