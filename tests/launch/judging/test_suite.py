import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from data_pipes.collate import CLS_CHARACTER, MASK_CHARACTER, SEP_CHARACTER
from data_pipes.feed import FrozenBatches
from launch.build import build_layout, build_masking, build_tokenizer
from launch.corpus import prepare_corpus
from launch.judging import suite as suite_module
from launch.judging import words as words_module
from launch.judging.build import build_suite, name_corpora
from launch.judging.fragments import decode_documents
from launch.judging.passes import Runner
from launch.judging.probe import encode_batch
from launch.judging.words import take_all
from launch.recipe_file import read_recipe
from launch.recipe_metrics import Metrics
from launch.stop import StopAsked
from launch.verdict import RunError
from modeling import hf
from modeling.heads import MaskedLMOutput, find_targets
from modeling.pair import build_pair
from tests.launch.judging.small import run_ranks

DEBERTA, CANINE = "deberta-tiny-encyclopedia-wwm", "canine-tiny-domains-char"
# Terms in letters that no other word has, so that a model can know the pieces of terms and no others.
TERMS = {"greek": ["αβγ", "δελτα_ζητα", "μυ"], "more": ["δελτα_ζητα", "ωμεγα"]}
PLAIN = "the old river cut deep beds of grey stone and sand while rain fell on far green hills".split()


def write_corpus(path, num_documents=120, *, with_terms=True, seed=0):
    generator = np.random.default_rng(seed)
    terms = [term.replace("_", " ") for terms in TERMS.values() for term in terms[:2]]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_documents):
            words = generator.choice(PLAIN, 12).tolist()
            if with_terms:
                for place in generator.integers(0, 10, 2):
                    words[place] = str(generator.choice(terms))
            file.write(json.dumps({"text": " ".join(words) + "."}, ensure_ascii=False) + "\n")
    return str(path)


class Setting:
    """A recipe with its store, and suites on it."""

    def __init__(self, recipe, overrides):
        self.recipe = read_recipe(recipe, overrides)
        self.store = prepare_corpus(self.recipe)
        self.tokenizer = build_tokenizer(self.recipe, self.store)
        self.masking = build_masking(self.recipe, self.tokenizer, self.store, is_frozen=True)
        self.layout = build_layout(self.recipe, self.tokenizer, self.store)

    def build(self, rank=0, world_size=1, micro_batch=4, **metrics):
        wanted = Metrics.model_validate(metrics)
        evaluation = self.recipe.evaluation.model_copy(update={"metrics": wanted})
        recipe = self.recipe.model_copy(update={"evaluation": evaluation})
        runner = Runner(self.layout, micro_batch, torch.device("cpu"), rank, world_size)
        return build_suite(recipe, self.store, self.tokenizer, masking=self.masking, runner=runner)

    def make_batches(self, micro_batch=4):
        return FrozenBatches(
            self.store.evaluation,
            layout=self.layout,
            masking=self.masking,
            seed=self.recipe.evaluation.seed,
            micro_batch=micro_batch,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def lists(folder):
    found = {}
    for name, terms in TERMS.items():
        (folder / f"{name}.txt").write_text("\n".join(terms), encoding="utf-8")
        found[name] = str(folder / f"{name}.txt")
    return found


@pytest.fixture
def words(folder):
    source = f"{{kind: jsonl, path: {write_corpus(folder / 'corpus.jsonl')}}}"
    return Setting(
        DEBERTA, [f"data.sources=[{source}]", "tokenizer.vocab_size=50", "data.evaluation_share=0.4"]
    )


@pytest.fixture
def plain(folder):
    return write_corpus(folder / "plain.jsonl", 30, with_terms=False, seed=1)


class Knowing(nn.Module):
    """A model that is sure of some pieces wherever they are hidden, and has no idea of the rest."""

    def __init__(self, tokenizer, is_known):
        super().__init__()
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.gains = torch.tensor([8.0 * is_known(name) for name in names])

    def forward(self, input_ids, attention_mask, labels, document_ids=None):
        targets = find_targets(labels)
        logits = torch.zeros(len(targets.labels), len(self.gains))
        logits[torch.arange(len(targets.labels)), targets.labels] = self.gains[targets.labels]
        return MaskedLMOutput(logits=logits)


def is_greek(name):
    return any("\u03b1" <= letter <= "\u03c9" for letter in name)


def is_plain(name):
    return any("a" <= letter <= "z" for letter in name)


def test_terms_are_told_from_the_rest(words, lists, plain):
    suite = words.build(
        terms={"lists": lists}, rare_words={}, general={"sources": [{"kind": "jsonl", "path": plain}]}
    )
    size = len(words.tokenizer)
    none, terms, rest = (
        suite.measure(Knowing(words.tokenizer, known)) for known in (lambda name: False, is_greek, is_plain)
    )
    keys = [f"eval/main/terms/{part}perplexity" for part in ("", "greek/", "more/")]
    for key in keys:
        assert none[key] == pytest.approx(size, rel=1e-6)
        # Knowing the rest does not help at terms, and knowing terms does, blanks and marks apart.
        assert rest[key] == none[key]
        assert terms[key] < 0.2 * size
    everything = suite.measure(Knowing(words.tokenizer, lambda name: True))
    assert everything["eval/main/terms/greek/exact"] == 1 > terms["eval/main/terms/greek/exact"]
    assert (
        terms["eval/general/perplexity"] == none["eval/general/perplexity"] == pytest.approx(size, rel=1e-6)
    )
    assert rest["eval/general/perplexity"] < 0.2 * size
    assert none["eval/main/terms/num_occurrences"] > 20


def test_a_general_corpus_is_judged_as_the_main_one_is(words, lists, folder):
    """By all that the recipe asks for: of a corpus of the very evaluation rows the figures are equal."""
    texts = decode_documents(take_all(words.store.evaluation), words.tokenizer)
    same = folder / "same.jsonl"
    same.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    general = {"sources": [{"kind": "jsonl", "path": str(same)}]}
    wanted = {**ALL, "terms": {"lists": lists}, "fragmentation": True, "pseudo": {"num_pieces": 10**6}}
    found = words.build(**wanted, general=general).measure(Knowing(words.tokenizer, is_plain))
    main = {name.removeprefix("eval/main/"): value for name, value in found.items() if "/main/" in name}
    other = {
        name.removeprefix("eval/general/"): value for name, value in found.items() if "/general/" in name
    }
    more = {"loss", "perplexity", "accuracy", "num_targets", "unigram_perplexity", "neighbours_perplexity"}
    assert set(other) == set(main) | more
    # The masks are other ones, as rows lie in another order, and so are the targets.
    by_chance = ("recovery/", "rare_words/", "accuracy_top5")
    fixed = [name for name in main if not name.startswith(by_chance)]
    assert {name.split("/")[0] for name in fixed} == {"terms", "fragmentation", "pseudo"}
    for name in fixed:
        assert other[name] == pytest.approx(main[name], rel=1e-9), name


def test_words_that_only_the_general_corpus_has_are_counted_too(words, folder):
    path = folder / "new.jsonl"
    path.write_text(json.dumps({"text": " ".join(["stonehills", "rainsand", "greenold"] * 12)}) + "\n")
    suite = words.build(rare_words={}, general={"sources": [{"kind": "jsonl", "path": str(path)}]})
    found = suite.measure(Knowing(words.tokenizer, is_plain))
    assert found["eval/general/rare_words/unseen/num_targets"] == found["eval/general/num_targets"] > 5


def test_a_corpus_without_terms_gives_no_figure(words, folder):
    (folder / "absent.txt").write_text("graptolite\nwalcottella", encoding="utf-8")
    suite = words.build(terms={"lists": {"absent": str(folder / "absent.txt")}}, fragmentation=True)
    found = suite.measure(Knowing(words.tokenizer, is_plain))
    assert not [name for name in found if "terms" in name]
    assert found["eval/main/fragmentation/pieces_per_word"] > 1


def test_the_groups_of_frequency_hold_all_targets(words):
    found = words.build(rare_words={"bounds": [1, 5, 50]}).measure(Knowing(words.tokenizer, is_plain))
    counts = {name: value for name, value in found.items() if name.endswith("num_targets") and "rare" in name}
    labels = torch.cat([batch["labels"].flatten() for _, batch in words.make_batches()])
    assert sum(counts.values()) == (labels >= 0).sum()
    assert len(counts) > 1


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_words_of_a_sampled_corpus_are_grouped_by_what_the_whole_holds(words, num_ranks, monkeypatch):
    """A plain word stands some 50 times in the training rows, and some 12 times in a quarter of them."""
    monkeypatch.setattr(words_module, "_CHUNK_PIECES", 150)
    num_pieces = int(np.sum(words.store.train.lengths))
    wanted = {"bounds": [1, 30], "max_pieces": num_pieces // 4}

    def run(rank, add):
        monkeypatch.setattr(suite_module, "sum_over_ranks", add)
        suite = words.build(rank, num_ranks, rare_words=wanted)
        return suite.measure(Knowing(words.tokenizer, is_plain))

    found = run_ranks(num_ranks, run)[0]
    often, seldom = (found[f"eval/main/rare_words/{name}/num_targets"] for name in ("30-up", "1-29"))
    assert often > seldom


def make_deberta(setting):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.build("deberta", config=sizes, num_pieces=len(setting.tokenizer), dropout=0.0, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.eval()


ALL = {"rare_words": {}, "pseudo": {"num_pieces": 100}}


def test_batches_of_the_evaluation_need_no_second_pass(words, lists):
    suite, model = words.build(**ALL, terms={"lists": lists}), make_deberta(words)
    alone = suite.measure(model)
    runs = []
    for number, batch in words.make_batches():
        with torch.no_grad():
            suite.observe(number, batch["labels"], model, model(**batch))
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    assert suite.measure(model) == alone
    handle.remove()
    num_copies = sum(-(-len(section.rows.lengths) // 4) for section in suite.spans)
    assert len(runs) == num_copies
    # And the next evaluation starts anew, also after one that was cut short.
    assert suite.measure(model) == alone
    with torch.no_grad():
        number, batch = next(iter(words.make_batches()))
        suite.observe(number, batch["labels"], model, model(**batch))
    suite.restart()
    assert suite.measure(model) == alone


def test_a_loss_in_chunks_gives_the_same_figures(words):
    suite, model = words.build(**ALL), make_deberta(words)
    whole = suite.measure(model)
    model.loss_chunk = 3
    with torch.no_grad():
        number, batch = next(iter(words.make_batches()))
        suite.observe(number, batch["labels"], model, model(**batch))
    assert suite.measure(model) == pytest.approx(whole, rel=1e-4)
    assert model.loss_chunk == 3


def test_whole_rows_are_hidden_unit_by_unit_of_the_masking(words):
    ((pieces,), (whole,)) = (
        words.build(pseudo={"unit": unit, "num_pieces": 200}).spans for unit in ("piece", "masking")
    )
    assert set(pieces.rows.spans.lengths) == {1}
    assert whole.rows.spans.lengths.max() > 3
    assert pieces.rows.spans.lengths.sum() == whole.rows.spans.lengths.sum() >= 190


def test_a_measurement_can_be_stopped_and_repeated(words):
    suite, model = words.build(**ALL), make_deberta(words)
    expected, ticks = suite.measure(model), []

    def stop_later():
        ticks.append(1)
        if len(ticks) == 3:
            raise StopAsked

    model.train()
    with pytest.raises(StopAsked):
        suite.measure(model, stop_later)
    assert model.training
    suite.restart()
    assert suite.measure(model) == expected


def test_a_model_in_training_is_judged_without_dropout_and_goes_on(words):
    suite, model = words.build(**ALL), make_deberta(words)
    expected = suite.measure(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout) or hasattr(module, "drop_prob"):
            module.p = module.drop_prob = 0.5
    model.train()
    assert suite.measure(model) == expected
    assert model.training


def test_two_ranks_give_the_bits_of_one(words, lists, folder, monkeypatch):
    monkeypatch.setattr(words_module, "_CHUNK_PIECES", 300)
    model = make_deberta(words)
    wanted = {**ALL, "terms": {"lists": lists}, "probes": [{"name": "topic", "path": write_topics(folder)}]}
    other = write_corpus(folder / "other.jsonl", 30, seed=2)
    wanted["general"] = {"sources": [{"kind": "jsonl", "path": other}]}
    one = words.build(**wanted).measure(model)
    assert {"eval/general/terms/perplexity", "eval/general/neighbours_perplexity"} < set(one)
    shares = []

    def run(rank, add):
        monkeypatch.setattr(suite_module, "sum_over_ranks", add)
        suite = words.build(rank, 2, **wanted)
        shares.append(suite.runner.deal(np.asarray(suite.main.rows.lengths)))
        return suite.measure(model)

    assert run_ranks(2, run) == [one, one]
    assert shares[0][0][0] != shares[1][0][0]


def test_a_rank_without_a_batch_does_as_the_others_do(words, monkeypatch):
    model, runs = make_deberta(words), []
    one = words.build(micro_batch=500).measure(model)
    ((number, batch),) = words.make_batches(500)
    with torch.no_grad():
        output = model(**batch)
    model.register_forward_hook(lambda *_: runs.append(1))

    def run(rank, add):
        monkeypatch.setattr(suite_module, "sum_over_ranks", add)
        suite = words.build(rank, 2, micro_batch=500)
        if rank == 0:
            suite.observe(number, batch["labels"], model, output)
        return suite.measure(model)

    assert run_ranks(2, run) == [one, one]
    assert runs == []


def test_other_batches_give_the_same_figures(words, lists):
    model = make_deberta(words)
    found = [
        words.build(micro_batch=size, **ALL, terms={"lists": lists}).measure(model) for size in (1, 4, 50)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def write_topics(folder):
    """Texts of two topics, each with words of its own."""
    generator = np.random.default_rng(0)
    path = folder / "labelled.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(150):
            topic = number % 3 > 0
            texts = generator.choice(PLAIN[:8] if topic else PLAIN[8:], 8)
            file.write(json.dumps({"text": f"{' '.join(texts)} {number}", "label": str(topic)}) + "\n")
    return str(path)


def test_a_probe_sees_what_is_in_the_features(words, folder):
    found = words.build(probes=[{"name": "topic", "path": write_topics(folder)}]).measure(make_deberta(words))
    prefix = "eval/main/probes/topic"
    assert found[f"{prefix}/accuracy"] > found[f"{prefix}/majority_accuracy"] + 0.15


def test_fragments_are_those_of_the_rows_and_of_a_former_tokenizer(words, lists):
    from launch.judging.fragments import measure_fragments

    rows = take_all(words.store.evaluation)
    terms = {"all": [term for names in TERMS.values() for term in names]}
    found = measure_fragments(rows, words.tokenizer, terms, former=words.tokenizer)
    texts = decode_documents(rows, words.tokenizer)
    assert all(text.endswith(".") for text in texts)
    # The tokenizer by itself on the texts, as an oracle.
    num_words = sum(len(text.split()) for text in texts)
    num_pieces = sum(len(words.tokenizer.tokenize(text)) - text.count(".") for text in texts)
    assert found["num_words"] == num_words
    assert found["pieces_per_word"] == pytest.approx(num_pieces / num_words)
    assert 0 < found["terms_cut"] <= 1
    # The same tokenizer cuts the texts of the rows as the rows are.
    for name in ("pieces_per_word", "num_words", "terms_cut", "pieces_per_term", "num_terms"):
        assert found[f"base/{name}"] == pytest.approx(found[name])


def test_corpora_have_their_own_figures(folder, plain):
    other = write_corpus(folder / "Second Corpus.jsonl", 60, seed=3)
    sources = ", ".join(f"{{kind: jsonl, path: '{path}'}}" for path in (other, plain))
    setting = Setting(
        DEBERTA, [f"data.sources=[{sources}]", "tokenizer.vocab_size=50", "data.evaluation_share=0.4"]
    )
    found = setting.build().measure(Knowing(setting.tokenizer, is_plain))
    assert found["eval/second-corpus/perplexity"] > found["eval/plain/perplexity"]
    labels = torch.cat([batch["labels"].flatten() for _, batch in setting.make_batches()])
    counts = [found[f"eval/{name}/num_targets"] for name in ("second-corpus", "plain")]
    assert sum(counts) == (labels >= 0).sum()


def test_corpora_get_names_of_their_own():
    paths = ["a/leads.jsonl.xz", "b/Leads.txt", "c/main.txt", "d/..."]
    sources = [SimpleNamespace(kind="text", path=path) for path in paths]
    sources.append(SimpleNamespace(kind="package", package="hstspreload"))
    assert name_corpora(sources) == ["leads", "leads-2", "main-2", "corpus", "hstspreload"]


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        ({"terms": {"lists": {"a": "nowhere.txt"}}}, "nowhere.txt"),
        ({"general": {"sources": [{"kind": "text", "path": "nowhere.txt"}]}}, "nowhere.txt"),
        ({"probes": [{"name": "p", "path": "nowhere.jsonl"}]}, "nowhere.jsonl"),
    ],
)
def test_a_file_that_is_not_there_is_a_wrong_request(words, metrics, wanted):
    with pytest.raises(RunError, match=wanted) as error:
        words.build(**metrics)
    assert error.value.verdict.exit_code == 2


def test_a_list_of_metrics_measures_nothing_more(words):
    runner = Runner(words.layout, 4, torch.device("cpu"))
    assert (
        build_suite(words.recipe, words.store, words.tokenizer, masking=words.masking, runner=runner) is None
    )


def test_names_are_scored_character_by_character(folder):
    generator = np.random.default_rng(0)
    (folder / "names.txt").write_text(
        "\n".join(
            {
                "".join(generator.choice(list("abcdef"), 7)) + "." + generator.choice(["com", "co.uk"])
                for _ in range(100)
            }
        )
    )
    setting = Setting(
        CANINE,
        [f"data.sources=[{{kind: text, path: {folder / 'names.txt'}}}]", "data.evaluation_share=0.2"],
    )
    config = setting.recipe.model.config | {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
    }
    model: Any = hf.build(
        "canine", config=config, head_code_points=setting.store.code_points.tolist(), dropout=0.0, seed=0
    )
    found = setting.build(names={}, pseudo={"num_pieces": 60}).measure(model)
    model.eval()
    rows, losses, right = take_all(setting.store.evaluation), [], []
    for number in range(rows.num_rows):
        name = rows.pieces[rows.offsets[number] : rows.offsets[number + 1]].astype(np.int64)
        shown = np.where(np.eye(len(name), dtype=bool), MASK_CHARACTER, name)
        input_ids = torch.tensor(
            np.pad(shown, ((0, 0), (1, 1)), constant_values=(CLS_CHARACTER, SEP_CHARACTER))
        )
        input_ids[:, 0], input_ids[:, -1] = CLS_CHARACTER, SEP_CHARACTER
        with torch.no_grad():
            logits = model(input_ids=input_ids).logits[:, 1:-1].double().diagonal(dim1=0, dim2=1).T
        own = model.map_labels(torch.tensor(name))
        losses.append(torch.nn.functional.cross_entropy(logits, own, reduction="none").numpy())
        right.append((logits.argmax(1) == own).numpy())
    assert 60 <= found["eval/main/pseudo/num_targets"] < 75
    assert found["eval/main/pseudo/num_rows"] < rows.num_rows
    suite = setting.build(pseudo={"num_pieces": 10**6})
    whole = suite.measure(model)
    assert whole["eval/main/pseudo/num_rows"] == rows.num_rows
    assert whole["eval/main/pseudo/perplexity"] == pytest.approx(
        np.exp(np.concatenate(losses).mean()), rel=1e-4
    )
    assert whole["eval/main/pseudo/accuracy"] == pytest.approx(np.concatenate(right).mean())
    assert whole["eval/main/pseudo/exact"] == pytest.approx(np.mean([hits.all() for hits in right]))
    assert {name.split("/")[4] for name in found if "names/suffix" in name} == {"com", "co.uk"}


def test_a_bert_is_judged_like_any_model(folder, lists, words):
    """Of another library's making: transformers' own class, saved, loaded as family auto."""
    from transformers import BertConfig, BertForMaskedLM

    size = len(words.tokenizer)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForMaskedLM(BertConfig(vocab_size=size, pad_token_id=words.tokenizer.pad_token_id, **sizes))
    bert.save_pretrained(folder / "bert")
    words.tokenizer.save_pretrained(folder / "bert")
    model, _ = hf.load("auto", folder / "bert")
    assert AutoTokenizer.from_pretrained(folder / "bert").get_vocab() == words.tokenizer.get_vocab()
    found = words.build(**ALL, terms={"lists": lists}).measure(model)
    assert found["eval/main/terms/perplexity"] == pytest.approx(size, rel=0.3)


def test_of_a_pair_the_generator_is_judged_and_the_discriminator_probed(words, folder):
    whole = make_deberta(words)
    generator = make_deberta(words)
    specials = words.tokenizer.all_special_ids
    pair: Any = build_pair(
        whole, share=1.0, seed=0, special_pieces=specials, num_pieces=len(words.tokenizer)
    ).eval()
    with torch.no_grad():
        pair.generator.load_state_dict(generator.state_dict())
        difference = pair.discriminator.get_input_embeddings().weight
        difference.add_(torch.randn_like(difference))
    suite = words.build(**ALL)
    number, batch = next(iter(words.make_batches()))
    with torch.no_grad():
        suite.observe(number, batch["labels"], pair, pair(**batch))
    assert suite.measure(pair) == pytest.approx(words.build(**ALL).measure(generator), rel=1e-6)
    input_ids = batch["input_ids"][:1, : int(batch["attention_mask"][0].sum())]
    with torch.no_grad():
        found = encode_batch(pair, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
        # As the discriminator is saved: with the whole embedding in it.
        difference.add_(pair.generator.get_input_embeddings().weight)
        alone = pair.discriminator.deberta(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
