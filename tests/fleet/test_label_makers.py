"""What is said about whose labels a run has used."""

from __future__ import annotations

from fleet.show.label_makers import label_makers

TEACHER = "teacher 0123456789abcdef"


def test_whose_labels_is_said_where_they_are_not_simply_files() -> None:
    files = {"train": {"files": 5}, "test": {"files": 2}}
    learnt = {**files, "train": {"files": 1, TEACHER: 4}}
    both = {"train": {TEACHER: 5}, "test": {TEACHER: 2}, "ood": {TEACHER: 3}}
    unknown = {"vehicles": {"car-1": {}, "car-2": {"labels": files}}}
    assert label_makers({}) == label_makers(unknown) == []
    assert label_makers({"vehicles": {"car-1": {"labels": files}, "car-2": {"labels": learnt}}}) == [
        f"labels that car-2 learnt from: label files (20 %) and {TEACHER} (80 %)"
    ]
    assert label_makers({"vehicles": {f"car-{number}": {"labels": both} for number in range(9)}}) == [
        f"labels that all vehicles learnt from: {TEACHER}",
        f"labels that all vehicles scored against: {TEACHER} for test, OOD",
    ]
    pseudo = {"vehicles": {"a": {"labels": {"train": {"pseudo": 3}}}, "b": {"labels": files}}}
    assert label_makers(pseudo) == ["labels that a learnt from: the fleet's own predictions"]
