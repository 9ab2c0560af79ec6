"""Readers: every record at its place; damage costs what it touches, is listed, and never stops the rest."""

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import http_answer, page_record, stream_of, warc_gz, warc_record

from isthmus.data.readers.archives import read_tar, read_zip
from isthmus.data.readers.columns import read_parquet
from isthmus.data.readers.files import list_files
from isthmus.data.readers.jsonl import read_jsonl
from isthmus.data.readers.records import Corrupt, Form, Limits, Record, Reject
from isthmus.data.readers.streams import Stream
from isthmus.data.readers.warc import read_warc
from isthmus.errors import UserError


def split(found) -> tuple[list[Record], list[Reject]]:
    entries = list(found)
    return [entry for entry in entries if isinstance(entry, Record)], [e for e in entries if isinstance(e, Reject)]


def exhaust(stream: Stream) -> None:
    while stream.skip(1 << 20):
        pass


def line(text: str, **more: object) -> bytes:
    return json.dumps({"text": text, **more}).encode() + b"\n"


# --- streams ---


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    compression=st.sampled_from(["plain", "gzip", "zstd"]),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_a_stream_gives_the_bytes_of_its_members(parts: list[bytes], compression: str, sizes: list[int]) -> None:
    pack = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}[compression]
    if compression == "plain" and b"".join(parts).startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return
    stream = stream_of(b"".join(pack(part) for part in parts))
    found = bytearray()
    for size in sizes * 1000:
        assert stream.offset == len(found)
        chunk = stream.read(size)
        if not chunk:
            break
        found += chunk
    assert bytes(found) == b"".join(parts)


@settings(deadline=None, max_examples=60)
@given(
    content=st.lists(st.binary(max_size=12).map(lambda part: part.replace(b"\x1f", b"")), max_size=8),
    limit=st.integers(0, 9),
)
def test_lines_are_whole_or_said_to_be_too_long(content: list[bytes], limit: int) -> None:
    data = b"\n".join(content)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return
    stream = stream_of(data)
    expected = data.split(b"\n")
    expected = [part + b"\n" for part in expected[:-1]] + ([expected[-1]] if expected[-1] else [])
    for part in expected:
        found, too_long = stream.line(limit)
        assert too_long == (len(part.rstrip(b"\n")) > limit) or len(part) == limit + 1
        assert found == part or too_long
    assert stream.line(limit) == (b"", False)


@pytest.mark.parametrize("cut", [1, 5, 9])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_a_truncated_stream_is_an_error_after_its_last_good_byte(pack, cut: int) -> None:
    stream = stream_of(pack(bytes(range(256)) * 40)[:-cut])
    with pytest.raises(Corrupt, match="truncated"):
        exhaust(stream)


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    content = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(300)) + bomb.flush()
    stream = stream_of(content)
    with pytest.raises(Corrupt, match="zip bomb"):
        exhaust(stream)
    assert 60e6 < stream.offset < 70e6
    stream = stream_of(zstandard.ZstdCompressor(level=19).compress(bytes(300 << 20)))
    with pytest.raises(Corrupt, match="zip bomb"):
        exhaust(stream)


# --- JSON lines ---


def test_lines_become_records_at_their_bytes() -> None:
    content = line("one", url="http://a", id=7, nested={"x": 1}) + b"\n" + line("two\u2028still two")
    records, rejects = split(read_jsonl(stream_of(content), "a.jsonl", Limits(), about_fields=["id", "nested"]))
    assert not rejects
    assert [(r.content, r.offset, r.url, r.about) for r in records] == [
        ("one", 0, "http://a", {"id": 7, "nested": {"x": 1}}),
        ("two\u2028still two", len(line("one", url="http://a", id=7, nested={"x": 1})) + 1, "", {}),
    ]


BAD_LINES = {
    "no JSON": b'{"text": "x"\n',
    "no text": b'{"txt": "x"}\n',
    "a list": b"[1]\n",
    "a number": b'{"text": 4}\n',
    "deep nesting": b'{"text":' + b"[" * 100_000 + b"\n",
    "latin-1": '{"text": "Käse"}\n'.encode("latin-1"),
    "half a surrogate pair": b'{"text": "\\ud800"}\n',
    "too long": line("x" * 5000),
    "huge number": b'{"text": "x", "n": ' + b"1" * 4990 + b"}\n",
    "NUL bytes": b"\0\0\0\n",
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_listed_and_the_next_one_read(name: str) -> None:
    content = line("before") + BAD_LINES[name] + line("after")
    records, rejects = split(read_jsonl(stream_of(content), "a.jsonl", Limits(line_bytes=4000)))
    assert [record.content for record in records] == ["before", "after"]
    assert [(reject.file, reject.offset) for reject in rejects] == [("a.jsonl", len(line("before")))]
    assert rejects[0].reason


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12), size=st.integers(2, 60)
)
def test_ranges_of_any_size_give_every_line_once(texts: list[str], size: int) -> None:
    content = b"".join(line(text) for text in texts)
    found = []
    for start in range(0, len(content), size):
        stream = stream_of(content, start=max(0, start - 1))
        records, rejects = split(read_jsonl(stream, "a", Limits(), stop=start + size))
        assert not rejects
        found += [(record.content, record.offset) for record in records]
    whole, _ = split(read_jsonl(stream_of(content), "a", Limits()))
    assert found == [(record.content, record.offset) for record in whole]
    assert [text for text, _ in found] == texts


def test_a_truncated_gzip_keeps_the_lines_before_the_cut() -> None:
    content = gzip.compress(b"".join(line(f"{number} " + "abc" * number) for number in range(2000)), mtime=0)
    records, rejects = split(read_jsonl(stream_of(content[:-2000]), "a.jsonl.gz", Limits()))
    assert len(records) > 500
    assert [record.content.split()[0] for record in records] == [str(number) for number in range(len(records))]
    (reject,) = rejects
    assert "truncated gzip" in reject.reason


# --- WARC ---


def pages(count: int) -> list[bytes]:
    return [page_record(f"http://a/{number}", b"<html>page %d</html>" % number) for number in range(count)]


@pytest.mark.parametrize("compressed", [True, False])
def test_pages_of_an_archive_come_with_address_date_and_place(compressed: bool) -> None:
    info = warc_record("warcinfo", "", b"software: test\r\n", "application/warc-fields")
    members = [info, *pages(3)]
    members = warc_gz(members) if compressed else members
    records, rejects = split(read_warc(stream_of(b"".join(members)), "a.warc", Limits()))
    assert not rejects
    assert [record.content for record in records] == [b"<html>page %d</html>" % number for number in range(3)]
    starts = [len(b"".join(members[:number])) for number in (1, 2, 3)]
    assert [record.offset for record in records] == starts
    assert {(record.form, record.charset) for record in records} == {(Form.html, "utf-8")}
    assert records[1].url == "http://a/1"
    assert records[1].about == {"date": "2024-05-01T10:00:00Z"}


def test_transfer_and_content_encodings_are_undone() -> None:
    body = b"<p>hello</p>" * 50
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    content = page_record("http://a", chunked, "text/html", "Transfer-Encoding: chunked")
    content += page_record("http://b", gzip.compress(body), "text/html", "Content-Encoding: gzip")
    records, rejects = split(read_warc(stream_of(content), "a.warc", Limits()))
    assert not rejects
    assert [record.content for record in records] == [body, body]


def test_a_page_that_unpacks_to_more_than_the_limit_is_rejected() -> None:
    content = page_record("http://b", gzip.compress(bytes(5_000_000)), "text/html", "Content-Encoding: gzip")
    records, rejects = split(read_warc(stream_of(content + pages(1)[0]), "a.warc", Limits(record_bytes=100_000)))
    assert len(records) == 1
    assert "more than 100000 bytes" in rejects[0].reason


def test_what_is_no_page_is_counted_as_other() -> None:
    content = page_record("http://a/x.png", b"\x89PNG", "image/png")
    content += warc_record("response", "http://a/gone", http_answer(b"<p>gone</p>", status=404))
    records, _ = split(read_warc(stream_of(content), "a.warc", Limits()))
    assert [(record.form, record.about["rule"]) for record in records] == [
        (Form.other, "content_type"),
        (Form.other, "http_status"),
    ]


def test_wet_files_are_text() -> None:
    content = warc_record("conversion", "http://a", "Käse\n".encode(), "text/plain")
    content += warc_record("conversion", "http://b", "Käse\n".encode("latin-1"), "text/plain")
    records, rejects = split(read_warc(stream_of(gzip.compress(content)), "a.warc.wet.gz", Limits()))
    assert [(record.form, record.content, record.url) for record in records] == [(Form.text, "Käse\n", "http://a")]
    assert "invalid encoding" in rejects[0].reason


@pytest.mark.parametrize("damage", ["byte", "cut", "garbage", "length", "header"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_bad_record_costs_itself_only(damage: str, compressed: bool) -> None:
    records = pages(5)
    if damage == "length":
        records[2] = records[2].replace(b"Content-Length: ", b"Content-Length: x")
    if damage == "header":
        records[2] = b"WARC/1.1\r\n" + b"A: " + b"b" * 200_000 + b"\r\n\r\n"
    members = warc_gz(records) if compressed else records
    if damage == "byte":
        middle = len(members[2]) // 2 if compressed else 3
        members[2] = members[2][:middle] + bytes([members[2][middle] ^ 255]) + members[2][middle + 1 :]
    if damage == "cut":
        members[2] = members[2][: len(members[2]) // 2]
    if damage == "garbage":
        members[2] = b"\x00\x01garbage" * 50
    found, rejects = split(read_warc(stream_of(b"".join(members)), "a.warc", Limits()))
    urls = [record.url for record in found]
    assert {"http://a/0", "http://a/1", "http://a/4"} <= set(urls), (urls, rejects)
    assert rejects
    assert len(found) + len(rejects) <= 7


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08\0\0\0\0\0\0\3\xff" * 9_000, b"WARC/1.0\r\nx\r\n\r\n" * 20_000], ids=["gz", "plain"]
)
def test_a_file_of_nothing_but_damage_is_given_up(content: bytes) -> None:
    records, rejects = split(read_warc(stream_of(content), "a.warc", Limits()))
    assert not records
    assert len(rejects) == 1002
    assert "the rest is given up" in rejects[-1].reason


# --- parquet ---


def test_columns_as_fineweb_ships_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": [f"text {n}" for n in range(1000)],
            "url": [f"http://{n}" for n in range(1000)],
            "id": list(range(1000)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    with (tmp_path / "a.parquet").open("rb") as raw:
        records, rejects = split(read_parquet(raw, "a.parquet", Limits(), about_fields=["id"], groups=(1, 3)))
    assert not rejects
    assert [record.offset for record in records] == list(range(300, 900))
    assert (records[5].content, records[5].url, records[5].about) == ("text 305", "http://305", {"id": 305})


def test_bad_rows_groups_and_files_are_rejected(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"K\xe4se", None], pa.binary()).buffers())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"txt": ["a", "b"]}), tmp_path / "b.parquet")
    big = pa.table({"text": [f"{n}" * 50 for n in range(1000)]})
    pq.write_table(big, tmp_path / "c.parquet", row_group_size=500, compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "c.parquet").read_bytes())
    content[300:340] = bytes(40)
    (tmp_path / "c.parquet").write_bytes(content)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")

    def read(name: str) -> tuple[list[Record], list[Reject]]:
        with (tmp_path / name).open("rb") as raw:
            return split(read_parquet(raw, name, Limits()))

    records, rejects = read("a.parquet")
    assert [record.content for record in records] == ["good"]
    assert [reject.offset for reject in rejects] == [1, 2]
    assert read("b.parquet")[1] == [Reject("b.parquet", 0, "no column 'text'", 2)]
    records, rejects = read("c.parquet")
    assert {record.offset for record in records} >= set(range(500, 1000))
    assert sum(reject.records for reject in rejects) + len(records) == 1000
    assert "corrupt parquet" in read("d.parquet")[1][0].reason


# --- archives and files ---


def test_members_of_zip_and_tar_are_documents() -> None:
    names = {
        "b.vtt": b"WEBVTT",
        "a/page.html": b"<p>x",
        "note.txt": "Käse".encode(),
        "bad.txt": b"\xff\xfe\xfa",
        "x.png": b"1",
    }
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for records, rejects in (
        split(read_zip(zipped, "a.zip", Limits())),
        split(read_tar(stream_of(tarred.getvalue()), "a.zip", Limits())),
    ):
        found = {record.file: record.content for record in records}
        assert found == {"a.zip/b.vtt": b"WEBVTT", "a.zip/a/page.html": b"<p>x", "a.zip/note.txt": "Käse"}
        assert [reject.file for reject in rejects] == ["a.zip/bad.txt"]


def test_a_member_without_a_name_is_passed_over() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x", "nameless")
        archive.writestr("b.txt", "fine")
    data = content.getvalue()
    at = data.index(b"PK\x01\x02")  # the directory's entry: its name is made empty, and what was the name a comment
    data = data[: at + 28] + b"\0\0" + data[at + 30 : at + 32] + b"\1\0" + data[at + 34 :]
    records, _ = split(read_zip(io.BytesIO(data), "a.zip", Limits()))
    assert [record.content for record in records] == ["fine"]


def test_a_bomb_in_an_archive_is_a_reject() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(30_000_000))
        archive.writestr("b.txt", "fine")
    records, rejects = split(read_zip(content, "a.zip", Limits(record_bytes=1000)))
    assert [record.content for record in records] == ["fine"]
    assert "more than 1000 bytes" in rejects[0].reason


def test_files_are_listed_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    for root in ("here", "there/deeper"):
        for name in ("b/x.jsonl.gz", "a.jsonl", "c.png", "b/y.warc.gz"):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    formats = ["jsonl", "warc"]
    here = list_files([str(tmp_path / "here")], formats, "data.sources.a.path")
    there = list_files([str(tmp_path / "there/deeper")], formats, "data.sources.a.path")
    assert [file.identity for file in here] == ["a.jsonl", "b/x.jsonl.gz", "b/y.warc.gz"]
    assert [file.identity for file in there] == [file.identity for file in here]
    globbed = list_files([f"{tmp_path}/here/**/*.gz"], formats, "data.sources.a.path")
    assert [file.identity for file in globbed] == ["b/x.jsonl.gz", "b/y.warc.gz"]
    remote = list_files([f"file://{tmp_path}/here"], formats, "data.sources.a.path")
    assert [file.identity for file in remote] == [file.identity for file in here]
    for path, expected in (
        (f"{tmp_path}/absent", "nothing to read"),
        (f"{tmp_path}/here/c.png", "no kind"),
        ("zz://a", "Protocol not known"),
    ):
        with pytest.raises(UserError, match=expected):
            list_files([path], formats, "data.sources.a.path")


# --- fuzzing ---


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    content=st.binary(max_size=400),
    start=st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"WARC/1.0\r\n", b"PK\x03\x04", b"PAR1", b"{"]),
)
def test_no_bytes_make_a_reader_crash(content: bytes, start: bytes) -> None:
    data = start + content
    for read in (
        lambda: read_warc(stream_of(data), "a", Limits()),
        lambda: read_jsonl(stream_of(data), "a", Limits()),
        lambda: read_parquet(io.BytesIO(data), "a", Limits()),
        lambda: read_zip(io.BytesIO(data), "a", Limits()),
        lambda: read_tar(stream_of(data), "a", Limits()),
    ):
        assert all(isinstance(entry, Record | Reject) for entry in read())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["warc", "gz"]))
def test_no_changed_byte_makes_the_archive_reader_crash(position: int, value: int, kind: str) -> None:
    content = bytearray(b"".join(warc_gz(pages(4)) if kind == "gz" else pages(4)))
    content[position % len(content)] = value
    records, _ = split(read_warc(stream_of(bytes(content), name=f"a.{kind}"), "a", Limits()))
    assert len(records) >= 2


def test_stream_type() -> None:
    assert not Stream(io.BytesIO(b""), Limits()).compressed
