"""Damaged and hostile batch pickles, drawn from a seed."""

from collections.abc import Iterator

import numpy as np

from py2_pickle import attack

# What a general unpickler could be led to do, and every kind of value and container.
_SPLICES = (
    b"cos\nsystem\n(S'touch %s'\ntR",
    b"cposix\nsystem\n(U\x08touch %sttR",
    b"c__builtin__\neval\n(S'1'\ntR",
    b"cbuiltins\nexec\nU\x01x\x85R",
    b"(S'touch %s'\nios\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
    b"cnumpy\nndarray\n)\x81",
    b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R",
    b"\x8c\x02os\x8c\x06system\x93",
    *(
        bytes([code])
        for code in b"(.]})NRabceqhjrstu012QPFGILSVXl\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8d\x95"
    ),
    b"h\x00",
    b"h\x01e",
    b"]q\x01h\x01a",
    b"(" * 50,
    b")\x85" * 50,
    b"T\xff\xff\xff\x7f",
    b"T\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
)


def mutate(data: bytes, marker: str, seed: int, count: int) -> Iterator[bytes]:
    """`count` variants of the batch file `data`; a general unpickler would create the file `marker` on many of them.

    A quarter each: flipped bits, truncations and repeats, spliced opcodes, and calls of os.system.
    """
    rng = np.random.default_rng(seed)
    # Nearly all of the file is pixels. Half of the damage goes to the few hundred bytes that are opcodes.
    pixels = data.rindex(b"T")

    def place() -> int:
        return int(rng.integers(len(data)) if rng.random() < 0.5 else rng.integers(pixels + 5))

    for i in range(count):
        mutated = bytearray(data)
        if i % 4 == 0:
            for _ in range(rng.integers(1, 8)):
                mutated[place()] ^= 1 << int(rng.integers(8))
        elif i % 4 == 1:
            first, last = sorted((place(), place()))
            if rng.random() < 0.5:
                del mutated[first:]
            else:  # in the middle
                mutated[last:last] = mutated[first : min(last, first + 200)]
        elif i % 4 == 2:
            for _ in range(rng.integers(1, 4)):
                splice = _SPLICES[rng.integers(len(_SPLICES))]
                at = place()
                mutated[at:at] = splice.replace(b"%s", marker.encode())
        else:
            call = attack(f"touch {marker}", protocol=int(rng.integers(6)))
            if rng.random() < 0.5:
                mutated = bytearray(call)
            else:
                at = place()
                mutated[at:at] = call[2:-1]
        yield bytes(mutated)


def bombs(size: int) -> Iterator[bytes]:
    """Files of `size` bytes that ask for much more memory than that, or for deep recursion."""
    start = b"\x80\x02"

    def fill(head: bytes, piece: bytes, tail: bytes = b".") -> bytes:
        return start + head + piece * ((size - len(head) - len(tail) - 2) // len(piece)) + tail

    yield fill(b"", b"]")
    yield fill(b"", b"}")
    yield fill(b"", b"(")
    yield fill(b")", b"\x85")
    yield fill(b"(", b")", b"t.")
    yield fill(b"]q\x00", b"h\x00a")
    yield fill(b"]q\x00", b"(h\x00h\x00h\x00h\x00e")
    yield fill(b"]q\x00K\x01a", b"(h\x00h\x00e")
    yield fill(b"}q\x00", b"U\x01ah\x00s")
    text = (size // 2).to_bytes(4, "little")
    yield start + b"]T" + text + b"x" * (size // 2) + b"q\x00" + b"h\x00a" * (size // 6) + b"."
    yield start + b"}(U\x01aT" + text + b"x" * (size // 2) + b"q\x00" + b"U\x01bh\x00" * (size // 10) + b"u."
    yield start + b"]" + b"".join(b"Kxr" + i.to_bytes(4, "little") for i in range(size // 7)) + b"."
    yield start + b"]" + b"M\xff\xff" * (size // 3) + b"."
