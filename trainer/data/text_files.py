"""Files as text: UTF-8 with or without BOM, also gzipped. Whatever the bytes, the result is text or an InputError."""

from __future__ import annotations

import stat
import zlib
from pathlib import Path

from trainer.errors import InputError

# A gzip file may expand to 256 MiB, or to 100 times its size (tickets reach about 10); beyond that it is a bomb.
GZIP_MAX_RATIO = 100
GZIP_ALWAYS_BYTES = 256 * 2**20
# Bytes inflated at a time: at most 4 MiB come out, and files of many tiny members stay linear.
GZIP_CHUNK_BYTES = 4096


def read_text(path: Path) -> str:
    """The text of a file, expanded where its name ends in .gz.

    Raises InputError: the file is empty or not UTF-8, or a damaged or over-expanding gzip.
    """
    source = str(path)
    data = _read_bytes(path, source)
    return _decode(_expand(data, source) if path.name.lower().endswith(".gz") else data, source)


def require_file(path: Path) -> None:
    """Raises InputError unless there is a regular file: a pipe or a device may never end."""
    source = str(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{source}: file not found: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{source}: cannot be found ({getattr(error, 'strerror', error)}): check the path") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a folder: name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{source}: is not a regular file: copy its content into one")


def _read_bytes(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}): check its permissions and the disk") from None


def _expand(data: bytes, source: str) -> bytes:
    """Gunzip all members of `data` within the bound on the expanded size."""
    limit = max(GZIP_ALWAYS_BYTES, GZIP_MAX_RATIO * len(data))
    expanded, position = bytearray(), 0
    try:
        while position < len(data):
            member = zlib.decompressobj(wbits=31)  # 31: gzip header and checksum
            while not member.eof:
                chunk = data[position : position + GZIP_CHUNK_BYTES]
                if not chunk:
                    raise InputError(f"{source}: the gzip data ends too early: copy or compress the file again")
                expanded += member.decompress(chunk)
                position += len(chunk) - len(member.unused_data)
                if len(expanded) > limit:
                    raise InputError(
                        f"{source}: expands to more than {limit} bytes from {len(data)}: give it uncompressed"
                    )
    except zlib.error as error:
        raise InputError(f"{source}: the gzip data is damaged ({error}): copy or compress the file again") from None
    return bytes(expanded)


def _decode(data: bytes, source: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2]:
        raise InputError(f"{source}: is UTF-16, not UTF-8: save it as UTF-8")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}: is not UTF-8 at byte {error.start} (line {line}): save it as UTF-8") from None
    if not text or text.isspace():
        raise InputError(f"{source}: is empty: add rows")
    return text
