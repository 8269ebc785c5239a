"""Long work: split over processes, noted, continued."""

import json
from types import SimpleNamespace

import pytest

from mudi.ground.work import Journal, share


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
    assert [json.loads(line) for line in path.read_text().splitlines()] == again.finish()


def test_no_work_leaves_no_file(tmp_path):
    assert Journal(tmp_path / "x.jsonl", "image", state()).finish() == []
    assert not list(tmp_path.iterdir())
