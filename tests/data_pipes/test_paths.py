import os

import pytest

from data_pipes.documents import SourceError
from data_pipes.reading.paths import find_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def find(path, folder, kind="text"):
    return [name.relative_to(folder).as_posix() for name in find_files(str(path), kind)]


def test_a_folder_gives_its_files_of_the_kind_sorted_without_hidden_ones(tmp_path):
    touch(tmp_path, "b.txt", "a/z.txt.gz", "a/y.md.zst", "a/x.jsonl", "c.tsv.xz", "d.parquet", "notes")
    touch(tmp_path, ".hidden.txt", ".git/a.txt", "a/.b/c.txt", "d.parquet.gz", "e.txt.bak")
    assert find(tmp_path, tmp_path) == ["a/y.md.zst", "a/z.txt.gz", "b.txt"]
    assert find(tmp_path, tmp_path, "jsonl") == find(tmp_path, tmp_path, "aligned") == ["a/x.jsonl"]
    assert find(tmp_path, tmp_path, "csv") == ["c.tsv.xz"]
    assert find(tmp_path, tmp_path, "parquet") == ["d.parquet"]


def test_a_glob_gives_what_matches_whatever_its_suffix_and_each_file_once(tmp_path):
    touch(tmp_path, "a/1.log", "a/b/2.log", "3.log")
    assert find(tmp_path / "**" / "*.log", tmp_path) == ["3.log", "a/1.log", "a/b/2.log"]
    assert find(f"{tmp_path}/**/**/*.log", tmp_path) == ["3.log", "a/1.log", "a/b/2.log"]
    assert find(tmp_path / "*", tmp_path) == ["3.log"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert find(tmp_path / "a[1].txt", tmp_path) == ["a[1].txt"]


def test_links_to_folders_are_followed_and_a_circle_of_them_is_an_error(tmp_path):
    touch(tmp_path, "data/a.txt", "other/b.txt")
    (tmp_path / "data" / "link").symlink_to("../other")
    (tmp_path / "data" / "again").symlink_to("../other")
    assert find(tmp_path / "data", tmp_path / "data") == ["a.txt", "again/b.txt", "link/b.txt"]
    (tmp_path / "other" / "back").symlink_to("../data")
    with pytest.raises(SourceError, match="is a link back to a folder above it; take the link away"):
        find(tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("missing-*.txt", r"no file matches '.*missing-\*\.txt' \(looked in .*correct data\.sources\.path"),
        ("missing.txt", r"no file matches '.*missing\.txt'"),
        ("", r"of a folder, text reads \.txt, \.text, \.md, also packed as \.gz, \.xz, \.zst"),
    ],
)
def test_no_file_at_all_is_an_error_that_says_where_it_looked(tmp_path, path, wanted):
    touch(tmp_path, "a.csv")
    with pytest.raises(SourceError, match=wanted):
        find_files(f"{tmp_path}/{path}", "text")


@pytest.mark.parametrize("path", ["", "a\0b", "a\udfff", 5])
def test_a_name_that_no_file_can_have_is_refused(path):
    with pytest.raises(SourceError, match="no file can have the name"):
        find_files(path, "text")


@pytest.mark.parametrize("path", ["x" * 300, "a.txt/b.txt"])
def test_a_path_that_leads_nowhere_is_an_error_of_its_own_kind(tmp_path, path):
    touch(tmp_path, "a.txt")
    with pytest.raises(SourceError, match="no file matches|cannot be read"):
        find_files(f"{tmp_path}/{path}", "text")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a.txt", "closed/b.txt")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"closed cannot be listed \(Permission denied\)"):
        find_files(str(tmp_path), "text")


def test_what_is_no_file_is_found_before_anything_is_read(tmp_path):
    touch(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    for path in (tmp_path, tmp_path / "*.txt", tmp_path / "b.txt"):
        with pytest.raises(SourceError, match="b.txt is a named pipe, wanted a file"):
            find_files(str(path), "text")


def test_file_names_in_messages_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.txt")
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"caf\\udce9\\n\.txt cannot be read"):
        find_files(str(tmp_path / "*.txt"), "text")
