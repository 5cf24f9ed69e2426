"""The README's promises that a test can keep: every line that it tells people to paste works, in its order."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from PIL import Image

from cifarctl import models
from cifarctl.cli import options
from cifarctl.data.archive import ARCHIVES

from py2_pickle import SmallArchive
from support import Cifarctl, command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / ".github" / name).read_text(encoding="utf-8") for name in ("PERFORMANCE.md", "EXPERIMENTS.md")}


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks in these languages, in order, without the indentation of lists."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [(language, dedent(content)) for _, language, content in found if language in languages]


def pasted_lines() -> list[str]:
    """What a reader pastes into a shell, in order. A script that is passed to a command (`<<`) counts as one line."""
    contents = [content for _, content in blocks(README, "sh")]
    return [line for content in contents for line in ([content] if "<<" in content else content.splitlines())]


PASTED = pasted_lines()
INSTALLING = [line for line in PASTED if "pip install" in line]
USING = [line for line in PASTED if line not in INSTALLING]


def shown_options(name: str) -> set[str]:
    """The options that the documents' commands give to the command `name`."""
    lines = [line for text in (README, *PAGES.values()) for line in re.findall(rf"cifarctl {name}\b([^\n|`]*)", text)]
    return {option for line in lines for option in re.findall(r"(?<!\S)--[a-z0-9-]+", line)}


@pytest.mark.parametrize("name", ["download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict"])
def test_every_option_in_the_readmes_examples_exists(cifarctl: Cifarctl, name: str) -> None:
    help_text = cifarctl(name, "--help").out
    assert f"cifarctl {name}" in README
    assert {option for option in shown_options(name) if option not in help_text} == set()


@pytest.mark.needs("POSIX")
class TestPasting:
    """From an empty folder, with a data file of 600 images instead of CIFAR-10's 60,000."""

    @pytest.fixture
    def empty(self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The current folder, which is empty. The command and its Python are on the PATH, as in an activated venv."""
        monkeypatch.setenv("CIFARCTL_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert cifarctl("download", "--from", archive.path, "--sha256", archive.sha256).code == 0
        folder = tmp_path / "empty"
        folder.mkdir()
        monkeypatch.chdir(folder)
        return folder

    def test_every_line_works_in_order(self, cifarctl: Cifarctl, empty: Path) -> None:
        """Trainings are cut to an epoch of the small baselines, and what needs no shell runs in this process."""
        quick = {"train-ae": "--arch conv2 --limit 300 --epochs 1", "train-clf": "--arch mlp --limit 100 --epochs 1"}
        for line in USING:
            cut = f"{line} {quick.get(line.split()[1], '')}"
            if re.search(r"[|<>&]", line):
                done = subprocess.run(["/bin/sh", "-c", cut], capture_output=True, text=True, check=False)
                code, err = done.returncode, done.stderr
            else:
                result = cifarctl(*shlex.split(cut)[1:])
                code, err = result.code, result.err
            # One epoch may not reach what the whole training does.
            assert code in ((0, 3) if "--fail-under" in line else (0,)), f"{line}\n{err}"
        left = {path.name for path in empty.iterdir()}
        assert {"shapes.html", "report.html", "mine.html", "grid.png", "example.png", "mine.json"} < left
        assert {path.name for path in (empty / "runs").iterdir()} == {"shapes", "clf", "ae", "head", "mine"}

    @pytest.mark.thorough
    def test_every_line_works_as_it_stands(self, empty: Path) -> None:
        """But for two trainings that would take minutes, on 10,000 drawn images and of a head."""
        long, cut = ("cifarctl train-clf --data synthetic ", "cifarctl train-clf --encoder "), " --limit 300 --epochs 2"
        lines = [line + cut if line.startswith(long) else line for line in USING]
        assert len([line for line in lines if line.endswith(cut)]) == 2
        done = subprocess.run(["/bin/sh", "-e"], input="\n".join(lines), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("good\n")
        assert (empty / "mine.html").stat().st_size > 10_000

    def test_the_pages_script_makes_the_jpeg_copy_that_the_figures_were_measured_on(self, empty: Path) -> None:
        ((_, script),) = blocks(PAGES["PERFORMANCE.md"], "python")
        exec(script, {})
        (copy,) = empty.iterdir()
        files = list(copy.glob("*/*/*.jpg"))
        assert len([path for path in files if path.parent.parent.name == "train"]) == 500
        assert len(files) == 600
        with Image.open(files[0]) as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))


def test_what_can_be_pasted_stands_apart_from_what_is_printed() -> None:
    assert blocks(README, "console") == []
    assert re.findall(r"^ *\$ ", README, re.M) == []


@pytest.mark.needs("POSIX")
def test_lines_that_install_are_sound_and_say_where_the_small_build_is() -> None:
    for line in INSTALLING:
        subprocess.run(["/bin/sh", "-n", "-c", line], check=True)
    assert len(INSTALLING) == 3
    assert set(re.findall(r"--extra-index-url (\S+)", README)) == {
        "https://download.pytorch.org/whl/cpu",
        "https://download.pytorch.org/whl/cpu'",  # of pipx, in quotes
    }


def test_the_shown_answer_is_the_one_that_predict_gives(cifarctl: Cifarctl) -> None:
    (shown,) = re.findall(
        r"cifarctl predict (example .*) --show\n.*?```text\n(\w+) +([\d.]+)%   example  (\w+)", README, re.S
    )
    arguments, label, percent, second = shown
    answer = cifarctl("predict", *arguments.split(), "--format", "json").json[0]
    assert [answer["label"], answer["top"][1]["label"]] == [label, second]
    assert 100 * answer["confidence"] == pytest.approx(float(percent), abs=0.5)  # bf16 and fp32 differ
    assert f"answers: {label} {percent}%" in README


def test_the_python_example_runs(tmp_path: Path) -> None:
    ((_, example),) = blocks(README, "python")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer, accuracy = done.stdout.splitlines()
    assert re.match(r"cat 0\.[67]\d+ \(\('cat', ", answer)
    assert 0 <= float(accuracy) <= 1


def test_the_python_examples_are_the_ones_that_mypy_checks() -> None:
    checked = (ROOT / "tests" / "readme_examples.py").read_text(encoding="utf-8")
    _, *bodies = re.split(r"^def \w+\(\) -> None:\n", checked, flags=re.M)
    examples = [content.strip() for _, content in blocks(README, "python")]
    assert [dedent(body).strip() for body in bodies] == examples


def test_it_is_short_before_the_reference() -> None:
    assert len(README.partition("\n## Reference\n")[0].splitlines()) <= 350


@pytest.mark.parametrize("page", ["README.md", ".github/PERFORMANCE.md", ".github/EXPERIMENTS.md"])
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"""(?:\]\(|src=")(?!https?:)([^)"]+)""", text):
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, link


@pytest.mark.needs("POSIX")
class TestAutomation:
    """The recipes' own lines, on data and settings that take seconds."""

    @pytest.fixture
    def home(self, tmp_path: Path, image_folder: Path) -> Path:
        """A home folder with a folder of pictures, and the command where the README's installation puts it."""
        programs = tmp_path / "cifarctl" / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "cifarctl").symlink_to(command())
        (tmp_path / "pictures").symlink_to(image_folder)
        return tmp_path

    @staticmethod
    def run(line: str, home: Path, accuracy: float) -> subprocess.CompletedProcess[str]:
        data = "" if "--data pictures" in line else "--data synthetic"
        quick = line.replace("train-clf", f"train-clf {data} --limit 250 --epochs 1 --arch mlp")
        quick = quick.replace("accuracy=0.88", f"accuracy={accuracy}")
        assert quick.count(f"accuracy={accuracy}") == line.count("--fail-under")
        path = f"{home}/cifarctl/.venv/bin:/usr/bin:/bin"
        environment = {**os.environ, "HOME": str(home), "PATH": path}
        return subprocess.run(
            ["/bin/sh", "-c", quick], cwd=home, env=environment, capture_output=True, text=True, check=False
        )

    def test_the_actions_job_keeps_the_report_of_a_failure(self, home: Path) -> None:
        ((_, job),) = blocks(README, "yaml")
        install, *lines = re.findall(r"- run: (.*)", job)
        # From elsewhere: the repository that has the job is not this one.
        assert re.fullmatch(r'pip install --extra-index-url \S+ "\$CIFARCTL"', install)
        assert "\n  CIFARCTL: git+<URL>\n" in job
        assert [self.run(line, home, accuracy=1.01).returncode for line in lines] == [0, 3]
        (kept,) = re.findall(r"path: ([^}\s]+)\}", job)
        assert (home / kept).stat().st_size > 10_000

    @pytest.mark.parametrize(("accuracy", "code"), [pytest.param(0.0, 0, marks=pytest.mark.thorough), (1.01, 3)])
    def test_the_cron_line(self, home: Path, accuracy: float, code: int) -> None:
        ((_, content),) = blocks(README, "cron")
        line = re.sub(r"^(\S+\s+){5}", "", content.strip())
        done = self.run(line.replace(r"\%", "%"), home, accuracy)  # as cron reads it
        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == (1 if code else 0), done.stderr
        (page,) = home.glob("runs/20*/report.html")
        assert page.stat().st_size > 10_000


def test_the_reference_of_commands_is_the_programs() -> None:
    script = runpy.run_path(str(ROOT / ".github" / "readme_reference.py"))
    assert script["with_reference"](README) == README, "run python .github/readme_reference.py"


def test_the_readme_names_every_model_and_data_set() -> None:
    for name in (*models.REGISTRY, *ARCHIVES, "synthetic"):
        assert f"`{name}`" in README


def test_the_default_data_folders_variable_is_documented() -> None:
    assert "CIFARCTL_DATA_DIR" in README
    assert options.DataDir is not None
