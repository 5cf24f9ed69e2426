"""The `cifarctl` command: options in, text out. Everything else is in the library below it."""

import gc
import inspect
import io
import logging
import os
import sys
import threading
import warnings
from codecs import backslashreplace_errors, register_error
from collections.abc import Callable
from typing import Annotated

import typer

from cifarctl.cli.download import download
from cifarctl.cli.evaluate import evaluate
from cifarctl.cli.output import report_error, with_options, write_line, writing_to
from cifarctl.cli.parsing import Command, Group
from cifarctl.cli.predict import predict
from cifarctl.cli.reconstruct import reconstruct
from cifarctl.cli.train_ae import train_ae
from cifarctl.cli.train_clf import train_clf
from cifarctl.distributed import process_number
from cifarctl.errors import CifarctlError, Interrupted
from cifarctl.hardware import is_lacking_on_mps, is_out_of_memory, reuse_memory
from cifarctl.version import __version__


def _help(command: Callable[..., None]) -> str:
    """A command's docstring as typer shows it best: paragraphs unwrapped, and each example on its line."""
    *prose, examples = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    paragraphs = [paragraph.replace("\n", " ") for paragraph in prose]
    heading, *lines = examples.splitlines()
    return "\n\n".join([*paragraphs, "\n".join([heading, *(f"[cyan]{line}[/cyan]" for line in lines)])])


_READABLE = "cifarctl.readable"
_PLAIN = {"…": "...", "–": "-", "−": "-", "×": "x", "━": "-", "╸": "-", "╺": "-", "’": "'", "“": '"', "”": '"'}

app = typer.Typer(
    name="cifarctl",
    cls=Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
_COMMANDS = (download, train_ae, train_clf, evaluate, reconstruct, predict)
for _command in _COMMANDS:
    app.command(_command.__name__.replace("_", "-"), cls=Command, help=_help(_command))(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        write_line(f"cifarctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback does it all)
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, measure and use CIFAR-10 autoencoders and classifiers.

    [dim]Start with: cifarctl download, or: cifarctl train-clf --data synthetic[/dim]
    """
    if context.invoked_subcommand is None:
        with writing_to(sys.stdout):
            write_line(context.get_help())
        raise typer.Exit(2)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Exceptions become one line, unless CIFARCTL_DEBUG is 1."""
    try:
        code = app(arguments, prog_name="cifarctl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Exception as error:
        if os.environ.get("CIFARCTL_DEBUG", "0") not in ("", "0"):
            raise
        code, message, hint = _explain(error)
        if number := process_number():
            if isinstance(error, Interrupted):  # the first process says so
                return code
            message = f"process {number}: {message}"
        report_error(message, hint)
        return code


def _explain(error: Exception) -> tuple[int, str, str | None]:
    """Exit code, message and hint for anything that ends a command."""
    match error:
        case CifarctlError():
            # `from` is a word of Python's, so the parameter has another name.
            parameters = {name for command in _COMMANDS for name in inspect.signature(command).parameters} | {"from"}
            hint = with_options(error.hint, parameters) if error.hint else None
            return error.exit_code, with_options(str(error), parameters), hint
        case typer.TyperException():  # what the parser of options raises
            context = getattr(error, "ctx", None)
            return 2, error.format_message(), f"{context.command_path if context else 'cifarctl'} --help"
        case typer.Abort():
            return 130, "aborted", None
        case OSError(filename=str() as name):
            return 1, f"{name}: {error.strerror}", None
        case MemoryError() | RuntimeError() if is_out_of_memory(error):
            return 1, "out of memory", "a smaller --batch-size, or fewer images"
        case OSError():
            return 1, str(error), None
        case _ if is_lacking_on_mps(error):
            return 1, f"the Mac's GPU cannot do this: {str(error).partition('. ')[0]}", "--device cpu"
    return 1, f"internal error: {type(error).__name__}: {error}", "CIFARCTL_DEBUG=1 shows where; please report it"


def _silence_libraries() -> None:
    """Keep libraries' remarks, such as Matplotlib's about a home that cannot be written, from stderr: it is ours."""
    usual_hook = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):  # TensorBoard raises those of its thread again in ours
            usual_hook(failure)

    threading.excepthook = hook
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints what no handler takes
    if not sys.warnoptions:  # -W and PYTHONWARNINGS
        warnings.simplefilter("ignore")


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written instead of characters that the terminal's encoding lacks: our own ones in ASCII, and escapes."""
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return backslashreplace_errors(error)


def main() -> None:
    """The console script."""
    # Read when torch is imported: large tensors on huge pages, so that fresh memory costs 512 times fewer page faults.
    # A training step of the classifier went from 950 to 1150 images/s on two cores.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # As well: what PyTorch lacks on a Mac's GPU runs on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        # As well, by GNU's OpenMP: how often a thread asks for work before it sleeps. By default 300,000 times; where
        # other programs keep the cores busy, that takes the time of the threads that have work: on two half-busy cores
        # a classifier trained at a sixth of the speed of idle ones, and with this at half. Idle ones lose nothing.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    reuse_memory()
    _silence_libraries()
    register_error(_READABLE, _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors=_READABLE)
            # A code page of 256 characters, on Windows. Python 3.15 writes UTF-8 as well (PEP 686).
            if sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
                stream.reconfigure(encoding="utf-8")
    code = run()
    gc.freeze()  # else Python searches all objects, several times, before it ends: 0.3 s with torch, on two cores
    sys.exit(code)
