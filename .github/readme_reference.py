"""Write the README's reference of commands from the program itself.

    python .github/readme_reference.py

A test fails where the two differ.
"""

from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from cifarctl.cli import app
from cifarctl.files import write_text

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- commands: .github/readme_reference.py writes them -->\n", "<!-- end of commands -->\n"


def with_reference(readme: str) -> str:
    """The README with what stands between the marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def reference() -> str:
    """Every command: its usage and purpose, to be opened for its options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    hints = {str(info.name): get_type_hints(info.callback) for info in app.registered_commands}
    return "\n".join(_command(name, command, hints[name]) for name, command in commands.items())


def _command(name: str, command: Any, hints: dict[str, Any]) -> str:
    purpose, _, _ = command.help.partition("\n\n")
    arguments = [param.metavar for param in command.params if param.param_type_name == "argument"]
    usage = " ".join(["cifarctl", name, "[OPTIONS]", *arguments])
    rows = "\n".join(
        f"| {_names(param, hints[param.name])} | {_meaning(param)} |"
        for param in command.params
        if param.param_type_name == "option"
    )
    summary = f"<summary><code>{usage}</code><br>{purpose}</summary>"
    return f"<details>\n{summary}\n\n| option | |\n|---|---|\n{rows}\n\n</details>\n"


def _names(param: Any, hint: Any) -> str:
    value = param.metavar or "|".join(_choices(hint))
    names = "`, `".join((*param.opts, *param.secondary_opts))
    return f"`{names} {value}".replace("|", "\\|").strip() + "`"


def _choices(hint: Any) -> list[str]:
    """The words that an option takes, where it takes only some."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [str(member.value) for member in hint]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for inner in get_args(hint) for word in _choices(inner)]


def _meaning(param: Any) -> str:
    notes = []
    if isinstance(param.default, str | int | float) and not isinstance(param.default, bool):
        notes.append(f"Default: `{param.default}`.")
    if param.default is True:
        notes.append(f"Default: `{param.opts[0]}`.")
    if param.envvar:
        notes.append(f"Environment: `{param.envvar}`.")
    return " ".join([param.help, *notes]).replace("|", "\\|")


if __name__ == "__main__":
    write_text(README, with_reference(README.read_text(encoding="utf-8")))
