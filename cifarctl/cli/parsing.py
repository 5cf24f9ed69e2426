"""How every command reads its arguments: an empty one is refused, before a path takes it for the current folder."""

from typing import Any

from typer.core import TyperCommand

from cifarctl.errors import UsageError


class Command(TyperCommand):
    """A command none of whose options and arguments may be empty, as those of unset shell variables are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise UsageError on an empty value; all else as Typer does it."""
        if not ctx.resilient_parsing:
            values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in self.get_params(ctx):
                given = values.get(str(parameter.name))
                if "" in (given if isinstance(given, list | tuple) else [given]):
                    is_option = parameter.param_type_name == "option"
                    problem = (
                        f"{max(parameter.opts, key=len)} is empty" if is_option else "an argument is an empty name"
                    )
                    raise UsageError(problem, hint="a variable of the shell may be unset")
        return super().parse_args(ctx, args)
