"""What some tests need beyond Python: how to tell whether this machine has it, and what to install.

A test marked `@pytest.mark.needs("browser")` skips itself with one line if there is none. With CI set that skip is a
failure, since nobody reads the skips of a green run: `NEEDS` is the list of what CI must have.
"""

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright


@dataclass(frozen=True)
class Need:
    """Something that a machine may lack.

    name: what a skipped test says that it needs. remedy: what to do about it. present: whether it is there.
    in_ci: whether CI must have it, on this system.
    """

    name: str
    remedy: str
    present: Callable[[], bool]
    in_ci: bool = sys.platform == "linux"

    def reason(self) -> str:
        """Why a test is skipped, in one line."""
        return f"needs {self.name}: {self.remedy}"


def _runs(*line: str) -> bool:
    """Whether a command is there and succeeds."""
    try:
        subprocess.run(line, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


NEEDS = {
    "browser": Need(
        "a browser",
        "install Chromium, Chrome, Edge or Firefox, or run: python -m playwright install chromium",
        lambda: _has_browser(),
        in_ci=True,
    ),
    "namespaces": Need(
        "Linux's user namespaces",
        "install util-linux (unshare, nsenter), and allow unprivileged user namespaces",
        lambda: _runs("unshare", "--user", "--map-root-user", "--mount", "true") and bool(shutil.which("nsenter")),
    ),
    "network namespaces": Need(
        "Linux's network namespaces and ip",
        "install util-linux and iproute2, and allow unprivileged user namespaces",
        lambda: _runs("unshare", "--user", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"),
    ),
    "/proc": Need("/proc", "Linux has it", lambda: Path("/proc/self/status").exists()),
    "Triton": Need(
        "Triton",
        "PyTorch's CUDA build for Linux brings it",
        _has_triton,
        in_ci=sys.platform == "linux" and "+cpu" not in importlib.metadata.version("torch"),
    ),
    "onnxruntime": Need(
        "onnxruntime, onnx and onnxscript",
        "pip install 'cifarctl[test]'",
        lambda: all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript")),
    ),
    "GPU": Need("a GPU", "PyTorch must find one through CUDA", lambda: _has_gpu(), in_ci=False),
    "/dev/full": Need("/dev/full", "Linux has it", Path("/dev/full").exists),
    "byte names": Need("file names of any bytes", "Linux has them", lambda: sys.platform == "linux"),
    "POSIX": Need(
        "a POSIX system", "Windows has no such signals, pipes or terminals", lambda: os.name == "posix", in_ci=False
    ),
}


@functools.cache
def missing(name: str) -> str | None:
    """Why a test that needs `name` cannot run here, or None where it can."""
    need = NEEDS[name]
    return None if need.present() else need.reason()


def is_demanded(name: str) -> bool:
    """Whether this run must have it, so that a skip would hide something."""
    return bool(os.environ.get("CI")) and NEEDS[name].in_ci


@contextmanager
def launched_browser() -> "Iterator[Browser]":
    """An installed Chromium, Chrome, Edge or Firefox, or one that Playwright has downloaded earlier.

    Raises LookupError where none starts.
    """
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        for launch in _launchers(playwright):
            try:
                browser = launch()
                browser.new_page().close()  # what a Firefox older than its driver refuses
            except Error:
                continue
            yield browser
            browser.close()
            return
        raise LookupError(NEEDS["browser"].reason())


def _launchers(playwright: "Playwright") -> "Iterator[Callable[[], Browser]]":
    chromium, firefox = playwright.chromium, playwright.firefox
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge"):
        if executable := shutil.which(name):
            yield functools.partial(chromium.launch, executable_path=executable)
    for channel in ("chrome", "msedge"):  # Playwright knows where each system keeps them
        yield functools.partial(chromium.launch, channel=channel)
    yield chromium.launch  # those that Playwright has downloaded
    yield firefox.launch
    # As it is installed, it speaks WebDriver BiDi.
    yield functools.partial(firefox.launch, channel="moz-firefox", executable_path=shutil.which("firefox"))


def _has_browser() -> bool:
    try:
        with launched_browser():
            return True
    except (LookupError, ImportError):
        return False
