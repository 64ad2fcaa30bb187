"""Secrets: in no file of a run, in no message, in no recipe; and text that cannot steer a terminal."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from launch import redaction, train
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe, shipped_recipes
from launch.redaction import HIDDEN, escape_controls, find_secrets, name_secret, redact, show_value
from launch.terminal import Console, escape_json, to_json
from launch.verdict import RunError, Verdict
from tests.commands import ENVIRONMENT, QUICK, ROOT

CANINE = "canine-tiny-domains-char"
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ12345678",
    "a GitHub token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "an AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a private key": "-----BEGIN" + " RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    "an API key": "sk-" + "proj-abcdefghij0123456789",
    "a Slack token": "xoxb-" + "1234567890-abcdefghij",
    "a GitLab token": "glpat-" + "abcdefghij0123456789",
    "a PyPI token": "pypi-" + "AgEIcHlwaS5vcmcCJDU0",
    "a URL with a user or a password in it": "https://" + "someone:hunter2hunter2@example.org/corpus.jsonl",
}
CANARIES = {
    "HF_TOKEN": "canary-in-the-environment-4711",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MY_SERVICE_PASSWORD": "correct-horse-battery-staple",
}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_a_secret_is_told_by_its_form_and_hidden_in_any_text(kind):
    secret = SECRETS[kind]
    assert name_secret(secret) == kind
    assert name_secret(f"x={secret}") == kind
    hidden = redact(f"before {secret} after")
    assert HIDDEN in hidden
    core = "hunter2" if "://" in secret else secret.splitlines()[-1][:24]
    assert core not in hidden
    assert hidden.startswith("before")
    assert "MIIEpAIBAAKCAQEA" not in hidden


@pytest.mark.parametrize("name", list(CANARIES))
def test_the_secrets_of_the_environment_are_hidden_by_their_value(name, monkeypatch):
    monkeypatch.setenv(name, CANARIES[name])
    assert redact(f"cannot reach https://x/{CANARIES[name]}/y") == f"cannot reach https://x/{HIDDEN}/y"
    assert name_secret(f"/data/{CANARIES[name]}") == "the value of a secret in the environment"


@pytest.mark.parametrize(
    "text",
    [
        "password=abc123def456ghi",
        'token: "abc123def456ghi"',
        "api_key=abc123def456ghi",
        "--hub-token abc --api-key=abc123def456ghi",
    ],
)
def test_a_value_that_its_name_gives_away_is_hidden(text):
    assert "abc123def456ghi" not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "data.expected_tokens=4000000000",
        "microsoft/deberta-v3-base",
        "hf_internal_testing/tiny-random-deberta",
        "hf-internal-testing/tiny-random",
        "/home/me/sk-learn-documentation-in-english",
        "https://example.org/a@b/c.txt",
        "mail me at someone@example.org",
        "tokenizer: {source: train, kind: unigram, vocab_size: 2000}",
        "the tokens a second are 123456 of 1234567890",
        "5f4dcc3b5aa765d61d8327deb882cf995f4dcc3b5aa765d61d8327deb882cf99",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text
    assert name_secret(text) is None


def test_names_of_switches_and_places_are_no_secrets(monkeypatch):
    for name in ("TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "MAX_TOKENS"):
        monkeypatch.setenv(name, "some-ordinary-text")
    assert redact("some-ordinary-text") == "some-ordinary-text"


def test_secrets_are_found_in_values_lists_and_keys():
    token = SECRETS["a Hugging Face token"]
    raw = {"a": [{"b": token}], token: 1, "c": {"d": "fine"}}
    found = dict(find_secrets(raw))
    assert found == {
        ("a", 0, "b"): "a Hugging Face token",
        (HIDDEN,): "a key that holds a Hugging Face token",
    }


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_no_shipped_recipe_is_taken_for_a_leak(path):
    assert read_recipe(path).name == path.stem


@pytest.mark.parametrize("kind", list(SECRETS))
@pytest.mark.parametrize(
    "key", ["description", "model.source", "model.config.note", "training.seed", "token"]
)
def test_a_recipe_with_a_secret_in_it_is_refused_and_the_secret_not_repeated(kind, key):
    secret = SECRETS[kind].replace("\n", " ")
    with pytest.raises(RecipeError) as caught:
        read_recipe(CANINE, [f"{key}={json.dumps(secret)}"])
    assert f"looks like {kind}" in str(caught.value)
    for shown in (str(caught.value), *(problem.message for problem in caught.value.problems)):
        assert secret not in shown
        assert "hunter2" not in shown


def test_an_override_that_is_no_yaml_does_not_repeat_a_secret():
    token = SECRETS["a GitHub token"]
    with pytest.raises(RecipeError) as caught:
        read_recipe(CANINE, [f"model.source=[{token}"])
    assert token not in str(caught.value)


def test_a_verdict_and_its_error_hold_no_secret_and_no_control_character():
    token = SECRETS["a Hugging Face token"]
    error = RunError(2, f"cannot fetch {token}\x1b[2J\x9b31m")
    for text in (str(error), error.verdict.message, Verdict(1, f"{token}\x1b[2J\x9b31m").message):
        assert token not in text
        assert "\x1b" not in text
        assert "\x9b" not in text
    assert "\\x1b[2J" in str(error)


def test_a_traceback_of_the_trainer_holds_no_secret(tmp_path, monkeypatch, capsys):
    token = SECRETS["a Hugging Face token"]

    def fail(*_):
        raise KeyError(f"401 for {token} \x1b]0;title\x07")

    monkeypatch.setattr(train, "run", fail)
    assert train.main([CANINE, "--profile", "cpu", "--output", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert "KeyError" in shown
    assert "Traceback" in shown
    for text in (shown, (tmp_path / "run" / "verdict.json").read_text()):
        assert token not in text
        assert "\x1b" not in text


def test_no_key_of_the_schema_asks_for_a_secret():
    schema = json.dumps(json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())).lower()
    for word in ("password", "secret", "api_key", "hf_token", "credential", "trust_remote_code"):
        assert word not in schema


def test_long_values_are_cut_after_they_are_redacted():
    token = SECRETS["a Hugging Face token"]
    assert token[:12] not in show_value("x" * 50 + token)
    assert len(show_value("x" * 500)) == 60


CONTROLS = [
    "\x1b[31m",
    "\x9b31m",
    "\x07",
    "\r",
    "\x00",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\ud800",
]


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_become_escapes_and_letters_of_all_scripts_stay(control):
    shown = escape_controls(f"a{control}b")
    assert all(letter.isprintable() for letter in shown)
    assert shown != f"a{control}b"
    kept = "\u0416\u4e2d\u3000\u0645\xa0\u0e01 \ue003\n\t\U0001f40d"
    assert escape_controls(kept) == kept


@pytest.mark.parametrize("control", CONTROLS)
def test_the_console_lets_no_text_steer_the_terminal(control):
    table = Table(title=f"t{control}t")
    table.add_row(Text(f"c{control}c"))
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=60, color_system="standard")
        for one in (f"plain{control}x", Text(f"text{control}x", style="bold"), table):
            console.print(one)
        console.print(f"soft{control}x", soft_wrap=True, markup=False)
        text = out.getvalue()
        for own in ("\x1b[1m", "\x1b[3m", "\x1b[0m"):  # the console's own styles
            text = text.replace(own, "")
        assert control[0] not in text


def test_the_console_keeps_its_own_colours():
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print("[red]x[/]")
    assert out.getvalue() == "\x1b[31mx\x1b[0m\n"


def test_json_for_a_terminal_says_the_same_and_steers_nothing():
    value = {"text": "\x1b\x9b\x7f\u202e\u2028\n\u0416\ue003\\"}
    for text in (
        to_json(value),
        to_json([value], indent=2),
        escape_json(json.dumps(value, ensure_ascii=False)),
    ):
        assert not redaction.CONTROLS.search(text)
        assert json.loads(text) in (value, [value])


def test_every_module_prints_with_the_console_that_escapes():
    for path in (ROOT / "launch").rglob("*.py"):
        if path.name != "terminal.py":
            text = path.read_text()
            assert "from rich.console import Console" not in text, path
            assert "from rich import print" not in text, path
            assert "rich.get_console" not in text, path


def run_maskwright(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", CANINE, *arguments],
        capture_output=True,
        env={**ENVIRONMENT, **CANARIES},
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "override", ["model.source={}", "hub_token={}", "data.sources=[{{kind: text, path: {}}}]"]
)
def test_a_run_with_a_secret_on_its_command_line_writes_nothing(override, tmp_path, monkeypatch, capsys):
    for secret in (SECRETS["a Hugging Face token"], SECRETS["a URL with a user or a password in it"]):
        argument = override.format(json.dumps(secret))
        assert train.main([CANINE, argument, "--output", str(tmp_path / "run")]) == 2
        assert secret not in "".join(capsys.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.ranks
def test_no_secret_of_the_environment_gets_into_a_run_or_what_it_prints(tmp_path):
    folder = tmp_path / "run"
    steps = ("training.max_steps=10", "evaluation.every=5", "checkpoint.every=5", "report_to=[tensorboard]")
    code, printed = run_maskwright("--profile", "cpu", "--output", str(folder), *QUICK[CANINE], *steps)
    assert code == 0, printed.decode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    wanted = {"environment.json", "command.txt", "plan.json", "recipe.resolved.yaml", "metrics.jsonl"}
    assert wanted | {"report.html", "progress.json", "optimizer.pt", "README.md"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    for name, canary in CANARIES.items():
        assert canary.encode() not in printed
        for path in files:
            content = path.read_bytes()
            assert canary.encode() not in content, (path, name)
            assert name.encode() not in content, (path, name)
    assert os.environ.get("HF_TOKEN") not in CANARIES.values()
