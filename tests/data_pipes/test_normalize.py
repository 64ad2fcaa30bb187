import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.normalizing import count_letters
from data_pipes.align import AlignMap
from data_pipes.normalize import (
    NormalizerError,
    hash_normalizers,
    normalize_batch,
    normalize_documents,
    normalize_texts,
    parse_normalizers,
)
from data_pipes.normalizing.term_rules import SHIPPED, read_term_rules

SPECS = ["nfkc", "ligatures", "hyphens", "whitespace", {"kind": "terms", "file": "chronostratigraphy"}]
TERMS = parse_normalizers(SPECS[-1:])
ALL = parse_normalizers(SPECS)

# Words of the rule file, what stands between words, and anything else.
ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            "Wheeler Formation Fm Fm. Upper Lower Cambrian Stage Series X II 10 South China House Range The "
            "These Olenoides gilberti kingii genus Foobara Zone Shale Trilobites O. trilo- bites".split()
        ),
        st.sampled_from(
            [" ", " ", " ", "  ", "\n", "\r\n", "\n\n", "-", ". ", ".", ", ", "\u00a0", "\x00", "\t "]
        ),
        ODD,
    ),
    max_size=14,
)
DOCUMENTS = st.lists(PIECES.map("".join), max_size=5)


def bind(text, normalizers=TERMS):
    [(norm, align)] = normalize_documents([text], normalizers)
    check_map(text, norm, align)
    return norm


def check_map(raw, norm, align):
    assert (align.num_raw, align.num_norm) == (len(raw), len(norm))
    assert AlignMap.from_json(align.to_json()) == align
    for start, end in zip(
        [0, *align.segments[:, 1].tolist()], [*align.segments[:, 0].tolist(), len(raw)], strict=True
    ):
        if start < end:
            first, last = align.raw_to_norm(start, end)
            assert last - first == end - start
            for old, new in zip(raw[start:end], norm[first:last], strict=True):
                assert old == new or is_told(old, new)


def is_told(old, new):
    """Whether a single character may stand for another one: white space and joints, or one letter of NFKC."""
    if new in "_ \n-" and not old.isalnum():
        return True
    return unicodedata.normalize("NFKC", old) == new or (old, new) in {("I", "1"), ("V", "5")}


@pytest.mark.parametrize(
    ("raw", "norm"),
    [
        ("Upper  Wheeler  Formation yields trilobites", "Upper_Wheeler_Formation yields trilobites"),
        ("Upper Wheeler\nFormation", "Upper_Wheeler_Formation"),
        ("Upper Wheeler \r\n Formation", "Upper_Wheeler_Formation"),
        ("the Wheeler Fm of Utah", "the Wheeler_Formation of Utah"),
        ("the Wheeler Fm. of Utah", "the Wheeler_Formation of Utah"),
        ("the Wheeler Fm., and", "the Wheeler_Formation, and"),
        ("the Wheeler Fm. The", "the Wheeler_Formation. The"),
        ("the Wheeler Fm.", "the Wheeler_Formation."),
        ("the Prospect Qtz. is", "the Prospect_Quartzite is"),
        ("the Prospect Qtz. The", "the Prospect_Quartzite. The"),
        ("Wheeler Gp and Pioche Sh", "Wheeler_Group and Pioche_Shale"),
        ("Howell Lst. is", "Howell_Limestone is"),
        ("Wheeler Group", "Wheeler_Group"),
        ("The Wheeler Formation", "The Wheeler_Formation"),
        ("These Wheeler Formation", "These Wheeler_Formation"),
        ("Stage-10", "Stage_10"),
        ("Stage 10", "Stage_10"),
        ("Stage X", "Stage_10"),
        ("Stage\u201310", "Stage_10"),
        ("Cambrian Stage V", "Cambrian_Stage_5"),
        ("Cambrian Series 2", "Cambrian_Series_2"),
        ("Series II", "Series_2"),
        ("Miaolingian Series", "Miaolingian_Series"),
        ("Upper Cambrian rocks", "Upper_Cambrian rocks"),
        ("Middle Cambrian Wheeler Formation", "Middle_Cambrian Wheeler_Formation"),
        ("in South China", "in South_China"),
        ("in S. China", "in South_China"),
        ("South\nChina", "South_China"),
        ("British Columbia", "British_Columbia"),
        ("House Range yields", "House_Range yields"),
        ("Emu Bay Shale", "Emu_Bay_Shale"),
        ("Sangre de Cristo Range", "Sangre_de_Cristo_Range"),
        ("Isle of Wight", "Isle_of_Wight"),
        ("the South Saskatchewan River", "the South_Saskatchewan_River"),
        ("St. David's and St. Lawrence River", "St._David's and St._Lawrence_River"),
        ("Olenoides gilberti", "Olenoides_gilberti"),
        ("Olenoides\ngilberti is", "Olenoides_gilberti is"),
        ("O. gilberti", "O._gilberti"),
        ("O.gilberti", "O._gilberti"),
        ("Olenoides gilberti, O.  serratus", "Olenoides_gilberti, O._serratus"),
        ("Ptychagnostus atavus Zone", "Ptychagnostus_atavus_Zone"),
        ("the genus Quuxia. Quuxia bella", "the genus Quuxia. Quuxia_bella"),
        ("South China Wheeler Formation", "South_China Wheeler_Formation"),
    ],
)
def test_terms_are_bound_into_one_word(raw, norm):
    assert bind(raw) == norm


@pytest.mark.parametrize(
    "text",
    [
        "These trilobites",
        "Specimens collected",
        "The Wheeler",
        "The Formation",
        "Wheeler\n\nFormation",
        "Wheeler. Formation",
        "Wheeler, Formation",
        "Stage one",
        "stage 10",
        "Olenoides fauna",
        "Olenoides is",
        "Olenoides Gilberti",
        "Quuxia bella. The genus Quuxia",
        "Capsella bursa-pastoris",
        "the genus Equus: Equus bursa-pastoris",
        "South-China",
        "Wheeler_Formation",
        "Mr. Wheeler",
        "two U. S. gallons",
        "the genus ",
        "Wheeler Qtz",
        "Anti-Atlas",
        "the Anti-Atlas Mountains",
        "",
        "\x00",
    ],
)
def test_other_words_are_left_alone(text):
    assert bind(text) == text


def test_spans_of_a_bound_term_go_to_the_raw_term_and_back():
    raw = "from the Upper  Wheeler Fm. of Utah"
    [(norm, align)] = normalize_documents([raw], TERMS)
    start = norm.index("Upper_Wheeler_Formation")
    end = start + len("Upper_Wheeler_Formation")
    raw_start, raw_end = align.norm_to_raw(start, end)
    assert raw[raw_start:raw_end] == "Upper  Wheeler Fm."
    assert align.raw_to_norm(raw_start, raw_end) == (start, end)
    assert align.to_json() == {"length": len(raw), "changes": [14, 2, 1, 8, 3, 9]}


def test_a_genus_is_learned_in_its_own_document_only():
    texts = ["the genus Quuxia", "Quuxia bella", "the genus Quuxia, Quuxia bella"]
    assert [norm for norm, _ in normalize_documents(texts, TERMS)] == [
        *texts[:2],
        "the genus Quuxia, Quuxia_bella",
    ]


def test_an_initial_needs_a_genus_listed_or_learned_before(tmp_path):
    file = write(
        tmp_path,
        "words: {genus: {words: [Olenus], learn: {from: cap, after: [genus]}}, cap: {shape: '[A-Z][a-z]+'},\n"
        "  low: {shape: '[a-z]+us'}, initial: {shape: '[A-Z]\\.'}}\n"
        "rules: {short: {pattern: initial low, initial_of: genus}}\n",
    )
    texts = [
        "O. minus, B. minus",
        "genus Bella; B. minus",
        "B. minus; genus Bella",
        "C. minus",
        "genus Bella",
    ]
    assert [norm for norm, _ in normalize_documents(texts, parse_normalizers([file]))] == [
        "O._minus, B. minus",
        "genus Bella; B._minus",
        *texts[2:],
    ]


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None)
def test_no_character_is_lost_and_every_map_fits_its_texts(texts):
    for normalizers in (TERMS, ALL):
        done = normalize_batch(texts, normalizers)
        for raw, norm, align in zip(texts, done.texts, done.align_maps, strict=True):
            check_map(raw, norm, align)
        for document, start, end in zip(done.documents, done.bound.starts, done.bound.ends, strict=True):
            norm_start, norm_end = done.align_maps[document].raw_to_norm(int(start), int(end))
            assert "_" in done.texts[document][norm_start:norm_end]
            assert 0 <= start < end <= len(texts[document])


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None)
def test_changed_segments_keep_their_letters_or_are_spellings_of_the_file(texts):
    for raw, (norm, align) in zip(texts, normalize_documents(texts, TERMS), strict=True):
        for start, end, norm_start, norm_end in align.segments.tolist():
            old, new = (re.sub(r"[\W_]", "", part) for part in (raw[start:end], norm[norm_start:norm_end]))
            assert old == new or (old, new) in {("Fm", "Formation"), ("X", "10"), ("II", "2"), ("S", "South")}


@given(DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_documents_do_not_influence_each_other(texts):
    for normalizers in (TERMS, ALL):
        together = normalize_documents(texts, normalizers)
        assert together == [normalize_documents([text], normalizers)[0] for text in texts]
        plain = normalize_texts(pa.array(texts, pa.string()), normalizers).to_pylist()
        assert plain == [norm for norm, _ in together]


@given(DOCUMENTS)
@settings(max_examples=60, deadline=None)
def test_binding_twice_binds_nothing_more(texts):
    once = [norm for norm, _ in normalize_documents(texts, TERMS)]
    assert [norm for norm, _ in normalize_documents(once, TERMS)] == once


def test_lone_surrogates_pass():
    assert bind("\ud800 Wheeler Fm \udfff", TERMS) == "\ud800 Wheeler_Formation \udfff"
    assert bind("\ud800 e\u0301 \udfff", ALL) == "\ud800 \u00e9 \udfff"


def test_batches_of_many_documents_give_what_single_ones_give(monkeypatch):
    texts = ["", "the Wheeler Fm. of", "", " Stage  X ", "x" * 50, ""] * 7
    whole = normalize_batch(texts, ALL)
    monkeypatch.setattr("data_pipes.normalize.BATCH_CHARACTERS", 40)
    parts = normalize_batch(texts, ALL)
    assert (parts.texts, parts.align_maps, parts.bound.rules) == (
        whole.texts,
        whole.align_maps,
        whole.bound.rules,
    )
    for name in ("starts", "ends"):
        assert np.array_equal(getattr(parts.bound, name), getattr(whole.bound, name))
    assert np.array_equal(parts.documents, whole.documents)
    assert parts.documents.tolist() == [place for place in range(42) if place % 6 in (1, 3)]
    assert normalize_texts(pa.array(texts), ALL).to_pylist() == whole.texts
    assert normalize_texts(pa.array(texts), []).to_pylist() == texts


# Characters that combine, decompose, or stand in another order.
COMPOSING = st.text(
    st.one_of(
        st.sampled_from(
            "aeoA \u0301\u0323\u0327\u0308\u030a\u0345\u1100\u1161\u11a8\uac00\u11a7\u314f\u3131\uff9e\uff76"
            "\ufb01\u00bd\u212b\u2126\u1e9b\u0344\u0f73\u0f71\u09c7\u09be\u0dd9\u0dcf\x00\u2003\u3099\u304b\u1d15e"
        ),
        st.characters(),
    ),
    max_size=12,
)


@given(COMPOSING)
@settings(max_examples=300, deadline=None)
def test_nfkc_is_pythons_and_its_map_keeps_what_did_not_change(text):
    [(norm, align)] = normalize_documents([text], parse_normalizers(["nfkc"]))
    assert norm == unicodedata.normalize("NFKC", text)
    check_map(text, norm, align)


@pytest.mark.parametrize(
    "text",
    # A second letter that is no combining mark: Bengali, Sinhala, Hangul vowels and finals, halfwidth kana.
    ["\u09c7\u09be", "\u0dd9\u0dcf", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u3131\u314f", "\uff76\uff9e"],
)
def test_letters_that_compose_are_one_cluster(text):
    raw = f"a{text}b"
    [(norm, align)] = normalize_documents([raw], parse_normalizers(["nfkc"]))
    assert norm == unicodedata.normalize("NFKC", raw)
    assert len(norm) < len(raw)
    assert align.segments.tolist() == [[1, len(raw) - 1, 1, len(norm) - 1]]


def test_nfkc_maps_are_fine():
    [(norm, align)] = normalize_documents(["a\u00bdb e\u0301x"], parse_normalizers(["nfkc"]))
    assert norm == "a1\u20442b \u00e9x"
    assert align.segments.tolist() == [[1, 2, 1, 4], [4, 6, 6, 7]]


@given(COMPOSING)
def test_ligatures_are_letters_and_nothing_else_changes(text):
    wanted = "".join(unicodedata.normalize("NFKC", c) if "\ufb00" <= c <= "\ufb06" else c for c in text)
    assert bind(text, parse_normalizers(["ligatures"])) == wanted


@pytest.mark.parametrize(
    ("raw", "norm"),
    [
        ("trilo-\nbites", "trilobites"),
        ("trilo- \r\n  bites", "trilobites"),
        ("trilo\u00ad\nbites, tri\u00adlo", "trilobites, trilo"),
        ("Anglo-\nSaxon", "Anglo-Saxon"),
        ("well-known - a\n- b", "well-known - a\n- b"),
        ("1990-\n1995", "1990-\n1995"),
        ("pre\u2010war\u2011time", "pre-war-time"),
        ("trilo-\n\nbites", "trilo-\n\nbites"),
    ],
)
def test_hyphens_at_line_ends_join(raw, norm):
    assert bind(raw, parse_normalizers(["hyphens"])) == norm


@given(st.text(st.sampled_from("ab \t\n\r\u00a0\u2028\x0b"), max_size=20))
def test_white_space_becomes_a_space_a_line_break_or_an_empty_line(text):
    def shorten(match):
        num_breaks = len(re.findall("\r\n|[\n\r\v\u2028]", match[0]))
        return "\n" * min(num_breaks, 2) or " "

    wanted = re.sub(r"\s+", shorten, text.strip())
    [(norm, align)] = normalize_documents([text], parse_normalizers(["whitespace"]))
    assert norm == wanted
    check_map(text, norm, align)


def write(folder, text):
    path = folder / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return {"kind": "terms", "file": str(path)}


OWN = """
words:
  first: [a]
  second: [b]
  name: {shape: "[A-D]", but_not: [unit]}
  unit: {words: [D, u], spellings: {unit: [un, un.]}}
terms:
  pair: {words: [a b, a b c, A-b, b c d e], spellings: {long form: [l f]}}
rules:
  made: ["name{1,2} unit", "first? second? unit"]
"""


def match_slowly(text):
    """The terms of OWN, one word at a time: an independent reading of the same rules."""
    sequences = {
        "a b": "a_b", "a b c": "a_b_c", "A-b": "A-b", "b c d e": "b_c_d_e", "l f": "long_form",
        "long form": "long_form",
    }  # fmt: skip
    names, units = "ABC", {"D": "D", "u": "u", "unit": "unit", "un": "unit"}
    parts = re.findall(r"\w+|\W+", text)
    done, place = "", 0
    while place < len(parts):
        best = (0, "")
        for size in (7, 5, 3):
            run = parts[place : place + size]
            if len(run) < size or not re.fullmatch(r"\w+", run[0]):
                continue
            words, gaps = run[::2], run[1::2]
            spaces = all(re.fullmatch(r"[ \t]*\n?[ \t]*", gap) for gap in gaps)
            key = words[0] + "".join(
                (" " if spaces else gap) + word for gap, word in zip(gaps, words[1:], strict=True)
            )
            front = words[:-1]
            is_made = words[-1] in units and (
                (len(front) <= 2 and all(word in names for word in front) and len(words[0]) == 1)
                or front in (["a"], ["b"], ["a", "b"])
            )
            following = parts[place + size : place + size + 2]
            is_cut = (
                words[-1].islower() and following[:1] == ["-"] and following[1:] and following[1].islower()
            )
            if key in sequences:
                best = max(best, (size, sequences[key]), key=lambda pair: pair[0])
            elif is_made and spaces and not is_cut:
                best = max(best, (size, "_".join([*front, units[words[-1]]])), key=lambda pair: pair[0])
        done += best[1] or parts[place]
        place += best[0] or 1
    return done


@given(
    st.lists(
        st.sampled_from(
            ["a", "b", "c", "d", "e", "A", "B", "D", "u", "un", "unit", "l", "f", "long", "form", "ab"]
        ),
        max_size=12,
    ),
    st.lists(st.sampled_from([" ", " ", " ", "  ", "\n", "-", ", ", "\n\n"]), min_size=12, max_size=12),
)
@settings(max_examples=250, deadline=None)
def test_the_longest_of_the_first_terms_wins_as_a_slow_reader_finds(words, gaps):
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=False))
    assert bind(text, OWN_NORMALIZERS[0]) == match_slowly(text)


OWN_NORMALIZERS = []


@pytest.fixture(scope="module", autouse=True)
def own_normalizers(tmp_path_factory):
    OWN_NORMALIZERS.append(parse_normalizers([write(tmp_path_factory.mktemp("own"), OWN)]))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("word: {a: [b]}\nrules: {r: a a}", "the key 'word' is not known .did you mean 'words'?"),
        ("words: {a: {wrds: [b]}}\nrules: {r: a a}", "words.a: the key 'wrds' .* 'words'"),
        ("words: {a: [b], a: [c]}\nrules: {r: a a}", "line 1: the key 'a' stands twice"),
        ("words: {a: b}\nrules: {r: a a}", "words.a: wanted a mapping of names, found the text 'b'"),
        ("words: {a: [[b]]}\nrules: {r: a a}", "words.a.words: wanted a list of words"),
        ("words: {a: [b c]}\nrules: {r: a a}", "'b c' is not a single word .* under terms"),
        ("words: {a: {shape: '(['}}\nrules: {r: a a}", "words.a.shape: .* no regular expression"),
        ("words: {a: {but_not: [a]}}\nrules: {r: a a}", "words.a: has no words"),
        ("words: {a: {words: [x], but_not: [b]}}\nrules: {r: a a}", "there is no class 'b'"),
        ("words: {a: {also: [b]}, b: {also: [a]}}\nrules: {r: a a}", "refers to itself"),
        ("words: {a: {words: [x], learn: {from: a}}}\nrules: {r: a a}", "wanted both `from`"),
        ("words: {a: {spellings: {x: [z], y: [z]}}}\nrules: {r: a a}", "'z' has two normal forms"),
        ("words: {unit: [x]}\nrules: {r: unti unit}", "no class 'unti' .did you mean 'unit'"),
        ("words: {a: [x]}\nrules: {r: a}", "must stand for 2 to 8 words"),
        ("words: {a: [x]}\nrules: {r: 'a{2,1} a'}", "at least 2 and at most 1"),
        ("words: {a: [x]}\nrules: {r: a+ a}", "'a\\+' is no item"),
        ("words: {a: [x]}\nrules: {r: '" + "a? " * 8 + "'}", "stands for 256 sequences"),
        ("words: {a: [x]}\nrules: {r: {pattern: a a, joints: [dot]}}", "'dot' is not known; known are space"),
        ("words: {a: [x]}\nrules: {r: {joints: [space]}}", "rules.r: has no pattern"),
        (
            "words: {a: [x]}\nrules: {r: {pattern: a a, initial_of: b}}",
            "rules.r.initial_of: there is no class",
        ),
        ("terms: {t: [a/b]}", "has '/' in it"),
        ("terms: {t: ['(a) b']}", "must begin and end with a letter"),
        ("terms: {t: [a b c d e f g h i]}", "more than 8 words"),
        ("words: {a: [x]}", "binds nothing"),
        ("words: [", "cannot be read"),
        ("- a", "the file: wanted a mapping"),
    ],
)
def test_a_wrong_rule_file_says_where_and_what(tmp_path, text, wanted):
    with pytest.raises(NormalizerError, match=wanted) as caught:
        parse_normalizers([write(tmp_path, text)])
    assert "rules.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("nkfc", "'nkfc' is not known .did you mean 'nfkc'"),
        ({"kind": "whitespace", "file": "x"}, "'whitespace' has no key 'file'; it takes none"),
        ({"kind": "terms", "fil": "x"}, "has no key 'fil' .did you mean 'file'"),
        ("terms", "lacks the key file"),
        ({"kind": "terms", "file": "chronostratigrafy"}, "did you mean 'chronostratigraphy'"),
        ({}, "normaliser None is not known"),
    ],
)
def test_a_wrong_description_says_what_is_known(spec, wanted):
    with pytest.raises(NormalizerError, match=wanted):
        parse_normalizers([spec])


def test_the_hash_follows_the_content_of_rule_files_and_not_their_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write(tmp_path / "a", OWN), write(tmp_path / "b", OWN)
    assert hash_normalizers([first]) == hash_normalizers([second])
    write(tmp_path / "b", OWN + "# more\n")
    assert hash_normalizers([first]) != hash_normalizers([second])
    assert [entry["kind"] for entry in hash_normalizers(SPECS)] == [*SPECS[:4], "terms"]
    assert hash_normalizers(["nfkc"]) == hash_normalizers([{"kind": "nfkc", "file": None}])
    assert "unicode" in hash_normalizers(["nfkc"])[0]


def test_the_shipped_file_lists_every_word_in_one_sense():
    for path in SHIPPED.glob("*.yaml"):
        rules = read_term_rules(path)
        assert rules.patterns
        assert rules.spellings()["Fm."] == "Formation"
        assert path.read_bytes().isascii()


def test_the_count_of_letters_finds_each_one_that_was_lost():
    raw = "Upper  Wheeler Fm of Utah, \ufb01ne Stage X and S. China"
    [(norm, align)] = normalize_documents([raw], ALL)
    record = {"raw_text": raw, "norm_text": norm, "align_map": align.to_json()}
    forms = read_term_rules(SHIPPED / "chronostratigraphy.yaml").spellings()
    # Fm, X and S are spellings, the ligature is one letter.
    told = {"kept": 33, "equivalent": 1, "spelled": 4, "lost": 0, "invented": 0, "documents": 1, "words": 11}
    assert count_letters([record], forms) == told
    changed = record | {"norm_text": norm.replace("Utah", "Utbh")}
    assert count_letters([changed], forms) == told | {"kept": 32, "lost": 1, "invented": 1}
    assert count_letters([record], {})["lost"] == 4
    eaten = {"raw_text": "a b c", "norm_text": "a c", "align_map": {"length": 5, "changes": [2, 2, 0]}}
    assert count_letters([eaten], forms)["lost"] == 1


def test_plain_yaml_words_stay_strings(tmp_path):
    file = write(tmp_path, "words: {a: [No, yes, 10, null]}\nrules: {r: a a}\n")
    assert bind("No yes, 10 null", parse_normalizers([file])) == "No_yes, 10_null"
