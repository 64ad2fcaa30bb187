import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.reading import lines, records
from data_pipes.reading.columns import make_column
from data_pipes.reading.intake import Intake
from data_pipes.reading.records import Fields, parse_lines
from data_pipes.sources import AlignedSource, JsonlSource, read_batches

ROOT = Path(__file__).parents[2]

# JSON values, odd ones and broken ones, as they are written.
VALUES = st.sampled_from(
    [
        '"a"', '"\\u0041"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\u00e9"', '"\u2028"',
        '""', '" "', "1", "-0", "0", "7", "1.5", "1e3", "1e999", "01", "-", "NaN", "-NaN", "Inf",
        "-Inf", "Infinity",
        "-Infinity", "true", "false", "null", "[]", "{}", "[1,[2]]", '{"text":"q"}', '{"g":{"text":1}}',
        "9" * 50, "9" * 5000, "[" * 2000 + "]" * 2000, "[[[]", '"\\q"', '"a', "nul", '"\\u12"',
        '"\x7f"', '"\\u0000"',
        '"a\tb"', '"{"',
        '"}"', '"[1"', '"Inf "', '" Inf,"', "9223372036854775807",
        "-9223372036854775808", "9223372036854775808",
    ]
)  # fmt: skip
MEMBERS = st.tuples(st.sampled_from(["text", "g", "c", "x", "te\\u0078t", "", "\u00e9"]), VALUES)
OBJECTS = st.lists(MEMBERS, max_size=4).map(
    lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"
)
PLAIN = st.builds(
    lambda text, group, code: json.dumps({"text": text, "g": group, "c": code}, ensure_ascii=False),
    st.text(st.sampled_from('a"\\\n\u00e9'), max_size=3),
    st.integers(1, 2) | st.sampled_from("pq"),
    st.none() | st.just("u"),
)
ODD = st.sampled_from(
    ["null", "[]", "5", '"a"', '{"text":', '"a"}', "//c", "{null}", "{}{}", "nullnull", "{", "}", "\ufeff{}"]
)
WHOLE = st.one_of(PLAIN, OBJECTS, OBJECTS, ODD)
# Two on one line, spaces around, trailing garbage.
LINES = st.one_of(
    WHOLE,
    WHOLE,
    st.builds("{}{}{}".format, WHOLE, st.sampled_from(["", " ", ","]), WHOLE),
    st.builds("{}{}{}".format, st.sampled_from([" ", "\t", "\x0b"]), WHOLE, st.sampled_from(["", " ", "\t"])),
).filter(str.strip)
FIELDS = st.builds(
    Fields,
    st.just("text"),
    st.sampled_from([None, "g"]),
    st.sampled_from([(), ("c",), ("c", "g"), ("text",)]),
)


FINE = '{"text": "a", "g": 1}'


def show(columns, intake):
    damaged = [False] * len(columns.texts) if columns.is_damaged is None else columns.is_damaged.tolist()
    groups = None if columns.groups is None else columns.groups.to_pylist()
    carried = {name: column.to_pylist() for name, column in columns.carried.items()}
    return columns.texts.to_pylist(), groups, carried, damaged, intake.describe()


@settings(deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5), FIELDS)
@example([FINE, '{"text": "a", "x": Inf}'], Fields("text"))
@example([FINE, '{"text": "a", "x": [-NaN]}'], Fields("text"))
@example([FINE, '{"text": "a"}{"text": "b"}'], Fields("text"))
@example([FINE, '{"text": "a"', '"g": 1}', FINE], Fields("text"))
@example([FINE, '{"text": "a", "text": null}', '{"text": null, "text": "a"}'], Fields("text"))
@example([FINE, '{"text": "a", "g": -0}', '{"text": "a", "g": 9223372036854775808}'], Fields("text", "g"))
@example(['{"text": "a", "g": 1, "x": ' + "[" * 2000 + "]" * 2000 + "}"], Fields("text", "g"))
@example(['{"text": "a", "x": ' + "9" * 5000 + "}"], Fields("text"))
def test_arrow_and_python_give_the_same_documents_and_the_same_rejections(written, fields):
    column, numbers = make_column(written)[0], np.arange(1, len(written) + 1)
    fast, slow = Intake("skip", 1.0), Intake("skip", 1.0)
    ours = show(parse_lines(column, numbers, fields, fast, Path("p")), fast)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MIN_FAST_LINES", 1 << 30)
        if not any("[" * 2000 in line for line in written):  # those need Arrow in any case
            patch.setattr(records, "_parse_fast", lambda lines, fields: None)
        wanted = show(records._parse_each(column, numbers, fields, slow, Path("p")), slow)
    assert ours == wanted


def judge(line):
    """The fate of a line of bytes and its text, with nothing but json.loads."""
    line = line.removesuffix(b"\r")
    if b"\0" in line:
        return "nul", None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "not_utf8", None
    if not text.strip():
        return "blank", None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return "bad", None
    found = record.get("text") if isinstance(record, dict) else None
    return ("good", found) if isinstance(found, str) else ("bad", None)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            PLAIN.map(str.encode),
            PLAIN.map(str.encode),
            st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")),
            st.sampled_from(
                [b"", b" ", b"\r", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"null", b"5", b"[]"]
            ),
        ),
        max_size=8,
    ),
    st.sampled_from([1, 7, 4096]),
)
def test_good_bad_and_blank_lines_of_any_bytes_add_up(tmp_path_factory, written, block_bytes):
    path = tmp_path_factory.mktemp("records") / "a.jsonl"
    path.write_bytes(b"\n".join([b"", *written]))
    intake = Intake("skip", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        batches = list(read_batches(JsonlSource(str(path)), None, intake))
    physical = [b"", *written] if written and written[-1] else [b"", *written][:-1]
    judged = [judge(line) for line in physical]
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    assert texts == [text.replace("\ud800", "\ufffd") for fate, text in judged if fate == "good"]
    fates = [fate for fate, _ in judged]
    assert (intake.num_lines, intake.num_blank) == (len(fates), fates.count("blank"))
    assert intake.num_skipped == len(fates) - fates.count("blank") - len(texts)


def test_an_odd_line_sends_only_its_neighbours_to_the_slow_way(tmp_path, monkeypatch):
    written = [json.dumps({"text": f"{number}"}) for number in range(5000)]
    written[3000] = '{"text": "\\ud800"}'
    (tmp_path / "a.jsonl").write_text("\n".join(written))
    parsed = []
    parse_line = records._parse_line
    monkeypatch.setattr(records, "_parse_line", lambda *given: parsed.append(1) or parse_line(*given))
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl")))
    assert batch.texts.to_pylist() == [f"{n}" if n != 3000 else "\ufffd" for n in range(5000)]
    assert np.flatnonzero(batch.is_damaged).tolist() == [3000]
    assert len(parsed) <= records.MIN_FAST_LINES


@pytest.mark.parametrize(("length", "is_fast"), [(100, True), (10_000, False)])
def test_long_lines_are_left_to_python(tmp_path, monkeypatch, length, is_fast):
    monkeypatch.setattr(records, "_parse_each", None if is_fast else records._parse_each)
    monkeypatch.setattr(records, "_parse_fast", records._parse_fast if is_fast else None)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * length, "g": 1}) + "\n")
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl"), group_key="g"), carry=("g",))
    assert batch.texts.to_pylist() == ["x" * length]
    assert batch.groups.to_pylist() == batch.carried["g"].to_pylist() == ["1"]


def test_a_bare_null_line_does_not_reach_arrow_which_crashes_on_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nnull\n')
    code = (
        "import sys; from data_pipes.sources import *; from data_pipes.reading.intake import Intake\n"
        "intake = Intake('skip', 1.0)\n"
        "list(read_batches(JsonlSource(sys.argv[1]), None, intake)); print(intake.describe()['skipped'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{'not_an_object': 1}\n"


def test_fields_are_carried_as_strings(tmp_path):
    written = [
        {"text": "a", "doc_id": 7, "cap_id": "c", "map": [[0, 1]], "ok": True, "x": 1.5},
        {"text": "b", "doc_id": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, written)))
    names = ("doc_id", "cap_id", "map", "ok", "x", "nowhere", "text")
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl")), carry=names)
    got = {name: column.to_pylist() for name, column in batch.carried.items()}
    assert got == {
        "doc_id": ["7", ""],
        "cap_id": ["c", ""],
        "map": ["[[0, 1]]", ""],
        "ok": ["true", ""],
        "x": ["1.5", ""],
        "nowhere": ["", ""],
        "text": ["a", "b"],
    }


def test_aligned_records_give_their_normalised_text_by_publication(tmp_path):
    record = {
        "doc_id": "d",
        "pub_id": 3,
        "cap_id": None,
        "raw_text": "r",
        "norm_text": "n",
        "align_map": [[0, 1]],
    }
    lacking = {name: value for name, value in record.items() if name != "norm_text"}
    (tmp_path / "a.jsonl").write_text(
        "\n".join(map(json.dumps, [record, lacking, record | {"norm_text": None}]))
    )
    source = AlignedSource(str(tmp_path))
    intake = Intake("skip", 1.0)
    (batch,) = read_batches(source, None, intake, carry=("doc_id", "cap_id"))
    assert (batch.texts.to_pylist(), batch.groups.to_pylist()) == (["n"], ["3"])
    assert {name: column.to_pylist() for name, column in batch.carried.items()} == {
        "doc_id": ["d"],
        "cap_id": [""],
    }
    assert intake.skipped == {"no_text": 2}
    with pytest.raises(
        SourceError, match="line 2: no key 'norm_text', wanted a string; its keys are doc_id, pub_id"
    ):
        list(read_batches(source))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("5", "not_an_object"),
        ("[1]", "not_an_object"),
        ('{"text": 5}', "not_a_string"),
        ('{"text": [1]}', "not_a_string"),
        ('{"text": null}', "no_text"),
        ("{}", "no_text"),
        ('{"text": "a"', "not_json"),
        ('{"text": "a", "x": ' + "[" * 100_000, "not_json"),
        ('{"text": ' + "9" * 5000 + "}", "not_a_string"),
        ('{"text": "a", "g": null}', "no_group"),
    ],
)
def test_each_fault_of_a_line_has_its_reason(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "g": 1}}\n{line}\n')
    intake = Intake("skip", 1.0)
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl"), group_key="g"), None, intake)
    assert batch.num_documents == 1
    assert intake.describe()["skipped"] == {reason: 1}
    assert len(intake.examples[0]["excerpt"]) <= 80


def test_the_last_of_two_equal_keys_wins_and_huge_or_deep_values_beside_the_text_do_no_harm(tmp_path):
    written = [
        '{"text": "a", "text": "b"}',
        '{"text": "c", "x": ' + "9" * 5000 + "}",
        '{"text": "d", "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"text": "e", "x": NaN}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(written))
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl")))
    assert batch.texts.to_pylist() == ["b", "c", "d", "e"]
