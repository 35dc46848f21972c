import hashlib
import io
import json
import tarfile
import zlib

import numpy as np
import webdataset
from hypothesis import example, given
from hypothesis import strategies as st

from card_scale.data.shards import ShardWriter, npy_header, tar_header

DTYPES = st.sampled_from([np.dtype("<u2"), np.dtype("<u4")])


# Eleven octal digits end below 8 GiB: the first size beyond, and the last within, are no matter of luck.
@example("a.npy", 8**11 - 1)
@example("a.npy", 8**11)
@given(st.from_regex(r"[a-z0-9-]{1,20}\.(npy|json)", fullmatch=True), st.integers(0, 2**40))
def test_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    expected = member.tobuf(tarfile.GNU_FORMAT if size >= 8**11 else tarfile.USTAR_FORMAT)
    parsed = tarfile.TarInfo.frombuf(tar_header(name, size), "utf-8", "strict")
    assert (parsed.name, parsed.size, parsed.mode, parsed.mtime) == (name, size, 0o444, 0)
    assert tar_header(name, size)[124:136] == expected[124:136]  # the size
    if size < 8**11:
        # tarfile leaves the device numbers of a regular file empty or zero, depending on its version
        assert tar_header(name, size)[:148] == expected[:148]


@given(DTYPES, st.integers(1, 2**40))
def test_npy_headers_are_numpys(dtype, count):
    expected = io.BytesIO()
    np.lib.format.write_array_header_1_0(expected, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})
    assert npy_header(dtype, count) == expected.getvalue()


def write(path, documents):
    with ShardWriter(path) as writer:
        for number, tokens in enumerate(documents):
            writer.add(f"000003-{number:09d}", json.dumps({"source": "größe/x.py", "record": number}).encode(), tokens)
        return writer.finish()


def documents(dtype):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 60_000, count).astype(dtype) for count in (1, 5, 192, 1000, 3)]


def test_webdataset_reads_what_was_written(tmp_path):
    tokens = documents("<u2")
    write(tmp_path / "train-000003-000.tar", tokens)
    samples = list(webdataset.WebDataset(str(tmp_path / "train-000003-000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"000003-{number:09d}" for number in range(5)]
    assert [sample["json"] for sample in samples] == [{"source": "größe/x.py", "record": n} for n in range(5)]
    for sample, expected in zip(samples, tokens, strict=True):
        np.testing.assert_array_equal(sample["npy"], expected)


def test_the_index_points_at_the_tokens_and_the_record_describes_the_file(tmp_path):
    for dtype in ("<u2", "<u4"):
        tokens = documents(dtype)
        record, index = write(tmp_path / "x.tar", tokens)
        content = (tmp_path / "x.tar").read_bytes()
        for row, expected in zip(index, tokens, strict=True):
            data = content[row["offset"] : row["offset"] + expected.nbytes]
            assert (data, zlib.crc32(data), row["tokens"]) == (expected.tobytes(), row["crc32"], len(expected))
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (record.documents, record.tokens) == (5, sum(map(len, tokens)))
        assert content.endswith(bytes(1024))
        assert len(content) % 10240 == 0


def test_an_unfinished_shard_has_no_name(tmp_path):
    with ShardWriter(tmp_path / "x.tar") as writer:
        writer.add("000000-000000000", b"{}", np.zeros(3, dtype="<u2"))
    assert not (tmp_path / "x.tar").exists()
