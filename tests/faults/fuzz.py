"""Coverage-guided fuzzing of a reader of files: mutations that reach new code are kept and mutated further.

    pip install atheris
    python tests/faults/fuzz.py weights|images|pickles [-max_total_time=1200] [-seed=0] [CORPUS_FOLDER]

The options are libFuzzer's. It stops at the first input that ends otherwise than in an error line or a right answer, or
that takes more than 5 s or 1 GiB, and writes that input to a file named crash-…, timeout-… or oom-….
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["cifarctl", "PIL", "safetensors"]):
    import mutated_files

    from cifarctl.data.batch_pickle import read_batch
    from cifarctl.errors import DataError

from py2_pickle import batch


def main() -> None:
    reader, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "input")
        load: Callable[[Path], str] | None
        match reader:
            case "weights":
                seeds, load = mutated_files.honest_weights(Path(folder)), mutated_files.load_weights
            case "images":
                seeds, load = mutated_files.honest_images(), mutated_files.load_image
            case "pickles":
                pixels = np.zeros((2, 3, 32, 32), np.uint8)
                seeds, load = [batch(pixels, [0, 1], "training batch 1 of 5")], None
            case _:
                sys.exit(__doc__)

        def one(data: bytes) -> None:
            if load is None:
                with contextlib.suppress(DataError):
                    assert type(read_batch(data)) is dict
                return
            path.write_bytes(data)
            ended = mutated_files.outcome(load, path)
            assert ended in ("answered", "WeightsError", "ImageError"), ended

        corpus = Path(folder, "seeds")
        corpus.mkdir()
        for i, seed in enumerate(seeds):
            (corpus / str(i)).write_bytes(seed)
        own = [argument for argument in arguments if not argument.startswith("-")]
        options = [argument for argument in arguments if argument.startswith("-")]
        largest = max(map(len, seeds)) * 2
        limits = ["-timeout=5", "-rss_limit_mb=1024", f"-max_len={largest}"]
        atheris.Setup([sys.argv[0], *limits, *options, *own, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
