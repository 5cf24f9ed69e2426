"""`evaluate --report`: the page as a file, and in a browser."""

import base64
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cifarctl.cli import run
from cifarctl.data import Dataset
from cifarctl.model_outputs import Predictions
from cifarctl.report import classifier_section, write_report
from cifarctl.report.charts import Axis, learning_curves
from cifarctl.report.confusion import DIAGONAL, OFF_DIAGONAL, overview
from cifarctl.report.image_files import ImageFile
from cifarctl.report.pictures import Sprite, Thumb
from cifarctl.report.sections import ClassifierSection
from cifarctl.training.checkpoint import Record

from needs import launched_browser
from support import Cifarctl, MadeOnce

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = ("<script>alert(1)", "\"'><img src=x onerror=alert(2)>", "{{ 7 * 7 }}")
HOSTILE_FILES = (
    "\"'><img src=x onerror=alert(3)>.png",
    "100%25 #1?x=<b>&amp;.png",
    "javascript:alert(4).png",
    "abc\u202edef\u200f שלום.png",
    f"{'long ' * 40}end.png",
    *([os.fsdecode(b"caf\xe9.png")] if sys.platform == "linux" else []),  # macOS has UTF-8 alone
)


def run_here(*arguments: object) -> None:
    """Run the command in this process, which has the libraries loaded, and be sure that it succeeds."""
    assert run([*map(str, arguments), "--quiet"]) == 0


@pytest.fixture(scope="session")
def classifier_page(made_once: MadeOnce, installed: Cifarctl, classifier_run: Path) -> Path:
    def evaluate(folder: Path) -> None:
        page = folder / "new" / "page.html"
        done = installed("evaluate", "-m", classifier_run, "--report", page, "--json")
        assert done.code == 0, done.err
        assert done.json["n"] == 1000
        assert done.err.endswith(f"Report: {page}\n")  # on a slow machine, after lines of progress

    return made_once("classifier-report", evaluate) / "new" / "page.html"


@pytest.fixture(scope="session")
def autoencoder_page(made_once: MadeOnce, autoencoder_run: Path) -> Path:
    def evaluate(page: Path) -> None:
        run_here("evaluate", "-m", autoencoder_run, "--report", page)

    return made_once("autoencoder.html", evaluate)


@pytest.fixture(scope="session")
def comparison_page(made_once: MadeOnce, classifier_run: Path) -> Path:
    def compare(folder: Path) -> None:
        few = ("--data", "synthetic", "--limit", 1000, "--val-size", 200, "--epochs", 1, "--arch", "mlp")
        run_here("train-clf", *few, "--out", folder / "mlp")
        models = ("-m", classifier_run, "-m", folder / "mlp")
        run_here("evaluate", *models, "--split", "val", "--split", "test", "--report", folder / "page.html")

    return made_once("comparison", compare) / "page.html"


@pytest.fixture(scope="session")
def hostile_page(made_once: MadeOnce) -> Path:
    """Of a model and classes with the names that an attacker would choose."""

    def evaluate(folder: Path) -> None:
        for split, files in (("train", [f"{i}.png" for i in range(12)]), ("test", HOSTILE_FILES)):
            for number, name in enumerate(HOSTILE):
                (folder / split / name).mkdir(parents=True)
                for i, file in enumerate(files):
                    colour = (80 * number, 9 * i, 200 - 80 * number)
                    Image.new("RGB", (32, 32), colour).save(folder / split / name / file)
        out = folder / "<b>run&amp;"
        run_here("train-clf", "--data", folder, "--arch", "mlp", "--epochs", 2, "--out", out)
        run_here("evaluate", "-m", out, "--report", folder / "page.html")

    return made_once("hostile", evaluate) / "page.html"


def drawn_section(
    *,
    n: int = 10_000,
    classes: int = 10,
    empty: int = 0,
    limit: int = 1200,
    noise: float = 1.0,
    typicality: Tensor | None = None,
    name: str = "class",
) -> ClassifierSection:
    """Of a made-up classifier; images are noise, the worst case for a page's size. empty: classes without images.
    name: how their names begin.
    """
    torch.manual_seed(0)
    labels = torch.arange(n) % (classes - empty)
    data = Dataset(
        torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8),
        labels,
        tuple(f"{name} {i}" for i in range(classes)),
    )
    scores = torch.nn.functional.one_hot(labels, classes) + noise * torch.randn(n, classes)
    predictions = Predictions(scores, labels, data.classes)
    metrics = {"accuracy": 0.5, "accuracy_ci95": (0.4, 0.6), "macro_f1": 0.5, "nll": 1.0, "ece": 0.1}
    rows = [asdict(row) for row in predictions.per_class]
    result = {"model": "m", "kind": "classifier", "data": "d", "split": "test", "n": n, "metrics": metrics}
    result |= {"confusion_matrix": predictions.confusion_matrix.tolist(), "per_class": rows, "tta": False}
    return classifier_section(result, data, predictions.probabilities, [], limit, typicality)


@pytest.fixture(scope="module")
def large_section() -> ClassifierSection:
    """Of a drawn model of 1,000 classes, two of them without images."""
    return drawn_section(n=3000, classes=1000, empty=2, noise=0.25)


@pytest.fixture(scope="module")
def large_page(large_section: ClassifierSection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("large") / "page.html"
    write_report(page, [large_section], [])
    return page


class Parsed(HTMLParser):
    """A page's elements, after checking that each one is closed where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)


def linked(page: Path, link: str) -> Path:
    """The file that a relative reference in a page leads to."""
    assert re.fullmatch(r"[\w/%.~-]+", link, re.ASCII)
    return page.parent / os.fsdecode(unquote_to_bytes(link))


class TestFile:
    @pytest.fixture(params=["classifier", "autoencoder", "comparison", "hostile"])
    def page(self, request: pytest.FixtureRequest) -> Path:
        return request.getfixturevalue(f"{request.param}_page")

    def test_it_is_well_formed_and_needs_nothing_else(self, page: Path) -> None:
        parsed = Parsed(page)
        ids = parsed.values("id")
        assert len(set(ids)) == len(ids)
        assert set(parsed.values("aria-controls")) <= set(ids)
        script = page.read_text(encoding="utf-8").partition("<script>")[2]
        assert set(re.findall(r'getElementById\("(\w+)"\)', script)) <= set(ids)
        assert parsed.values("src") == []
        for link in parsed.values("href"):
            assert link.removeprefix("#") in ids if link.startswith("#") else linked(page, link).is_file()
        source = page.read_text(encoding="utf-8")
        assert re.findall(r"https?:|@import", source) == []
        assert set(re.findall(r"url\(.{5}", source)) == {'url("data'}

    def test_no_event_handler_and_one_script(self, page: Path) -> None:
        parsed = Parsed(page)
        assert parsed.count("script") == 1
        assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]

    def test_every_image_and_chart_has_a_name(self, page: Path) -> None:
        pictures = [attributes for _, attributes in Parsed(page).elements if attributes.get("role") == "img"]
        assert pictures
        assert all(attributes["aria-label"] for attributes in pictures)

    def test_names_are_text(self, hostile_page: Path) -> None:
        text = "".join(Parsed(hostile_page).text)
        assert all(name in text for name in HOSTILE)
        assert "<b>run&amp;" in text

    def test_the_numbers_are_those_of_the_table(self, cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        metrics = cifarctl("evaluate", "-m", classifier_run, "--report", page, "--json").json["metrics"]
        text = "".join(Parsed(page).text)
        low, high = metrics["accuracy_ci95"]
        for shown in (f"{metrics['accuracy']:.2%}", f"{low:.2%} to {high:.2%}", f"{metrics['macro_f1']:.4f}"):
            assert shown in text

    def test_models_and_splits_are_compared(self, comparison_page: Path) -> None:
        text = "".join(Parsed(comparison_page).text)
        assert "McNemar" in text
        assert "− val" in text
        assert re.search(r"[+-]\d+\.\d\d to [+-]\d+\.\d\d points", text)
        assert Parsed(comparison_page).count("section") == 4

    def test_it_is_kept_where_a_threshold_is_missed(
        self, cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / "page.html"
        done = cifarctl("evaluate", "-m", classifier_run, "--report", page, "--fail-under", "accuracy=1.01")
        assert done.code == 3
        assert Parsed(page).count("table") == 2

    def test_where_it_cannot_be_written(self, cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
        folder = cifarctl("evaluate", "-m", classifier_run, "--report", tmp_path)
        assert (folder.code, folder.out) == (2, "")
        assert "a folder, not a file" in folder.error
        photo = tmp_path / "photo.jpg"
        photo.write_bytes(b"a photograph")
        no_page = cifarctl("evaluate", "-m", classifier_run, "--report", photo)
        assert (no_page.code, photo.read_bytes()) == (2, b"a photograph")
        assert no_page.error == f"error: --report {photo}: not a .html file"
        (tmp_path / "file").touch()
        below = cifarctl("evaluate", "-m", classifier_run, "--report", tmp_path / "file" / "page.html")
        assert below.code == 1
        assert str(tmp_path / "file") in below.error

    def test_a_damaged_history_is_named(self, cifarctl: Cifarctl, classifier_run: Path, tmp_path: Path) -> None:
        shutil.copy(classifier_run / "model.safetensors", tmp_path)
        (tmp_path / "metrics.jsonl").write_text("[1]\n")
        done = cifarctl("evaluate", "-m", tmp_path, "--report", tmp_path / "page.html")
        assert done.code == 1
        assert "metrics.jsonl: cannot be read" in done.error


class TestFilesOfImages:
    """Data whose images are files: a person wants to open, correct or remove one."""

    def test_links_lead_to_the_files_below_the_page(self, hostile_page: Path) -> None:
        links = [link for link in Parsed(hostile_page).values("href") if not link.startswith("#")]
        assert {linked(hostile_page, link) for link in links} == {*(hostile_page.parent / "test").glob("*/*.png")}

    def test_a_name_is_text_on_one_line(self, hostile_page: Path) -> None:
        text = "".join(Parsed(hostile_page).text)
        for name in (*HOSTILE_FILES[:3], r"abc\u202edef\u200f שלום.png"):
            assert name in text
        assert re.search("(long )+ … .*end.png", text)
        if sys.platform == "linux":
            assert r"caf\xe9.png" in text
        assert "#0" not in text
        assert "number in its split" not in text

    def test_a_file_elsewhere_is_named_without_a_link(self, hostile_page: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        run_here("evaluate", "-m", hostile_page.parent / "<b>run&amp;", "--report", page)
        assert "javascript:alert(4).png" in Parsed(page).text
        assert Parsed(page).values("href") == []

    def test_reconstructions_name_files_too(self, autoencoder_run: Path, image_folder: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        run_here("evaluate", "-m", autoencoder_run, "--data", image_folder, "--report", page)
        assert {*Parsed(page).text} >= {path.name for path in (image_folder / "test" / "red").iterdir()}

    def test_images_of_an_archive_have_numbers(self, classifier_page: Path) -> None:
        text = "".join(Parsed(classifier_page).text)
        assert re.search(r"#\d+", text)
        assert "# is an image's number in its split" in text

    def test_where_a_link_can_lead(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for made in ("page/pictures", "disk/more", "elsewhere"):
            (tmp_path / made).mkdir(parents=True)
        (tmp_path / "page" / "linked").symlink_to(tmp_path / "disk")
        (tmp_path / "way").symlink_to(tmp_path / "page")
        monkeypatch.chdir(tmp_path / "page")
        places: list[tuple[str | Path, str | Path, str | None]] = [
            (".", "1.png", "1.png"),
            (".", "pictures/1.png", "pictures/1.png"),
            (".", tmp_path / "page" / "pictures" / "1.png", "pictures/1.png"),
            (".", "../page/pictures/1.png", "pictures/1.png"),
            (".", "linked/more/1.png", "linked/more/1.png"),
            (".", "linked/../elsewhere/1.png", None),  # above the link's target, not in the page's folder
            (".", "../elsewhere/1.png", None),
            ("pictures", "1.png", None),
            (tmp_path / "way", "pictures/1.png", "pictures/1.png"),
            (tmp_path / "page", tmp_path / "way" / "pictures" / "1.png", "pictures/1.png"),
        ]
        for folder, path, place in places:
            assert ImageFile.seen_from(Path(folder), str(path)) == ImageFile("1.png", place), (folder, path)


class TestManyClasses:
    """Of 1,000 classes, the matrix has a million cells: too many for a page, and for eyes."""

    def test_the_page_stays_small(self, large_page: Path) -> None:
        assert large_page.stat().st_size < 2_000_000
        assert Parsed(large_page).count("td") < 10_000

    def test_the_most_frequent_mistakes_are_shown_with_their_images(self, large_section: ClassifierSection) -> None:
        matrix = torch.tensor(large_section.result["confusion_matrix"])
        mistakes = matrix.clone().fill_diagonal_(0)
        counts = [cell.count for cell in large_section.confused]
        assert large_section.cells == []
        assert large_section.first is large_section.confused[0]
        assert counts == mistakes.flatten().sort(descending=True).values[:100].tolist()
        for cell in large_section.confused:
            assert matrix[cell.row, cell.column] == cell.count == len(cell.answers)
            assert cell.total == matrix[cell.row].sum()
            assert {answer.truth for answer in cell.answers} == {cell.truth}
            assert {answer.top[0][0] for answer in cell.answers} == {cell.label}

    def test_the_worst_classes_come_first(self, large_section: ClassifierSection) -> None:
        f1 = [row.scores["f1"] for row in large_section.classes]
        measured = [value for value in f1 if value is not None]
        assert len(f1) == 1000
        assert measured == sorted(measured)
        assert f1 == [*measured, None, None]

    def test_what_a_class_is_mistaken_for(self, large_section: ClassifierSection) -> None:
        matrix = large_section.result["confusion_matrix"]
        for row in large_section.classes:
            label = int(row.scores["label"].removeprefix("class "))
            missed = {f"class {i}": n / sum(matrix[label]) for i, n in enumerate(matrix[label]) if n and i != label}
            if row.mistaken_for is None:
                assert missed == {}
            else:
                name, fraction = row.mistaken_for
                assert missed[name] == fraction == max(missed.values())

    def test_a_picture_shows_where_the_matrix_has_its_counts(self) -> None:
        counts = torch.zeros(600, 600, dtype=torch.long)
        counts[0, 0], counts[1, 0], counts[599, 2] = 4, 5, 1
        counts[599, 599] = 2
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(overview(counts.tolist()).partition(",")[2]))))
        assert pixels.shape == (300, 300, 4)
        assert {*zip(*pixels[..., 3].nonzero(), strict=True)} == {(0, 0), (299, 1), (299, 299)}
        blue, orange, part = pixels[0, 0], pixels[299, 1], pixels[299, 299]
        assert blue[2] > blue[0]
        assert orange[0] > orange[2]
        assert (blue[3], part[3]) == (255, 170)

    def test_without_a_mistake(self, tmp_path: Path) -> None:
        write_report(tmp_path / "page.html", [drawn_section(n=202, classes=101, noise=0.0)], [])
        assert "".join(Parsed(tmp_path / "page.html").text).count("None.") == 2


class TestWhatIsShown:
    @pytest.mark.parametrize(("classes", "noise"), [(10, 1.0), (100, 0.35)])
    def test_the_size_of_a_page_is_bounded(self, tmp_path: Path, classes: int, noise: float) -> None:
        section = drawn_section(classes=classes, noise=noise)
        write_report(tmp_path / "page.html", [section], [])
        # A byte a channel, in base64: noise cannot be compressed. Photographs take half, 2 KB.
        pictures = len(section.sprite.uri)
        assert pictures < 1.03 * (1200 + 48) * 3 * 32 * 32 * 4 / 3
        assert (tmp_path / "page.html").stat().st_size - pictures < 2_000_000

    def test_a_cell_shows_its_most_confident_images(self) -> None:
        cells = [cell for row in drawn_section(limit=5000).cells for cell in row]
        for cell in cells:
            assert len(cell.answers) == min(cell.count, DIAGONAL if cell.is_hit else OFF_DIAGONAL)
            confidence = [answer.top[0][1] for answer in cell.answers]
            assert confidence == sorted(confidence, reverse=True)
            assert {answer.truth for answer in cell.answers} <= {cell.truth}
            assert {answer.top[0][0] for answer in cell.answers} <= {cell.label}

    def test_the_least_typical_images_come_with_their_typicality(self, tmp_path: Path) -> None:
        typicality = torch.arange(1, 101).flipud() / 100
        section = drawn_section(n=100, typicality=typicality)
        assert [answer.number for answer in section.least_typical] == list(range(99, 75, -1))
        write_report(tmp_path / "page.html", [section], [])
        text = Parsed(tmp_path / "page.html").text
        assert "Least typical images" in text
        assert [part for part in text if part.startswith("typicality ")] == [
            f"typicality {i / 100:.4f}" for i in range(1, 25)
        ]

    def test_a_model_without_that_score_has_none(self, tmp_path: Path) -> None:
        write_report(tmp_path / "page.html", [drawn_section(n=100)], [])
        assert "ypical" not in "".join(Parsed(tmp_path / "page.html").text)

    def test_names_from_a_hostile_file_do_not_fill_the_page(self, tmp_path: Path) -> None:
        section = drawn_section(n=100, name="x" * 1_000_000)
        write_report(tmp_path / "page.html", [section], [])
        assert (tmp_path / "page.html").stat().st_size < 2_000_000
        assert "xxx … xxx" in "".join(Parsed(tmp_path / "page.html").text)

    def test_where_there_is_no_room_for_all_every_cell_gets_some(self) -> None:
        cells = [cell for row in drawn_section(limit=300).cells for cell in row if cell.count]
        assert sum(len(cell.answers) for cell in cells) == 300
        assert min(len(cell.answers) for cell in cells) >= 1

    def test_without_a_mistake(self, tmp_path: Path) -> None:
        section = drawn_section(n=30, classes=3, noise=0.0)
        assert section.mistakes == []
        assert section.first.is_hit
        write_report(tmp_path / "page.html", [section], [])
        assert "None." in "".join(Parsed(tmp_path / "page.html").text)

    def test_a_name_that_is_no_utf_8(self, tmp_path: Path) -> None:
        section = replace(drawn_section(n=30, classes=3), name=os.fsdecode(b"caf\xe9"))
        write_report(tmp_path / "page.html", [section], [])
        assert r"caf\xe9" in "".join(Parsed(tmp_path / "page.html").text)

    def test_the_sheet_holds_the_images_to_the_bit(self) -> None:
        images = torch.randint(0, 256, (45, 3, 32, 32), dtype=torch.uint8)
        sheet = Sprite.pack(images)
        assert (sheet.columns, sheet.rows) == (40, 2)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))))
        for i in (0, 39, 40, 44):
            place = Thumb.at(i, "")
            found = pixels[32 * place.row :, 32 * place.column :][:32, :32]
            assert (found == images[i].permute(1, 2, 0).numpy()).all()

    @pytest.mark.parametrize(
        ("axis", "ticks"),
        [
            (Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
            (Axis("", 0.5, 9.5, whole=True), [2, 4, 6, 8]),
            (Axis("", 1, 2, whole=True), [1, 2]),
            (Axis("", 0.02, 30, log=True), [0.1, 1, 10]),
            (Axis("", 90, 550, log=True), [100, 200, 500]),
        ],
    )
    def test_ticks_are_round_numbers(self, axis: Axis, ticks: list[float]) -> None:
        assert axis.ticks() == pytest.approx(ticks)

    def test_a_single_epoch_makes_no_curve(self) -> None:
        record: Record = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
        assert learning_curves([record], "classifier") == []
        assert len(learning_curves([record, {**record, "epoch": 2}], "classifier")) == 2
        assert learning_curves([record, {**record, "epoch": 2, "val_loss": math.nan}], "classifier") == []


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with launched_browser() as browser:
        yield browser


@pytest.mark.needs("browser")
class TestInABrowser:
    @pytest.fixture
    def open_page(self, browser: "Browser") -> "Iterator[Callable[..., Page]]":
        """Open a file; whatever it complains about or asks the network for fails the test."""
        complaints: list[str] = []
        contexts = []

        def open_page(path: Path, width: int = 1400, height: int = 1000) -> "Page":
            context = browser.new_context(viewport={"width": width, "height": height})
            contexts.append(context)
            page = context.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.on("request", lambda request: complaints.append(request.url) if opened(request.url) else None)
            page.goto(path.as_uri())
            return page

        def opened(url: str) -> bool:
            return not url.startswith(("file:", "data:"))

        yield open_page
        for context in contexts:
            context.close()
        assert complaints == []

    @pytest.mark.parametrize("kind", ["classifier", "autoencoder", "comparison", "hostile", "large"])
    @pytest.mark.parametrize("width", [1400, 390])
    def test_it_fits_the_window(
        self, open_page: "Callable[..., Page]", request: pytest.FixtureRequest, kind: str, width: int
    ) -> None:
        page = open_page(request.getfixturevalue(f"{kind}_page"), width, 844)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.scrollHeight") > 844

    def test_headings_sort_the_classes(self, open_page: "Callable[..., Page]", classifier_page: Path) -> None:
        page = open_page(classifier_page)
        rows = page.locator("table.list tbody tr")

        def recall() -> list[float]:
            return [float(text) for text in rows.locator("td:nth-child(3)").all_text_contents()]

        heading = page.get_by_role("columnheader", name="recall")
        before = recall()
        assert heading.get_attribute("aria-sort") == "none"
        heading.get_by_role("button").click()
        assert (recall(), heading.get_attribute("aria-sort")) == (sorted(before, reverse=True), "descending")
        heading.get_by_role("button").press("Enter")
        assert (recall(), heading.get_attribute("aria-sort")) == (sorted(before), "ascending")
        page.get_by_role("columnheader", name="class", exact=True).get_by_role("button").click()
        names = rows.locator("th").all_text_contents()
        assert names == sorted(names)
        assert heading.get_attribute("aria-sort") == "none"

    def test_a_cell_shows_its_images(self, open_page: "Callable[..., Page]", classifier_page: Path) -> None:
        page = open_page(classifier_page)
        shown = page.locator(".images > div:not([hidden])")
        assert shown.count() == 1
        cell = page.locator(".matrix tbody tr").nth(2).locator("td.hit button")
        cell.click()
        assert cell.get_attribute("aria-pressed") == "true"
        assert page.locator(".matrix button[aria-pressed=true]").count() == 1
        assert shown.count() == 1
        heading = shown.locator("h4").inner_text()
        label = cell.get_attribute("aria-label")
        assert label is not None
        assert heading.startswith(label)
        cards = shown.locator(".card")
        assert cards.count() == min(int(cell.inner_text()), DIAGONAL)
        truth = page.locator(".matrix tbody tr").nth(2).locator("th").inner_text()
        assert set(cards.locator("figcaption b").all_text_contents()) == {truth}
        assert set(cards.locator("li:first-child span:first-child").all_text_contents()) == {truth}

    def test_a_mistake_among_many_classes_shows_its_images(
        self, open_page: "Callable[..., Page]", large_page: Path
    ) -> None:
        page = open_page(large_page)
        assert page.locator(".overview img").evaluate("image => image.naturalWidth") == 500
        row = page.locator(".choice tbody tr").nth(5)
        row.get_by_role("button").press("Enter")
        assert page.locator(".choice [aria-pressed=true]").count() == 1
        cards = page.locator(".images > div:not([hidden]) .card")
        assert cards.count() == int(row.locator("td").nth(1).inner_text())
        assert set(cards.locator("figcaption b").all_text_contents()) == {row.locator("th").inner_text()}

    def test_links_open_the_images(self, open_page: "Callable[..., Page]", hostile_page: Path) -> None:
        page = open_page(hostile_page)
        links = page.locator(".card a").evaluate_all("links => links.map((link) => link.href)")
        assert len(set(links)) == len(HOSTILE) * len(HOSTILE_FILES)
        for link in sorted({*links})[: len(HOSTILE_FILES)]:
            page.goto(link)
            assert page.evaluate("[document.contentType, document.images[0].naturalWidth]") == ["image/png", 32]

    def test_the_keyboard_does_what_the_mouse_does(
        self, open_page: "Callable[..., Page]", classifier_page: Path
    ) -> None:
        page = open_page(classifier_page)
        tip = page.locator("#tip")
        assert not tip.is_visible()
        page.locator(".matrix tbody tr").nth(0).locator("td.hit button").focus()
        for key in ("ArrowDown", "ArrowRight", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
            label = page.evaluate("document.activeElement.getAttribute('aria-label')")
            assert tip.inner_text() == label
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert page.locator(".matrix button[tabindex='0']").count() == 1
        page.keyboard.press("Escape")
        assert not tip.is_visible()

    def test_hovering_a_cell_says_what_it_counts(self, open_page: "Callable[..., Page]", classifier_page: Path) -> None:
        page = open_page(classifier_page)
        cell = page.locator(".matrix td button").first
        cell.hover()
        assert page.locator("#tip").inner_text() == cell.get_attribute("aria-label")
        page.mouse.move(0, 0)
        assert not page.locator("#tip").is_visible()

    def test_images_are_drawn_from_the_one_sheet(self, open_page: "Callable[..., Page]", classifier_page: Path) -> None:
        page = open_page(classifier_page)
        thumb = page.locator(".thumb:visible").first
        thumb.scroll_into_view_if_needed()
        pixels = Image.open(io.BytesIO(thumb.screenshot())).convert("RGB")
        assert 64 <= min(pixels.size) <= max(pixels.size) <= 65  # half a pixel may be in it
        colours = pixels.getcolors(65 * 65)
        assert colours is not None
        assert len(colours) > 20  # a picture, not a plain background

    def test_learning_curves_and_calibration_are_there(
        self, open_page: "Callable[..., Page]", classifier_page: Path, autoencoder_page: Path
    ) -> None:
        page = open_page(classifier_page)
        for name in ("Accuracy by confidence", "Loss by epoch", "Validation accuracy by epoch"):
            box = page.get_by_role("img", name=name).bounding_box()
            assert box is not None
            assert box["height"] > 100
        page = open_page(autoencoder_page)
        for name in ("Images by their PSNR", "PSNR by bytes", "Validation PSNR by epoch"):
            box = page.get_by_role("img", name=name).bounding_box()
            assert box is not None
            assert box["height"] > 100
