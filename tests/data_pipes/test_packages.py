import hashlib
import json
import subprocess
import zipfile

import pytest

from data_pipes.documents import SourceError
from data_pipes.reading import packages
from data_pipes.reading.intake import Intake
from data_pipes.sources import PackageSource, count_estimate, read_batches

HOSTS = ["a.com", "example.org", "xn--bcher-kva.example"]
RECORDS = {
    "one": {"text": "First text.", "topic": 7, "body": None},
    "two": {"text": "Z\u00fcrich \U0001f600", "topic": "rocks"},
}


def make_table(entries):
    """An HSTS table: flags, length, name; bit 0x80 marks a leaf."""
    return b"".join(bytes([flags, len(name)]) + name.encode() for flags, name in entries)


MEMBERS = {
    "p/table.bin": make_table(
        [(0x00, "inner"), (0x80, HOSTS[0]), (0x81, HOSTS[1]), (0x01, "x"), (0xC0, HOSTS[2])]
    ),
    "p/broken.bin": make_table([(0x80, "a.com")]) + b"\x80\x09abc",
    "p/list.json": json.dumps(["b.com", "a.com", "b.com"]).encode(),
    "p/keyed.json": json.dumps({"version": 3, "list": HOSTS}).encode(),
    "p/mixed.json": b'["a.com", 3]',
    "p/records.json": json.dumps(RECORDS).encode(),
    "p/records_list.json": json.dumps([*RECORDS.values()]).encode(),
    "p/no_json.json": b"{",
    "p/bare.json": b"3",
}


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "made" / "demo-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    return path


def make_source(wheel, member="p/list.json", format="json_list", **changes):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PackageSource(
        **{"name": "demo", "version": "1.0", "sha256": digest, "member": member, "format": format} | changes
    )


@pytest.fixture
def pip(monkeypatch, wheel):
    """Stands for pip: copies the wheel to the folder after -d; counts its calls."""
    calls = []

    def run(command, **_):
        calls.append(command)
        folder = command[command.index("-d") + 1]
        with open(f"{folder}/{wheel.name}", "wb") as file:  # noqa: PTH123
            file.write(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return calls


def read_texts(source, root):
    return [text for batch in read_batches(source, root) for text in batch.texts.to_pylist()]


@pytest.mark.parametrize(
    ("member", "format", "key", "wanted"),
    [
        ("p/table.bin", "hsts_table", None, HOSTS),
        ("p/list.json", "json_list", None, ["b.com", "a.com", "b.com"]),
        ("p/keyed.json", "json_list", "list", HOSTS),
        ("p/records.json", "json_records", None, [record["text"] for record in RECORDS.values()]),
        ("p/records_list.json", "json_records", None, [record["text"] for record in RECORDS.values()]),
    ],
)
def test_each_format_gives_its_documents_in_order(wheel, pip, tmp_path, member, format, key, wanted):
    assert read_texts(make_source(wheel, member, format, key=key), tmp_path / "c") == wanted
    assert len(pip) == 1


def test_groups_and_the_split_go_with_the_documents(wheel, pip, tmp_path):
    source = make_source(wheel, "p/records.json", "json_records", group_key="topic", split="evaluation")
    (batch,) = read_batches(source, tmp_path / "c")
    assert batch.groups is not None
    assert (batch.groups.to_pylist(), batch.split) == (["7", "rocks"], "evaluation")


def test_a_wheel_in_the_cache_is_read_without_starting_a_process(wheel, pip, tmp_path, monkeypatch):
    source = make_source(wheel)
    assert not packages.is_cached(source, tmp_path / "c")
    first = read_texts(source, tmp_path / "c")

    def fail(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(packages.subprocess, "run", fail)
    assert packages.is_cached(source, tmp_path / "c")
    assert read_texts(source, tmp_path / "c") == first
    with pytest.raises(AssertionError, match="a process was started"):
        read_texts(make_source(wheel, version="2.0"), tmp_path / "c")


def test_a_damaged_wheel_in_the_cache_is_fetched_again(wheel, pip, tmp_path):
    source = make_source(wheel)
    cached = packages.fetch_wheel(source, tmp_path / "c")
    cached.write_bytes(cached.read_bytes()[:-1])
    assert not packages.is_cached(source, tmp_path / "c")
    assert read_texts(source, tmp_path / "c") == ["b.com", "a.com", "b.com"]
    assert len(pip) == 2


def test_a_wheel_of_another_hash_is_refused_and_not_kept(wheel, pip, tmp_path):
    source = make_source(wheel, sha256="0" * 64)
    with pytest.raises(SourceError, match=f"demo-1.0-py3-none-any.whl has sha256 .*, wanted {'0' * 64}"):
        read_texts(source, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.whl"))


def test_a_failing_pip_is_an_error_that_says_what_to_run_and_where_to_put_it(wheel, tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution\n")

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(
        SourceError, match=r"demo==1\.0: ERROR: No matching distribution; .*`pip download"
    ) as caught:
        read_texts(make_source(wheel), tmp_path / "c")
    folder = tmp_path / "c" / "packages" / "demo-1.0"
    assert str(caught.value).endswith(f"put the wheel into {folder}")
    # And that works.
    folder.mkdir()
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    assert read_texts(make_source(wheel), tmp_path / "c") == ["b.com", "a.com", "b.com"]


def test_pip_is_asked_for_one_pinned_wheel_without_dependencies(wheel, pip, tmp_path):
    packages.fetch_wheel(make_source(wheel), tmp_path / "c")
    (command,) = pip
    assert {"download", "--no-deps", "--only-binary=:all:", "demo==1.0"} <= set(command)


@pytest.mark.parametrize(
    ("member", "format", "changes", "wanted"),
    [
        ("p/none.json", "json_list", {}, "has no member 'p/none.json'"),
        ("p/broken.bin", "hsts_table", {}, "the last entry ends at byte 18 of 12"),
        ("p/mixed.json", "json_list", {}, "wanted a list of strings"),
        ("p/keyed.json", "json_list", {"key": "names"}, "has no key 'names'"),
        ("p/no_json.json", "json_list", {}, "not JSON"),
        ("p/bare.json", "json_records", {}, "found int"),
        (
            "p/records.json",
            "json_records",
            {"text_key": "title"},
            "record 1: no key 'title'.*text, topic, body",
        ),
        ("p/records.json", "json_records", {"text_key": "body"}, "record 1: NoneType under 'body'"),
        (
            "p/records.json",
            "json_records",
            {"group_key": "book"},
            "record 1: no key 'book', wanted by group_key",
        ),
        ("p/list.json", "json_records", {}, "record 1: found str, wanted an object"),
        ("p/list.json", "xml", {}, "format 'xml' is not known"),
    ],
)
def test_a_member_that_is_not_as_described_is_named(wheel, pip, tmp_path, member, format, changes, wanted):
    with pytest.raises(SourceError, match=wanted):
        read_texts(make_source(wheel, member, format, **changes), tmp_path / "c")


@pytest.mark.parametrize(
    ("member", "format", "changes", "wanted", "skipped"),
    [
        ("p/mixed.json", "json_list", {}, ["a.com"], {"not_a_string": 1}),
        ("p/records.json", "json_records", {"text_key": "body"}, [], {"no_text": 2}),
        ("p/list.json", "json_records", {}, [], {"not_an_object": 3}),
        ("p/table.bin", "hsts_table", {}, HOSTS, {}),
    ],
)
def test_bad_entries_are_skipped_and_counted(wheel, pip, tmp_path, member, format, changes, wanted, skipped):
    intake = Intake("skip", 1.0)
    batches = read_batches(make_source(wheel, member, format, **changes), tmp_path / "c", intake)
    assert [text for batch in batches for text in batch.texts.to_pylist()] == wanted
    assert intake.describe()["skipped"] == skipped
    assert intake.num_lines == len(wanted) + sum(skipped.values())


def test_the_estimate_of_a_package_is_exact_once_it_is_here(wheel, pip, tmp_path):
    source = make_source(wheel, "p/table.bin", "hsts_table")
    assert count_estimate([source], tmp_path / "c") is None
    packages.fetch_wheel(source, tmp_path / "c")
    estimate = count_estimate([source], tmp_path / "c")
    assert estimate is not None
    assert (estimate.num_documents, estimate.num_characters) == (3, sum(map(len, HOSTS)))
    assert estimate.is_exact
