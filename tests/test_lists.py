"""Lists of labels beside folders: which split and class an image is of is known, or asked."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_folders import make_folder, picture

import cifarctl as library
from cifarctl.data import Source, Split
from cifarctl.data.contents import SPLITS
from cifarctl.errors import DataError
from cifarctl.files import to_json

from support import Cifarctl

Row = tuple[str, str, str]


def write_list(path: Path, rows: Sequence[Sequence[str]], header: str = "path,label") -> Path:
    path.write_text("\n".join([header, *map(",".join, rows)]), encoding="utf-8")
    return path


def names(source: Source, split: Split) -> set[str]:
    return {Path(path).relative_to(source.name).as_posix() for path in source.load(split).paths or ()}


@pytest.fixture
def kaggle(tmp_path: Path) -> tuple[Path, list[Row]]:
    """DIR/train/*.png and DIR/test/*.png, with the rows of a list that names the splits."""
    rows = []
    for i in range(20):
        folder = "test" if i >= 14 else "train"
        rows.append((f"{folder}/{i}.png", "ab"[i % 2], "val" if i < 4 else folder))
        picture(tmp_path / rows[-1][0], i)
    return tmp_path, rows


class TestSplitsOfAListBesideFolders:
    @pytest.mark.parametrize("name", ["labels.csv", "trainLabels.csv"])
    def test_are_those_of_its_column(self, kaggle: tuple[Path, list[Row]], name: str) -> None:
        root, rows = kaggle
        path = write_list(root / name, rows, "path,label,split")
        source, alone = Source(str(root)), Source(str(path))
        assert source.check() == alone.check() == ()
        for split in SPLITS:
            assert source.load(split).paths == alone.load(split).paths
            assert names(source, split) == {row[0] for row in rows if row[2] == split}
        write_list(path, [(Path(row[0]).name, *row[1:]) for row in rows], "path,label,split")
        assert Source(str(root)).load("test").paths == source.load("test").paths

    def test_are_those_of_the_folders_without_a_column(self, kaggle: tuple[Path, list[Row]]) -> None:
        root, rows = kaggle
        path = write_list(root / "labels.csv", [row[:2] for row in rows])
        source = Source(str(root))
        assert source.check() == ()
        assert names(source, "test") == {row[0] for row in rows if row[2] == "test"}
        assert {name.split("/")[0] for split in SPLITS[:2] for name in names(source, split)} == {"train"}
        remark = f"{path}: no column split, so the images in test and train are taken together"
        assert Source(str(path)).check() == (remark,)

    def test_images_that_it_does_not_list_are_counted_by_folder(self, kaggle: tuple[Path, list[Row]]) -> None:
        root, rows = kaggle
        write_list(root / "labels.csv", [*(row[:2] for row in rows[1:14]), *(row[:2] for row in rows[15:])])
        assert Source(str(root)).check() == (
            f"{root / 'test'}: 1 image that labels.csv does not list ignored, for example 14.png",
            f"{root / 'train'}: 1 image that labels.csv does not list ignored, for example 0.png",
        )

    @pytest.mark.parametrize(
        ("name", "header", "columns", "says"),
        [
            ("labels.csv", "path,label,split", ("train",), "column split says train"),
            ("trainLabels.csv", "path,label", (), "name of the list says train"),
        ],
    )
    def test_that_contradict_a_folder_are_refused(
        self, kaggle: tuple[Path, list[Row]], name: str, header: str, columns: tuple[str, ...], says: str
    ) -> None:
        root, rows = kaggle
        write_list(root / name, [(*row[:2], *columns) for row in rows], header)
        with pytest.raises(DataError, match=rf"{name}, line 16: test/14.png lies in test, but the {says}"):
            Source(str(root)).check()

    def test_folders_in_folders_are_listed_too(self, kaggle: tuple[Path, list[Row]]) -> None:
        root, rows = kaggle
        (root / "test").rename(root / "all")
        (root / "test").mkdir()
        (root / "all").rename(root / "test" / "all")
        own = root / "train" / "runs" / "train-clf-1"
        own.mkdir(parents=True)
        (own / "config.json").write_text(to_json({"options": {}, "recipe": {}}))
        write_list(root / "labels.csv", [(row[0].replace("test/", "test/all/"), row[1]) for row in rows])
        source = Source(str(root))
        assert (source.check(), len(source.load("test"))) == ((), 6)

    def test_an_image_in_two_lists_is_refused(self, kaggle: tuple[Path, list[Row]]) -> None:
        root, rows = kaggle
        every = write_list(root / "labels.csv", [row[:2] for row in rows])
        one = write_list(root / "testLabels.csv", [rows[-1][:2]])
        with pytest.raises(DataError) as caught:
            Source(str(root)).check()
        assert str(caught.value) == f"{every}, line 21: test/19.png is in {one}, line 2 too"


class TestAListBesideFoldersOfAnotherMeaning:
    @pytest.mark.parametrize(
        ("folder", "data", "name"),
        [("train", "", "trainLabels.csv"), ("train", "train", "train.csv"), ("", "", "labels.csv")],
    )
    @pytest.mark.parametrize("is_by_stem", [True, False])
    def test_is_asked_for(self, tmp_path: Path, folder: str, data: str, name: str, *, is_by_stem: bool) -> None:
        files = [tmp_path / folder / f"part{1 + i // 6}" / f"{i}.png" for i in range(12)]
        for i, file in enumerate(files):
            picture(file, i)
        rows = [
            (f.stem if is_by_stem else f.relative_to(tmp_path).as_posix(), "ab"[i % 2]) for i, f in enumerate(files)
        ]
        path = write_list(tmp_path / name, rows)
        with pytest.raises(DataError) as caught:
            Source(str(tmp_path / data)).check()
        assert str(caught.value) == (
            f"{path}, line 3: {rows[1][0]} is 'b', and it lies in the folder part1: which says the classes, the list "
            "or the folders?"
        )
        assert caught.value.hint == (f"`data` {path} takes the list; move it elsewhere to take the folders as classes")
        if not is_by_stem:
            assert library.inspect_data(path).classes == ("a", "b")

    def test_goes_on_if_it_says_the_same_by_any_names(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "data", {"cat": 5, "dog": 5}, {"cat": 1, "dog": 1})
        files = sorted(root.rglob("*.png"))
        for labels in (("cat", "dog"), ("0", "1")):
            rows = [(f.relative_to(root).as_posix(), labels[f.parent.name == "dog"]) for f in files]
            path = write_list(root / "labels.csv", rows)
            source = Source(str(root))
            assert source.check() == (f"{path}: not used, since the folders say the same classes",)
            assert source.known_classes == ("cat", "dog")

    def test_goes_on_if_it_is_about_something_else(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "data", {"cat": 5, "dog": 5}, {"cat": 1, "dog": 1})
        write_list(root / "labels.csv", [("0", "cat"), ("1", "dog")], "ClassId,Name")
        assert Source(str(root)).check() == ()
        path = write_list(root / "labels.csv", [("0", "Katze"), ("1", "Hund")], "id,label")
        remark = f"{path}: not used, since it names no image in the folders of classes"
        assert Source(str(root)).check() == (remark,)

    def test_goes_on_if_it_cannot_be_read(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "data", {"cat": 5, "dog": 5}, {"cat": 1, "dog": 1})
        for name in ("train.csv", "data.csv"):
            (tmp_path / name).write_bytes(b"path,label\n\xff,\n")
        assert Source(str(root)).check() == ()
        (root / "train.csv").write_bytes(b"path,label\n\xff,\n")
        remark = f"{root / 'train.csv'}: not UTF-8: not used, and not compared with the folders' classes"
        assert Source(str(root)).check() == (remark,)


class TestAbsolutePaths:
    """A list means the same, however its own path was typed."""

    @pytest.fixture
    def absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        files = [tmp_path / "D" / f"{i}.png" for i in range(12)]
        for i, file in enumerate(files):
            picture(file, i)
        return write_list(tmp_path / "list.csv", [(str(file), "ab"[i % 2]) for i, file in enumerate(files)])

    def test_it_is_the_same_data_set(self, absolute: Path) -> None:
        descriptions = [Source(name).describe() for name in (str(absolute), "list.csv", "D/../list.csv")]
        for before in descriptions:
            for name in (str(absolute), "list.csv", "D/../list.csv"):
                assert Source(name).changes(before, "test") == []

    def test_what_earlier_versions_noted_is_accepted(self, absolute: Path, tmp_path: Path) -> None:
        files = sorted((tmp_path / "D").iterdir(), key=lambda file: (int(file.stem) % 2, file))
        text = "".join(f"{file.stat().st_size} {file.as_posix()}\0" for file in files) + "a\0" * 6 + "b\0" * 6
        then = {"count": 12, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        name = f"{tmp_path}/D/../list.csv"
        description = {"name": name, "classes": ["a", "b"], "files": {"all": then}}
        assert Source(name).changes(description, "test") == []
        picture(tmp_path / "D" / "12.png")
        write_list(absolute, [(str(tmp_path / "D" / f"{i}.png"), "ab"[i % 2]) for i in range(1, 13)])
        changes = ["of the 12 images in all, some have other names or sizes, or another order"]
        assert Source(name).changes(description, "test") == changes

    def test_an_image_twice_is_noticed(self, absolute: Path, tmp_path: Path) -> None:
        write_list(absolute, [(str(tmp_path / "D" / "0.png"), "a"), ("D/0.png", "b"), ("D/1.png", "b")])
        for name in (str(absolute), "list.csv", os.path.join("D", "..", "list.csv")):  # noqa: PTH118
            with pytest.raises(DataError, match=r"line 3: D/0\.png is in line 2 too"):
                Source(name).check()


class TestOwnRuns:
    """`cd DIR; cifarctl train-clf --data .` writes into the data."""

    def test_are_no_class_and_no_images(self, tmp_path: Path) -> None:
        for name in ("ant", "bee"):
            for i in range(5):
                picture(tmp_path / name / f"{i}.png", i)
        before = Source(str(tmp_path)).describe()
        for run in ("runs/train-clf-1", "sweeps/first/lr=1", "ant/runs/train-clf-2"):
            picture(tmp_path / run / "curves.png")
            (tmp_path / run / "config.json").write_text(to_json({"options": {}, "recipe": {}}))
        source = Source(str(tmp_path))
        assert source.check()[1:] == (
            f"{tmp_path}: ant/runs/train-clf-2, runs, sweeps left out: cifarctl's own runs, no images of a class",
        )
        assert source.describe() == before

    def test_a_folder_of_pictures_is_no_place_for_a_run(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        for name in ("ant", "bee"):
            for i in range(5):
                picture(tmp_path / name / f"{i}.png", i)
        out = tmp_path / "ant"
        done = cifarctl("train-clf", "--data", tmp_path, "--out", out)
        assert (done.code, done.error) == (2, f"error: --out {out}: it has pictures of --data {tmp_path}")
        assert len(list(out.iterdir())) == 5

    def test_a_class_that_has_another_programs_configuration_stays(self, tmp_path: Path) -> None:
        for name in ("ant", "bee", "runs"):
            picture(tmp_path / name / "1.png")
            (tmp_path / name / "config.json").write_text('{"options": {}}')
        assert Source(str(tmp_path)).known_classes == ("ant", "bee", "runs")
