"""Write the README's reference of commands from the program itself.

    python .github/readme_reference.py

A test fails where the two differ.
"""

from pathlib import Path
from typing import Any

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
    return "\n".join(_command(name, command) for name, command in commands.items())


def _command(name: str, command: Any) -> str:
    purpose, _, _ = command.help.partition("\n\n")
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join(["cifarctl", name, "[OPTIONS]", *(param.metavar for param in arguments)])
    rows = "\n".join(f"| {_names(param)} | {_meaning(param)} |" for param in options)
    summary = f"<summary><code>{usage}</code>: {purpose}</summary>"
    return f"<details>\n{summary}\n\n| option | |\n|---|---|\n{rows}\n\n</details>\n"


def _names(param: Any) -> str:
    value = f" {param.metavar}" if param.metavar else ""
    names = "`, `".join((*param.opts, *param.secondary_opts))
    return f"`{names}{value}`".replace("|", "\\|")


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
