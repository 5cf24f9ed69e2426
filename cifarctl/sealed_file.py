"""A safetensors file with its own SHA-256 in it, so that no flipped bit and no missing byte goes unnoticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cifarctl.files import atomic_path, move_file

_FIELD = "sha256"
_ZEROS = b"0" * 64


def save_sealed(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keep_as: Path | None = None
) -> None:
    """Replace `path`, atomically, and keep what was there as `keep_as`, if that is given. The metadata gets a field
    `sha256`: the digest of the whole file with 64 zeros in that place.

    It takes 0.25 s for 400 MB, on a CPU with SHA instructions. Raises OSError.
    """
    content = save(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        {**metadata, _FIELD: _ZEROS.decode()},
    )
    before, after = _around(content, _ZEROS)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            for part in (before, _digest(before, after), after):
                file.write(part)
        if keep_as and path.exists():
            move_file(path, keep_as)


def load_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """The tensors, the metadata, and whether the file has a digest. Raises OSError, and ValueError if the file is
    damaged, with the reason.
    """
    content = path.read_bytes()  # not mapped: a mapped file that is cut short ends the process
    try:
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        metadata = {str(name): str(value) for name, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("its header cannot be read") from None
    digest = metadata.pop(_FIELD, None)
    if digest is not None:
        try:
            is_whole = _digest(*_around(content, digest.encode())) == digest.encode()
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError("its contents do not match its SHA-256")
    try:
        return load(content), metadata, digest is not None
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _around(content: bytes, digest: bytes) -> tuple[memoryview, memoryview]:
    """What comes before the digest and after it. Raises ValueError if it is not in the header."""
    end = 8 + int.from_bytes(content[:8], "little")
    # Quotes inside other fields are escaped, so that nothing else can look like it.
    at = content.index(b'"%s":"%s"' % (_FIELD.encode(), digest), 8, end) + len(_FIELD) + 4
    view = memoryview(content)
    return view[:at], view[at + len(_ZEROS) :]


def _digest(before: memoryview, after: memoryview) -> bytes:
    sha256 = hashlib.sha256(before)
    for part in (_ZEROS, after):
        sha256.update(part)
    return sha256.hexdigest().encode()
