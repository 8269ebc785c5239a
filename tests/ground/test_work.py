"""Long work: split over processes, noted, continued."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudi.ground.work import CHECKSUM, Journal, share


def state(process=0, count=1):
    """What is read of accelerate's state; processes here come one after the other."""
    return SimpleNamespace(
        process_index=process,
        num_processes=count,
        is_main_process=process == 0,
        wait_for_everyone=lambda: None,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_piece_belongs_to_one_process(count):
    shares = [share(range(10), state(i, count)) for i in range(count)]
    assert sorted(piece for part in shares for piece in part) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_parts_become_one_file_in_the_order_asked_for(tmp_path):
    path = tmp_path / "new" / "scores.jsonl"
    journals = [Journal(path, "image", state(i, 2)) for i in (0, 1)]
    for i, name in enumerate(["d", "a", "c", "b"]):
        journals[i % 2].add({"image": name, "score": i, "caption": "über\u2028alles\n"})
    assert [record["image"] for record in journals[0].finish(order="abc")] == ["a", "b", "c", "d"]
    assert [p.name for p in path.parent.iterdir()] == ["scores.jsonl"]
    assert Journal(path, "image", state()).done["c"]["caption"] == "über\u2028alles\n"


def test_a_line_cut_off_by_a_kill_is_done_anew(tmp_path):
    path = tmp_path / "scores.jsonl"
    journal = Journal(path, "image", state())
    journal.add({"image": "a"})
    with (tmp_path / "scores.jsonl.part0").open("ab") as file:
        file.write('\n{"image": "b", "name": "ü'.encode()[:-1])  # inside a letter
    again = Journal(path, "image", state())
    assert again.done == {"a": {"image": "a"}}
    again.add({"image": "b"})
    again.add({"image": "a", "anew": True})
    assert again.finish() == [{"image": "a", "anew": True}, {"image": "b"}]
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(record.pop(CHECKSUM)) == 8 for record in written)
    assert written == again.finish()


RECORDS = [{"image": f"{i}.png", "score": i / 7, "boxes": [[i, 2, 3, 4]]} for i in range(4)]
UNIT = st.floats(0, 1, exclude_max=True)


@given(UNIT, st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_line_is_told_and_its_work_done_anew(place, put, lost):
    """No mutation stops a run or gives another record; lines that it leaves alone are kept."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.jsonl"
        journal = Journal(path, "image", state())
        for record in RECORDS:
            journal.add(record)
        journal.finish()
        whole = path.read_bytes()
        start = int(place * len(whole))
        path.write_bytes(whole[:start] + put + whole[start + lost :])
        lines = set(path.read_bytes().split(b"\n")[:-1])
        done = Journal(path, "image", state()).done
        for record, line in zip(RECORDS, whole.splitlines(), strict=True):
            assert done.get(record["image"], record) == record
            assert line not in lines or record["image"] in done
        again = Journal(path, "image", state())
        for record in RECORDS:
            again.add(record)
        assert again.finish(order=[record["image"] for record in RECORDS])[:4] == RECORDS


def test_lines_without_checksums_are_taken_where_none_has_one(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"image": "a"}\n{"image": "b"}\n')
    assert Journal(path, "image", state()).finish() == [{"image": "a"}, {"image": "b"}]
    path.write_text(path.read_text() + '{"image": "c"}\n')
    assert Journal(path, "image", state()).finish() == [{"image": "a"}, {"image": "b"}]


@pytest.mark.parametrize(
    "line",
    [
        b"{broken",
        b"5",
        b"null",
        b'["image"]',
        b'{"picture": "b"}',
        b'{"image": ["b"]}',
        b'{"image": "\\ud83d"}',
        b'{"image": "\xff"}',
        b'{"image": ' + b"[" * 100_000,
        b'{"image": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_complete_line_that_is_no_record_is_named(tmp_path, caplog, line):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"image": "a"}\n' + line + b"\n")  # the first as earlier versions wrote it
    assert Journal(path, "image", state()).finish() == [{"image": "a"}]
    told = [f"{path}:2: the line is damaged; its work is done anew"]
    assert [record.getMessage() for record in caplog.records] == told


def test_no_work_leaves_no_file(tmp_path):
    assert Journal(tmp_path / "x.jsonl", "image", state()).finish() == []
    assert not list(tmp_path.iterdir())
