"""Reading result tables, and every reason to refuse one."""

import csv
import functools

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from card_scale.errors import ConfigurationError, DataError
from card_scale.laws.table import Advice, check, select
from card_scale.laws.table_reader import Row, read_csv, read_rows
from tests.laws import datablations

GOOD = [
    {
        "run": f"{objective}-{epochs}-{seed}",
        "objective": objective,
        "params_N": "1e6",
        "tokens_D": str(epochs * 1000),
        "unique_tokens_U": "1000",
        "epochs": str(epochs),
        "val_loss": str(4.0 - 0.1 * epochs),
        "seed": str(seed),
        "status": "done",
        "bound": "true" if objective == "mdlm" else "false",
        "tokenizer_hash": "aa",
        "validation_hash": "cc",
    }
    for objective in ("ar", "mdlm")
    for epochs in (1, 2)
    for seed in (0, 1)
]


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def changed(row, **cells):
    rows = [dict(one) for one in GOOD]
    rows[row].update(cells)
    return rows


def read(tmp_path, rows, allow_failed=False, objective="ar"):
    read_back = read_rows(write(tmp_path / "table.csv", rows), {})
    return check(select(read_back, {"objective": [objective]}), allow_failed)


def test_the_public_table():
    table = check(read_rows(datablations.PATH, {}), allow_failed=False)
    expected = datablations.runs()
    assert len(table.rows) == 308
    for name in ("N", "D", "U", "loss"):
        np.testing.assert_array_equal(getattr(table.runs, name), getattr(expected, name))
    assert table.runs.counted_flops is None
    kept = select(read_rows(datablations.PATH, {}), {"in_published_182_fit": ["1"], "note": [""]})
    assert len(kept) == 182


def test_csv_and_parquet_read_alike(tmp_path):
    typed = [
        {
            **row,
            "params_N": int(float(row["params_N"])),
            "tokens_D": int(row["tokens_D"]),
            "val_loss": float(row["val_loss"]),
            "bound": row["bound"] == "true",
            "flops": 6e9,
        }
        for row in GOOD
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(typed), tmp_path / "table.parquet")
    rows = select(read_rows(tmp_path / "table.parquet", {}), {"objective": ["ar"]})
    table = check(rows, allow_failed=False)
    np.testing.assert_array_equal(table.runs[:4], read(tmp_path, GOOD).runs[:4])
    np.testing.assert_array_equal(table.runs.cost(), 6e9)


def test_failed_runs_are_refused_or_left_out(tmp_path):
    rows = changed(1, status="truncated")
    rows[2]["val_loss"] = "nan"
    with pytest.raises(
        DataError, match=r"2 of 4 runs are not finished.*row 2: status = truncated.*row 3: val_loss = nan$"
    ):
        read(tmp_path, rows)
    table = read(tmp_path, rows, allow_failed=True)
    assert [row.cells["run"] for row in table.rows] == ["ar-1-0", "ar-2-1"]
    assert len(table.left_out) == 2
    with pytest.raises(DataError, match="no finished run"):
        read(tmp_path, [row | {"status": "failed"} for row in GOOD], allow_failed=True)


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"val_loss": ""}, r"row 2: val_loss = \(empty\)"),
        ({"val_loss": "inf"}, "row 2: val_loss = inf"),
        ({"val_loss": "-1"}, "row 2: val_loss = -1; it must be a positive finite number"),
        ({"val_loss": "three"}, "row 2: val_loss = three"),
        ({"params_N": "nan"}, "row 2: params_N = nan; it must be a positive finite number"),
        ({"tokens_D": "0"}, "row 2: tokens_D = 0"),
        ({"tokenizer_hash": "bb"}, "tokenizer_hash is mixed: .*row 1 has aa, .*row 2 has bb"),
        ({"validation_hash": ""}, r"validation_hash is mixed: .*row 1 has cc, .*row 2 has \(empty\)"),
        ({"bound": "maybe"}, "row 2: bound = maybe; it must be true or false"),
        ({"bound": "True"}, "bound is mixed: .*row 1 has false, .*row 2 has true; an upper bound and an exact loss"),
        ({"seed": "0"}, r"row 2 repeats .*table.csv row 1: objective = ar, .*seed = 0"),
        ({"seed": "0.0"}, r"row 2 repeats .*table.csv row 1"),
        ({"run": "ar-1-0"}, r"row 2 repeats .*row 1: run = ar-1-0"),
        ({"unique_tokens_U": "2000"}, r"row 2: unique_tokens_U = 2000 is more than tokens_D = 1000"),
        ({"epochs": "3"}, "row 2: epochs = 3, but tokens_D / unique_tokens_U = 1"),
    ],
)
def test_refused_with_file_row_column_and_value(tmp_path, cells, message):
    with pytest.raises(DataError, match=message) as refusal:
        read(tmp_path, changed(1, **cells))
    assert "table.csv" in str(refusal.value)


def test_bounds_beside_exact_losses_need_to_be_asked_for(tmp_path):
    rows = read_rows(write(tmp_path / "table.csv", GOOD), {})
    with pytest.raises(
        DataError, match=r"objective is mixed: .*row 1 has ar, .*row 5 has mdlm; each objective has a law"
    ):
        check(rows, allow_failed=False)
    unnamed = [Row(row.place, {**row.cells, "objective": ""}) for row in rows]
    with pytest.raises(DataError, match="bound is mixed"):
        check(unnamed, allow_failed=False)
    table = check(rows, allow_failed=False, comparison=True)
    mixed = [*rows[:-1], Row(rows[-1].place, {**rows[-1].cells, "bound": "false"})]
    with pytest.raises(DataError, match=r"bound is mixed: .*row 5 has true, .*row 8 has false; an upper bound"):
        check(mixed, allow_failed=False, comparison=True)
    assert table.objectives() == ["ar", "mdlm"]
    assert table.bounds() == ["mdlm"]
    assert len(table.of("mdlm").loss) == 4


def test_columns_under_other_names(tmp_path):
    own = [{"loss" if name == "val_loss" else name: cell for name, cell in row.items()} for row in GOOD]
    path = write(tmp_path / "table.csv", own)
    with pytest.raises(DataError, match="no column val_loss"):
        check(read_rows(path, {}), allow_failed=False)
    rows = read_rows(path, {"val_loss": "loss"})
    assert rows[0].cells["val_loss"] == "3.9"
    with pytest.raises(ConfigurationError, match="no column nll to take as val_loss; it has run, objective"):
        read_rows(path, {"val_loss": "nll"})


def test_a_column_that_is_replaced_is_not_read(tmp_path):
    path = write(tmp_path / "table.csv", [row | {"clean": "2.5"} for row in GOOD])
    assert read_rows(path, {"val_loss": "clean"})[0].cells["val_loss"] == "2.5"


def test_selection(tmp_path):
    rows = read_rows(write(tmp_path / "table.csv", GOOD), {})
    assert len(select(rows, {"epochs": ["2.0"], "objective": ["ar", "mdlm"]})) == 4
    with pytest.raises(ConfigurationError, match="no column width"):
        select(rows, {"width": ["1"]})
    with pytest.raises(ConfigurationError, match="no row has objective = 'card'; the column holds ar, mdlm"):
        select(rows, {"objective": ["card"]})
    with pytest.raises(ConfigurationError, match="no row has objective = 'ar', run = 'mdlm-1-0' at once"):
        select(rows, {"objective": ["ar"], "run": ["mdlm-1-0"]})


def test_broken_files(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("params_N,tokens_D\n1,2\n3\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2 has 1 cells, the header 2"):
        read_rows(path, {})
    path.write_text("a,a\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="two columns have one name"):
        read_rows(path, {})
    for content in ("", "params_N,tokens_D\n"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match="no rows"):
            read_rows(path, {})
    with pytest.raises(DataError, match=r"ends in \.csv or \.parquet"):
        read_rows(path.rename(tmp_path / "table.xlsx"), {})
    with pytest.raises(DataError, match=r"study: no such file or directory"):
        read_rows(tmp_path / "study", {})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.csv", None, "none.csv cannot be read: No such file or directory$"),
        ("none.parquet", None, "none.parquet cannot be read: No such file or directory$"),
        ("latin.csv", b"run,note\na,caf\xe9\n", "latin.csv is not UTF-8: .* at byte 14"),
        ("cut.csv", b'run,note\na,"' + b"x" * 200_000, "cut.csv cannot be read: field larger than"),
        ("empty.parquet", b"", "empty.parquet cannot be read: .*0 bytes"),
        ("text.parquet", b"run,note\na,b\n", "text.parquet cannot be read: .*Parquet"),
        ("cut.parquet", b"PAR1" + b"\0" * 60 + b"PAR1", "cut.parquet cannot be read: "),
    ],
)
def test_files_that_cannot_be_read(request, tmp_path, name, content, message):
    # The library's own limit, which readers of corpora lift for the whole process.
    request.addfinalizer(functools.partial(csv.field_size_limit, csv.field_size_limit(128 * 1024)))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        read_rows(tmp_path / name, {})
    assert str(refusal.value).count(name) == 1


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_directory_is_no_table(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name} cannot be read: Is a directory"):
        read_rows(tmp_path / name, {})
    with pytest.raises(DataError, match=r"ends in \.csv or \.parquet"):
        read_rows(tmp_path, {})


def cell(loss, epochs="1", **cells):
    """A run of AR; lr, weight decay and seed tell it from others."""
    tokens = str(int(epochs) * 1000)
    return GOOD[0] | {
        "run": f"ar-{epochs}-{sorted(cells.items())}",
        "epochs": epochs,
        "tokens_D": tokens,
        "val_loss": str(loss),
        **{"lr": "0.001", "weight_decay": "0.1", "reshuffle": "true", "seed": "1"},
        **cells,
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"weight_decay": "0.4"}, "weight_decay is 0.1 and 0.4"),
        ({"lr": "", "seed": "3"}, r"lr is 0.001 and \(empty\)"),
        ({"reshuffle": "false"}, "reshuffle is true and false"),
    ],
)
@pytest.mark.parametrize("comparison", [False, True])
def test_settings_are_not_taken_for_seeds(tmp_path, changes, words, comparison):
    rows = [cell(4.0), cell(3.5, "2", lr="0.002"), cell(4.1, seed="2"), cell(3.9, **changes)]
    read_back = read_rows(write(tmp_path / "table.csv", rows), {})
    with pytest.raises(
        DataError, match=rf"row 1 and .*row 4 agree in objective, N, D and U, but {words}; .* seed alone\. Do so$"
    ):
        check(read_back, allow_failed=False, comparison=comparison, advice=Advice(settings="Do so"))
    # 0.10 is 0.1, another cell may have another setting, and so may rows that the caller keeps apart.
    assert len(check(read_back[:3], allow_failed=False).rows) == 3
    assert len(check(read_back, allow_failed=False, settings="all").rows) == 4
    same = [cell(4.0), cell(4.1, weight_decay="0.10", lr="1e-3", seed="2")]
    assert len(check(read_rows(write(tmp_path / "table.csv", same), {}), allow_failed=False).rows) == 2


def test_the_best_setting_of_each_cell_is_kept(tmp_path):
    rows = [
        # Seed 1 alone is shared: 4.0 against 3.9. The mean over all of the second, 4.45, does not count.
        cell(4.0),
        cell(3.9, weight_decay="0.4"),
        cell(5.0, weight_decay="0.4", seed="2"),
        # Another cell, where the first setting is the better one.
        cell(3.0, "2"),
        cell(3.2, "2", weight_decay="0.4"),
        # A failed run wins nothing.
        cell("nan", "2", weight_decay="1.6") | {"status": "failed"},
    ]
    table = check(
        read_rows(write(tmp_path / "table.csv", rows), {}), allow_failed=True, settings="best", comparison=False
    )
    np.testing.assert_array_equal(table.runs.loss, [3.9, 5.0, 3.0])
    assert [row.cells["val_loss"] for row in table.rows] == ["3.9", "5.0", "3.0"]
    assert (table.other_settings, len(table.left_out)) == (2, 1)


def test_objectives_have_best_settings_of_their_own(tmp_path):
    rows = [cell(4.0), cell(3.9, lr="0.002"), *(cell(one, objective="card", lr=lr) for one, lr in ((3, "1"), (9, "2")))]
    table = check(
        read_rows(write(tmp_path / "table.csv", rows), {}), allow_failed=False, comparison=True, settings="best"
    )
    assert table.of("ar").loss.tolist() == [3.9]
    assert table.of("card").loss.tolist() == [3.0]


def test_without_settings_in_the_table_all_rows_are_of_the_best(tmp_path):
    table = check(read_rows(datablations.PATH, {}), allow_failed=False, settings="best")
    np.testing.assert_array_equal(table.runs.loss, datablations.runs().loss)
    bare = [
        {name: row[name] for name in ("params_N", "tokens_D", "unique_tokens_U", "val_loss", "lr")}
        for row in (cell(4.0, lr="1"), cell(3.0, lr="2"))
    ]
    table = check(read_rows(write(tmp_path / "table.csv", bare), {}), allow_failed=False, settings="best")
    assert table.runs.loss.tolist() == [3.0]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_that_a_spreadsheet_saved(tmp_path, separator):
    """With a byte order mark, and where commas do not separate, with decimal commas."""
    rows = [row | {"val_loss": row["val_loss"].replace(".", "," if separator != "," else ".")} for row in GOOD]
    lines = [separator.join(GOOD[0]), *(separator.join(row.values()) for row in rows)]
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert [row.cells for row in read_rows(path, {})] == GOOD


def test_decimals_of_both_kinds_are_refused_and_commas_in_commas_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("run;val_loss\na;3,5\nb;3.25\n")
    with pytest.raises(
        DataError, match=r"column val_loss has commas \(3,5\) and column val_loss has decimal points \(3\.25"
    ):
        read_csv(path)
    quoted = write(path, [row | {"val_loss": "3,98"} for row in GOOD[:4]])
    with pytest.raises(DataError, match="row 1: val_loss = 3,98; it must be a positive finite number"):
        check(read_rows(quoted, {}), allow_failed=False)


def test_commas_of_thousands_are_no_decimals(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("params_N\ttokens_D\tval_loss\n140,000\t16,384\t3\n140,000\t16,384\t3.25\n")
    message = r"column params_N has commas \(140,000\) and column val_loss has decimal points \(3\.25\)"
    with pytest.raises(DataError, match=f"table.csv: {message}"):
        read_csv(path)


def test_one_column_may_serve_several_names(tmp_path):
    rows = [{"params_N": "100", "tokens": "1000", "val_loss": "3.0"}]
    read = read_rows(write(tmp_path / "table.csv", rows), {"tokens_D": "tokens", "unique_tokens_U": "tokens"})
    assert check(read, allow_failed=False).runs.U.tolist() == [1000.0]
    assert read[0].cells["tokens"] == "1000"


def test_unique_tokens_are_needed_only_where_they_are_read(tmp_path):
    rows = [{"params_N": "100", "tokens_D": "1000", "epochs": "4", "val_loss": "3.0"}]
    read = read_rows(write(tmp_path / "table.csv", rows), {})
    assert check(read, allow_failed=False, needs_unique=False).runs.U.tolist() == [1000.0]
    with pytest.raises(DataError, match="no column unique_tokens_U"):
        check(read, allow_failed=False)
