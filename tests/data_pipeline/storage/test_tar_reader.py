import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from data_pipeline.storage.tar_reader import (
    LONGEST_HEADERS,
    Damaged,
    Member,
    Tar,
    key_and_extension,
    printable,
)
from isotorus.errors import UserError
from tests.data_pipeline.tar_makers import LONG_NAMES, MAKERS, parse

FILES = {"a.jpg": b"x" * 700, "deep/b.c/d.png": b"y" * 512, "ünï çödé/图.cls": b"3", "e.json": b""}
LONG = {"n" * 90 + "/" + "m" * 160 + ".jpg": b"z" * 1025, "o" * 99 + ".png": b"1", "p" * 100 + ".png": b"2"}


def read(data: bytes) -> tuple[dict[str, tuple[Member, bytes]], Tar]:
    tar = Tar(io.BytesIO(data), len(data))
    return {member.name: (member, tar.read()) for member in tar}, tar


def damage(data: bytes) -> str:
    with pytest.raises(Damaged) as caught:
        read(data)
    return str(caught.value)


def rechecked(data: bytearray, at: int = 0) -> bytes:
    """Return the tar with the right checksum of the header at a byte."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    """Member a.jpg at 0 (content to 1212, next header at 1536), then b.cls; the end marker at 2560."""
    MAKERS["python-gnu"](tmp_path / "plain.tar", {"a.jpg": b"x" * 700, "b.cls": b"1"})
    return (tmp_path / "plain.tar").read_bytes()


@pytest.mark.parametrize("maker", MAKERS)
def test_every_dialect_as_an_independent_parser_reads_it(maker: str, tmp_path: Path) -> None:
    files = FILES | LONG if maker in LONG_NAMES else FILES
    if maker == "shard-writer":
        files = {name.replace("b.c/", ""): content for name, content in files.items()}
    MAKERS[maker](tmp_path / "x.tar", files)
    data = (tmp_path / "x.tar").read_bytes()
    members, tar = read(data)
    assert {name: content for name, (_, content) in members.items()} == files
    assert {name: (m.offset, content) for name, (m, content) in members.items()} == parse(data)
    assert tar.sha256 == hashlib.sha256(data).hexdigest()


def test_only_files_and_links_are_members(tmp_path: Path) -> None:
    (tmp_path / "f/sub").mkdir(parents=True)
    (tmp_path / "f/a.jpg").write_bytes(b"a" * 600)
    os.link(tmp_path / "f/a.jpg", tmp_path / "f/b.jpg")
    (tmp_path / "f/c.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "f/d.jpg")
    command = ["tar", "-C", tmp_path / "f", "--sort=name", "--label=backup", "-cf", tmp_path / "x.tar", "."]
    subprocess.run(command, check=True)
    members, _ = read((tmp_path / "x.tar").read_bytes())
    assert {name: member.link for name, (member, _) in members.items()} == {
        "./a.jpg": False,
        "./b.jpg": True,
        "./c.jpg": True,
    }
    assert [content for _, content in members.values()] == [b"a" * 600, b"", b""]


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hole.jpg").touch()
    os.truncate(tmp_path / "hole.jpg", 2**20)
    for options in (["--format=gnu"], ["--format=posix", "--sparse-version=1.0"]):
        command = ["tar", "-C", tmp_path, "--sparse", *options, "-cf", tmp_path / "x.tar", "hole.jpg"]
        subprocess.run(command, check=True)
        assert "sparse member at byte" in damage((tmp_path / "x.tar").read_bytes())


@pytest.mark.parametrize("compressor, kind", [("gzip", "gzip"), ("bzip2", "bzip2"), ("xz", "xz")])
def test_a_compressed_tar_under_a_false_name(compressor: str, kind: str, plain: bytes) -> None:
    packed = subprocess.run([compressor, "-c"], input=plain, capture_output=True, check=True).stdout
    assert f"compressed ({kind})" in damage(packed + bytes(1024))


def test_a_flipped_bit_in_a_header_does_not_pass_for_the_end(plain: bytes) -> None:
    data = bytearray(plain)
    data[1536 + 124] ^= 1
    assert "no readable header at byte 1536" in damage(bytes(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:  # which is why `tarfile` is not enough
        assert tar.getnames() == ["a.jpg"]


def test_wherever_a_tar_is_cut_it_is_noticed(plain: bytes) -> None:
    assert "is empty" in damage(b"")
    for size in (1, 511, 512, 1000, 1212, 1535, 1536, 2047, 2049, 2559, 2560, 3000):
        assert "byte" in damage(plain[:size])
    for size in (3072, 3584, 5000):  # the end marker is there
        assert len(read(plain[:size])[0]) == 2


def test_data_after_the_end_marker(plain: bytes) -> None:
    assert "after its end marker at byte 2560; if several tars were joined" in damage(plain + plain)
    zeroed = bytearray(plain)
    zeroed[1536:2048] = bytes(512)
    assert "after its end marker at byte 1536" in damage(bytes(zeroed))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\x80" + bytes(3) + b"\x01" * 8])
def test_a_size_beyond_the_end(size: bytes, plain: bytes) -> None:
    data = bytearray(plain)
    data[124:136] = size
    assert "inside the member a.jpg" in damage(rechecked(data))


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000012\0"])
def test_a_negative_size(size: bytes, plain: bytes) -> None:
    data = bytearray(plain)
    data[124:136] = size
    assert "at byte 0" in damage(rechecked(data))


def pax(records: bytes, plain: bytes, size: int | None = None) -> bytes:
    header = bytearray(plain[:512])
    header[156:157] = b"x"
    header[124:136] = b"%011o\0" % (len(records) if size is None else size)
    return rechecked(header) + records.ljust(-(-len(records) // 512) * 512, b"\0") + plain


def test_extended_headers_give_name_and_size(plain: bytes) -> None:
    members, _ = read(pax(b"16 path=new.jpg\n12 size=700\n20 mtime=1.000000001\n"[:-21], plain))
    assert members["new.jpg"][1] == b"x" * 700
    members, _ = read(pax(b"21 path=caf\xe9 \xff\xff\xff.jpg\n", plain))
    assert printable(next(iter(members))) == r"caf\udce9 \udcff\udcff\udcff.jpg"


@pytest.mark.parametrize(
    "records",
    [
        b"path=new.jpg\n",
        b"0 path=new.jpg\n",
        b"-5 path=new.jpg\n",
        b"999999 path=new.jpg\n",
        b"99999999999999999999999 path=new.jpg\n",
        b"16 path_new.jpg\n",
        b"16 path=new.jpgX",
        b"15 path=new.jpg\n",
        b"13 size=-500\n",
        b"12 size=7e2\n",
        b"34 size=7000000000000000000000000\n",
        b"\xff\xff\xff\xff",
        b" ",
    ],
)
def test_extended_headers_of_rubbish(records: bytes, plain: bytes) -> None:
    assert "extended header at byte 0" in damage(pax(records, plain))


def test_extended_headers_that_claim_too_much(plain: bytes) -> None:
    assert "extended header of 8589934591 bytes" in damage(pax(b"", plain, size=8**11 - 1))
    assert "stops at byte" in damage(pax(b"", plain, size=2**20))
    assert "without a member" in damage(pax(b"16 path=new.jpg\n", bytes(plain[:512]))[:1024] + bytes(1024))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.c/d.LEFT.png", ("a/b.c/d", "left.png")),
        ("./a.cls", ("./a", "cls")),
        ("/abs/../a.cls", ("/abs/../a", "cls")),
        ("a.", ("a", "")),
        ("README", None),
        ("a/.hidden.jpg", None),
        ("._a.jpg", None),
        ("a.b/c", None),
        ("", None),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_name(name: str, expected: tuple[str, str] | None) -> None:
    assert key_and_extension(name) == expected


def test_names_are_shown_in_one_line() -> None:
    assert printable("a\nb\x1b[31m\t图\udcff") == r"a\nb\x1b[31m\t图\udcff"
    assert len(printable("x" * 10**6)) == 201


def test_headers_are_bounded_together(plain: bytes) -> None:
    one = pax(b"30 comment=" + b"c" * 18 + b"\n", plain)[:1024]
    assert len(read(one * 1000 + plain)[0]) == 2
    assert f"more than {LONGEST_HEADERS} bytes at byte 0" in damage(one * 1024 + plain)


def test_a_user_error_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("no\nfile \x1b[2J.tar")) == r"no\nfile \x1b[2J.tar"
