"""Pictures as people have them: each layout of files gives the same data set."""

from pathlib import Path

from test_folders import make_folder

from cifarctl.data import Source


class TestNamesOfFiles:
    def test_each_image_keeps_its_file_through_splits_limits_and_subsets(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        source = Source(str(root), limit=7)
        every = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
        seen = set[str]()
        for split in ("train", "val", "test"):
            images = source.load(split)
            assert images.paths is not None
            assert len(images.paths) == len(images)
            names = [Path(path).relative_to(root).parts for path in images.paths]
            assert [images.classes[label] for label in images.labels] == [name[1] for name in names]
            assert {name[0] for name in names} == {"test" if split == "test" else "train"}
            seen |= {"/".join(name) for name in names}
        assert seen <= every
        assert len(seen) == 7 + 2 + 6

    def test_images_without_files_have_none(self) -> None:
        assert Source("synthetic").load("val").paths is None
