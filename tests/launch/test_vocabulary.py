import json

import pytest
from transformers import AutoTokenizer

from launch import vocabulary
from launch.recipe_file import read_recipe
from launch.verdict import REQUEST, RunError
from tests.data_pipes.tiny_tokenizers import make_byte_level, make_unigram

TEXTS = [f"The reef {number} of the Wheeler_Formation, they say; trilobites" for number in range(60)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    make_unigram().save_pretrained(str(tmp_path / "base"))
    (tmp_path / "list.txt").write_text("# known\nWheeler_Formation\nthe\n\nOlenellus\n", encoding="utf-8")
    return read(tmp_path)


def read(tmp_path, *overrides):
    source = {"kind": "jsonl", "path": str(tmp_path / "corpus.jsonl")}
    return read_recipe(
        "deberta-tiny-encyclopedia-wwm",
        [
            f"data.sources=[{json.dumps(source)}]",
            f"tokenizer={json.dumps({'source': str(tmp_path / 'base')})}",
            *overrides,
        ],
    )


def test_mine_extend_and_report_follow_each_other(corpus, tmp_path, capsys):
    terms, out = tmp_path / "terms.tsv", tmp_path / "new"
    assert vocabulary.mine(corpus, terms, lists=[tmp_path / "list.txt"], num_terms=10) == 0
    said = capsys.readouterr().err
    assert "1 of the lists" in said
    assert "refused listed terms: base vocabulary 1, not in the corpus 1" in said
    rows = [line.split("\t") for line in terms.read_text().splitlines() if not line.startswith("#")]
    assert {row[0] for row in rows} == {"reef", "Wheeler_Formation", "trilobites"}
    assert all(int(score) == int(count) * (int(pieces) - 1) for _, count, pieces, score, _ in rows)
    assert "# refused\tOlenellus\tnot in the corpus" in terms.read_text()

    assert vocabulary.extend(tmp_path / "base", terms, out) == 0
    assert "3 new pieces" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(str(out)).tokenize("the reef") == ["\u2581the", "\u2581reef"]

    assert vocabulary.report(corpus, str(tmp_path / "base"), str(out), terms=terms, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_documents"] == len(TEXTS)
    assert (found["before"]["share_cut"], found["after"]["share_cut"]) == (1.0, 0.0)
    assert vocabulary.report(corpus, str(tmp_path / "base"), str(out)) == 0
    table = capsys.readouterr().out
    assert "domain terms cut" in table
    assert "100.0%" in table


def test_only_training_documents_are_mined(tmp_path, corpus, capsys):
    def count(share):
        recipe = read(tmp_path, f"data.evaluation_share={share}")
        out = tmp_path / f"terms-{share}.tsv"
        vocabulary.mine(recipe, out)
        rows = dict(line.split("\t")[:2] for line in out.read_text().splitlines() if not line.startswith("#"))
        return int(rows["reef"])

    assert count(0) == len(TEXTS)
    assert 10 < count(0.4) < 55


def test_the_recipe_cleans_normalises_and_limits(tmp_path, corpus):
    recipe = read(tmp_path, "data.clean=[{kind: lower}]", "data.limit=20", "data.evaluation_share=0")
    vocabulary.mine(recipe, tmp_path / "terms.tsv")
    text = (tmp_path / "terms.tsv").read_text()
    assert "wheeler_formation\t20\t" in text


def test_a_list_from_elsewhere_may_have_a_byte_order_mark_and_comments(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffreef\r\n# no\r\n\r\n T\u00e4x \tx\r\n".encode())
    assert vocabulary.read_terms(tmp_path / "a.txt") == ["reef", "T\u00e4x"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_that_cannot_be_read_is_the_requests_fault(tmp_path, content):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(RunError, match="wanted one term a line, UTF-8") as caught:
        vocabulary.read_terms(tmp_path / "a.txt")
    assert caught.value.verdict.exit_code == REQUEST


def test_a_list_that_is_there_is_not_overwritten(corpus, tmp_path):
    (tmp_path / "terms.tsv").write_text("by hand\n")
    with pytest.raises(RunError, match="is there already"):
        vocabulary.mine(corpus, tmp_path / "terms.tsv")
    assert (tmp_path / "terms.tsv").read_text() == "by hand\n"


def test_what_the_data_says_is_wrong_is_the_requests_fault(corpus, tmp_path):
    make_byte_level().save_pretrained(str(tmp_path / "bytes"))
    (tmp_path / "a.txt").write_text("reef\n")
    with pytest.raises(RunError, match="BPE tokenizer cannot be extended") as caught:
        vocabulary.extend(tmp_path / "bytes", tmp_path / "a.txt", tmp_path / "new")
    assert caught.value.verdict.exit_code == REQUEST
    nothing = read(tmp_path, "data.clean=[{kind: length, min: 1000}]")
    with pytest.raises(RunError, match="none of the 60 documents is left"):
        vocabulary.mine(nothing, tmp_path / "terms.tsv")
    assert not (tmp_path / "terms.tsv").exists()


def test_a_tokenizer_that_is_not_trained_yet_is_named_as_the_reason(corpus, tmp_path):
    recipe = read(tmp_path, "tokenizer={source: train, kind: unigram, vocab_size: 60}")
    with pytest.raises(RunError, match="is not trained yet; run `maskwright data prepare`"):
        vocabulary.mine(recipe, tmp_path / "terms.tsv")
    assert vocabulary.mine(recipe, tmp_path / "terms.tsv", tokenizer=str(tmp_path / "base")) == 0


def test_the_tokenizer_of_a_prepared_recipe_is_found(corpus, tmp_path):
    from launch.corpus import prepare_corpus

    recipe = read(
        tmp_path, "tokenizer={source: train, kind: unigram, vocab_size: 40}", "data.evaluation_share=0.2"
    )
    prepare_corpus(recipe)
    assert vocabulary.mine(recipe, tmp_path / "terms.tsv") == 0


def test_lines_that_were_skipped_are_counted_and_shown(corpus, tmp_path, capsys):
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("no json\n")
    skipping = read(tmp_path, "data.bad_input={policy: skip, max_bad_share: 0.1}")
    assert vocabulary.mine(skipping, tmp_path / "terms.tsv") == 0
    said = capsys.readouterr().err
    assert f"{len(TEXTS) + 1} lines, {len(TEXTS)} good" in said
    assert "skipped, not_json: 1" in said
    assert "corpus.jsonl, line 61" in said
