"""Bytes of a file, also gzipped, and what they say as text: UTF-8, UTF-16 or cp1252, told by the bytes themselves.

Whatever the bytes, the result is text or an InputError, in linear time.
"""

from __future__ import annotations

import codecs
import re
import stat
import zlib
from pathlib import Path

from trainer.errors import InputError

# A compressed file may expand to 256 MiB, or to 100 times its size (tickets reach about 10); beyond that it is a bomb.
EXPANSION_MAX_RATIO = 100
EXPANSION_ALWAYS_BYTES = 256 * 2**20
# Bytes inflated at a time: at most 4 MiB come out, and files of many tiny members stay linear.
GZIP_CHUNK_BYTES = 4096
GZIP_MAGIC = b"\x1f\x8b"
# UTF-16 without a mark: zeros stand in the high bytes alone, in at least this share of them (a comma now and then
# among Cyrillic letters); looked for in so many bytes.
UTF16_ZEROS = 0.04  # and more than two, which a spoilt UTF-8 file may have
UTF16_BYTES = 8192
# Western text has an accented letter among ten; other alphabets in one byte a letter have nothing else.
CP1252_LETTERS = 1 / 3


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file, expanded where it is gzipped.

    Raises InputError: no such file, not regular or not readable; damaged or over-expanding gzip.
    """
    source = str(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{source}: file not found: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{source}: cannot be found ({getattr(error, 'strerror', error)}): check the path") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a folder, and none of a dataset: name a file in it")
    if not stat.S_ISREG(mode):  # a pipe or a device may never end
        raise InputError(f"{source}: is not a regular file: copy its content into one")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}): check its permissions and the disk") from None
    return _expand(data, source) if path.name.lower().endswith(".gz") or data.startswith(GZIP_MAGIC) else data


def check_expansion(source: str, expanded: int, size: int) -> None:
    """Raises InputError where `size` bytes expand to more than they may."""
    if expanded > (limit := max(EXPANSION_ALWAYS_BYTES, EXPANSION_MAX_RATIO * size)):
        raise InputError(f"{source}: expands to more than {limit} bytes from {size}: give it uncompressed, as CSV")


def _expand(data: bytes, source: str) -> bytes:
    """Gunzip all members of `data` within the bound on the expanded size."""
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
                check_expansion(source, len(expanded), len(data))
    except zlib.error as error:
        raise InputError(f"{source}: the gzip data is damaged ({error}): copy or compress the file again") from None
    return bytes(expanded)


def decode(data: bytes, source: str, named: str = "", is_json: bool = False) -> tuple[str, str]:
    """The text of `data` and its encoding, for which see `guess_encoding`.

    Raises InputError: empty, not in that encoding, or in none that can be told; none that is called as `named`.
    """
    try:
        " ".encode(named or "utf-8")
    except LookupError:
        raise InputError(
            f"{source}: unknown encoding {named!r}: use one that Python knows, as utf-8 or cp1252"
        ) from None
    encoding = guess_encoding(data, source, named, is_json)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        place = f"byte {start} (line {_line(data, start)})"
        raise InputError(f"{source}: is not {encoding} at {place}: save it as UTF-8, or name its encoding") from None
    if not text or text.isspace():
        raise InputError(f"{source}: is empty: add rows")
    return text, encoding


def guess_encoding(data: bytes, source: str, named: str = "", is_json: bool = False) -> str:
    """The encoding of `data`: by its mark, as `named`, by zeros for UTF-16, UTF-8 where that fits, else cp1252.

    One name is given for all files of a command. JSON is UTF-8 by its standard, so that the name counts only for what
    is not.

    Raises InputError for UTF-8 with damaged places, and for bytes that are no western text.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if named and not (is_json or data.startswith(codecs.BOM_UTF8)):
        return named
    sample = data[:UTF16_BYTES]
    zeros = [sample[side::2].count(0) for side in (0, 1)]
    if min(zeros) == 0 and max(zeros) > max(2, UTF16_ZEROS * len(sample) / 2):
        return "utf-16-be" if zeros[0] else "utf-16-le"
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError as error:
        if named:
            return named
        _check_cp1252(data, source, error.start)
        return "cp1252"


def _check_cp1252(data: bytes, source: str, start: int) -> None:
    """Raises InputError where bytes that are no UTF-8 (first at `start`) are not cp1252 either."""
    place, fix = f"byte {start} (line {_line(data, start)})", "set data.encoding"
    high = [character for character in data.decode("utf-8", "replace") if character > "\x7f"]
    if 2 * high.count("\ufffd") < len(high):  # most of what is not ASCII is sound UTF-8
        raise InputError(f"{source}: is not UTF-8 at {place}: mend it there, or {fix} to its own")
    letters = len(re.findall(rb"[A-Za-z\x80-\xff]", data))
    if len(re.findall(rb"[\x80-\xff]", data)) > CP1252_LETTERS * letters:
        raise InputError(
            f"{source}: is not UTF-8 at {place}, and no western text: {fix} to cp1251, shift_jis or another"
        )


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1
