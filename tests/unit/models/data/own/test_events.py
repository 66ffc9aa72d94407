"""Events: what is kept of them, what is refused, and how imports of one table add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.own import merge
from models.data.own.store import path_of
from tests.unit.models.data.own.domain import (
    NOW_MS,
    SCHEMA,
    WRITERS,
    T,
    folder_in,
    held,
    reasons,
    run,
    write_csv,
)

HEADER = "user_id,item_id,event,time,value\n"
many = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
row = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["007", "7", "u,1", 'u"2', "ü\n3"]),
        "item_id": st.sampled_from(["a", "b", "9223372036854775807"]),
        "event": st.sampled_from(["click", "purchase"]),
        "time": st.integers(T, T + 20),
        "value": st.none() | st.integers(0, 3).map(float),
    }
).map(lambda r: {**r, "value": r["value"] if r["event"] == "purchase" else None})
rows_of = st.lists(row, min_size=1, max_size=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_in(tmp_path / "own")


def test_a_file_becomes_a_table_sorted_by_time(folder: Path) -> None:
    done = run(folder, "events", HEADER + f"007,a,purchase,{T + 1},59.90\n8,b,click,{T}.5,\n")
    assert done.accepted == 2
    assert held(folder, "events").rows() == [
        ("8", "b", "click", T * 1000 + 500, None),
        ("007", "a", "purchase", T * 1000 + 1000, 59.9),
    ]


def test_events_say_where_and_in_what_circumstances_their_list_was_shown(tmp_path: Path) -> None:
    context = "context: {device: {type: category, values: [phone]}, hour: {type: number}}\n"
    folder = folder_in(tmp_path / "own", SCHEMA + context)
    header = HEADER.strip() + ",surface,position,device,hour\n"
    row, other = f"u,a,impression,{T}", f"u,b,impression,{T}"
    text = f"{row},,home,3,phone,7.5\n{other},,cellar,,fridge,\n{row},,,0,,\n{row},,,1.5,,\n"
    done = run(folder, "events", header + text)
    assert held(folder, "events").rows() == [
        ("u", "a", "impression", T * 1000, None, "home", 3, "phone", 7.5),
        ("u", "b", "impression", T * 1000, None, None, None, None, None),
    ]
    assert done.tally.refusals == 2
    assert "is no place in a list" in reasons(done)["position"]
    assert {note.column for note in done.tally.noted} == {"surface", "device"}


def test_a_place_is_a_whole_number_of_a_list_however_it_is_written(folder: Path) -> None:
    good = ("1", " 3.0", "7", "1e2", "100000.0", "")
    bad = ("1.5", "0", "0.0", "-3.0", "100001", "2147483648", "4294967297.0", "inf", "nan", "x")
    text = "".join(f"u,{i},click,{T},,{place}\n" for i, place in enumerate((*good, *bad)))
    done = run(folder, "events", HEADER.strip() + ",position\n" + text)
    assert held(folder, "events")["position"].to_list() == [1, 3, 7, 100, 100_000, None]
    assert "from 1 to 100,000" in reasons(done)["position"]
    assert done.tally.refusals == len(bad)
    rows = [
        {"user_id": "u", "item_id": str(i), "event": "click", "time": T, "position": place}
        for i, place in enumerate((1.0, None, 1.5, 3.0))
    ]
    for suffix, write in WRITERS.items():
        own = folder_in(folder / suffix)
        run(own, "events", write(own / f"f.{suffix}", rows))
        assert held(own, "events")["position"].to_list() == [1, None, 3]


def test_an_event_stays_one_event_whatever_is_declared_of_requests_later(tmp_path: Path) -> None:
    folder = folder_in(tmp_path / "own")
    row = f"u,a,impression,{T}"
    text = f"{HEADER.strip()},device,position\n{row},,phone,3\nu,b,click,{T},,,\n"
    assert run(folder, "events", text).merged == (2, 0, 0)
    context = "context: {device: {type: category, learned: 9}}\n"
    (folder / "schema.yaml").write_text(SCHEMA + context)
    for merged in ((0, 1, 1), (0, 0, 2)):
        assert run(folder, "events", text).merged == merged
    again = text.replace("phone,3", ",4") + f"{row},,tv,\nu,c,click,{T},,,\nu,c,click,{T},,,1\n"
    assert run(folder, "events", again).merged == (1, 1, 3), "of each event one row counts"
    assert held(folder, "events")["item_id", "position", "device"].rows() == [
        ("a", 4, "tv"), ("b", None, None), ("c", 1, None),
    ]  # fmt: skip


def test_events_of_one_time_keep_the_order_of_the_file(folder: Path) -> None:
    run(folder, "events", HEADER + "".join(f"u,{i},click,{T},\n" for i in (3, 1, 2)))
    assert held(folder, "events")["item_id"].to_list() == ["3", "1", "2"]


@many
@given(rows=rows_of)
def test_all_formats_import_to_equal_tables(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    found = []
    for suffix, write in WRITERS.items():
        own = folder_in(tmp_path_factory.mktemp(suffix))
        run(own, "events", write(own / f"f.{suffix}", rows))
        found.append(held(own, "events"))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert len(found[0]) == len({tuple(sorted(row.items(), key=str)) for row in rows})


@many
@given(rows=rows_of, at=st.integers(0, 12), bucket=st.sampled_from([1, 1_000_000]))
def test_any_split_into_two_imports_equals_one_import(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], at: int, bucket: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(merge, "BUCKET_ROWS", bucket)
        patched.setattr(merge, "STRIDE", 1)
        whole, halves = (folder_in(tmp_path_factory.mktemp(name)) for name in ("w", "h"))
        run(whole, "events", write_csv(whole / "all.csv", rows))
        for part in filter(None, (rows[:at], rows[at:])):
            run(halves, "events", write_csv(halves / "part.csv", part))
    assert held(whole, "events").equals(held(halves, "events"))


@many
@given(rows=rows_of)
def test_importing_twice_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    own = folder_in(tmp_path_factory.mktemp("own"))
    file = write_csv(own / "f.csv", rows)
    run(own, "events", file)
    before = path_of(own, "events").read_bytes()
    again = run(own, "events", file)
    assert (again.accepted, again.merged.duplicates, again.nothing) == (0, len(rows), False)
    assert path_of(own, "events").read_bytes() == before


@pytest.mark.parametrize(
    ("column", "line", "why"),
    [
        ("user_id", f",a,click,{T},", "user_id is missing"),
        ("user_id", f"'  ',a,click,{T},".replace("'", ""), "user_id '  ' is blank"),
        ("item_id", f"u,{'x' * 257},click,{T},", "has more than 256 bytes"),
        ("event", f"u,a,clik,{T},", "'clik' is no event of schema.yaml: expected impression, "),
        ("time", "u,a,click,,", "time is missing"),
        ("time", "u,a,click,soon,", "'soon' is no time"),
        ("time", "u,a,click,inf,", "'inf' is no time"),
        ("time", "u,a,click,86399,", "lies before 1970-01-02"),
        ("time", "u,a,click,-1,", "lies before 1970-01-02"),
        ("time", f"u,a,click,{NOW_MS + 86_400_001},", "lies more than a day after now"),
        ("time", f"u,a,click,{T}000000,", "lies more than a day after now"),
        ("time", "u,a,click,2024-05-01T12:00:00,", "name its zone with --timezone"),
        ("value", f"u,a,purchase,{T},dear", "'dear' is no finite number"),
        ("value", f"u,a,purchase,{T},nan", "'nan' is no finite number"),
        ("value", f"u,a,purchase,{T},1000.5", "is not 0 to 1000 EUR, as purchase declares it"),
        ("value", f"u,a,purchase,{T},-1", "is not 0 to 1000 EUR"),
        ("value", f"u,a,click,{T},1", "'1' is given, and its event has no value"),
        ("(row)", f"u,a,click,{T}", "has fewer values than the 5 columns"),
        ("(row)", f"u,a,click,{T},,", "has more values than the 5 columns"),
        ("(row)", f'u,"a"x,click,{T},', "is no row"),
    ],
)
def test_a_refusal_names_the_line_the_column_and_the_value(
    folder: Path, column: str, line: str, why: str
) -> None:
    text = f'{HEADER}u,"two\nlines",click,{T},\n{line}\n{line}\nu,b,click,{T},\n'
    done = run(folder, "events", text)
    assert done.accepted == 2
    (found,) = done.tally.refused.items()
    assert (found[0].column, found[1].rows, found[1].place) == (column, 2, 4)
    assert why in reasons(done)[column]
    with pytest.raises(DataError, match=r"line 4: .*: nothing was imported") as strict:
        run(folder_in(folder / "strict"), "events", text, strict=True)
    assert why in str(strict.value)
    assert not path_of(folder / "strict", "events").exists()


def test_a_time_at_the_end_of_tomorrow_is_taken(folder: Path) -> None:
    assert run(folder, "events", HEADER + f"u,a,click,{NOW_MS + 86_400_000},\n").accepted == 1


def test_what_was_seen_first_is_the_example_across_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.data.own.csv_source.ROWS", 2)
    text = "".join(f"u,a,no{i},{T},\n" for i in range(7))
    done = run(folder, "events", HEADER + text + f"u,a,click,{T},\n")
    (group,) = done.tally.refused.values()
    assert (group.rows, group.place, group.value) == (7, 2, "no0")


def test_one_event_can_be_given_for_all_rows(folder: Path) -> None:
    text = f"user_id,item_id,time\nu,a,{T}\n"
    run(folder, "events", text, event="click")
    assert held(folder, "events").row(0) == ("u", "a", "click", T * 1000, None)
    with pytest.raises(DataError, match=r"--event clik: .*did you mean click\?"):
        run(folder, "events", text, event="clik")
    with pytest.raises(DataError, match="has a column 'event' that says so of each row"):
        run(folder, "events", HEADER, event="click")


def test_columns_are_mapped_and_what_is_not_declared_is_named(folder: Path) -> None:
    text = f"Customer No,item_id,event,time,shop,user\nu,a,click,{T},1,2\n"
    done = run(folder, "events", text, mapping={"user_id": "Customer No"})
    assert done.ignored == ["shop", "user"]
    with pytest.raises(DataError, match=r"has no column 'user_id' \(did you mean user\?\)"):
        run(folder, "events", text)
    with pytest.raises(DataError, match=r"no column 'CustomerNo' \(did you mean Customer No\?\)"):
        run(folder, "events", text, mapping={"user_id": "CustomerNo"})
    with pytest.raises(DataError, match=r"'userid' is nothing .* \(did you mean user_id\?\)"):
        run(folder, "events", text, mapping={"userid": "Customer No"})
    with pytest.raises(DataError, match="has 2 columns 'item_id'"):
        run(folder, "events", "user_id,item_id,item_id,event,time\n")


@pytest.mark.parametrize("fails", ["sync", "replace"])
def test_a_failure_before_the_rename_leaves_the_old_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run(folder, "events", HEADER + f"u,a,click,{T},\n")
    before = path_of(folder, "events").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as broken:
        if fails == "replace":
            broken.setattr(Path, "replace", fail)
        else:
            broken.setattr("models.files.sync", fail)
        with pytest.raises(OSError, match="killed"):
            run(folder, "events", HEADER + f"u,b,click,{T},\n")
    assert path_of(folder, "events").read_bytes() == before
    assert sorted(p.name for p in (folder / "data").iterdir()) == [
        ".import.lock", "events.parquet",
    ]  # fmt: skip
    assert run(folder, "events", HEADER + f"u,b,click,{T},\n").accepted == 1


def test_nothing_accepted_is_told(folder: Path) -> None:
    done = run(folder, "events", HEADER + f"u,b,clik,{T},\n")
    assert done.nothing
    assert not path_of(folder, "events").exists()


def test_one_import_runs_at_a_time_and_clears_what_others_left(folder: Path) -> None:
    from models.data.own.store import importing

    left = folder / "data" / ".import-killed"
    left.mkdir(parents=True)
    with importing(folder):
        assert not left.exists()
        with pytest.raises(DataError, match="another import runs here"):
            run(folder, "events", HEADER + f"u,b,click,{T},\n")


def test_a_folder_without_a_declaration_says_what_to_bring(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no schema\.yaml: write one"):
        run(tmp_path, "events", HEADER)
