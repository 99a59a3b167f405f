"""From files to a configuration: finding, merging, and what is said of every mistake."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apf_elastic.config import Config, ConfigError, build, load
from apf_elastic.config.files import Document, merge
from apf_elastic.contracts import Selection
from apf_elastic.settings import Allocation, BackendUse, Limits

Loaded = Callable[..., Config]
Message = Callable[..., str]


def with_line(text: str, after: str, line: str) -> str:
    """`text` with `line` below the line `after`."""
    assert after + "\n" in text
    return text.replace(after + "\n", f"{after}\n{line}\n", 1)


# ------------------------------------------------------------------------------------------- what comes out


def test_a_small_file_becomes_a_configuration_with_the_documented_defaults(loaded: Loaded, good: str) -> None:
    config = loaded(good)
    assert config.factory.name == config.settings.factory == "campus"
    assert (config.factory.cycle_s, config.settings.max_age_s) == (5.0, 120.0)
    assert config.factory.ledger == config.factory.state_dir / "ledger.sqlite"
    assert config.factory.state_dir == Path("apf-elastic-state").absolute()
    assert config.settings.queues["analysis"].backends == (BackendUse("here"), BackendUse("ce"))
    assert config.settings.backends["here"].join_s == 900.0
    assert config.selections == {"home": {"analysis": Selection()}}
    assert config.backends["here"].options.model_dump()["offerings"]["small"]["memory_mb"] == 1908
    assert config.warnings == ()


def test_everything_that_can_be_set_arrives(loaded: Loaded, good: str) -> None:
    config = loaded(
        good.replace('backends = ["here", "ce"]', "").replace("[pools.home]", 'timeout = "7 s"\n[pools.home]')
        + """
allocation = "weighted"
priority = 3
weight = 2
select = 'ApfQueue == "analysis"'
[[queues.analysis.backends]]
name = "here"
weight = 2
burst_after = "0 s"
idle = "5 min"
offerings = ["small"]
[queues.analysis.limits]
total = 10
per_minute = 5
[queues.analysis.retirement]
order = "least lost"
budget = "10%"
[queues.analysis.default_shape]
memory = "1 GiB"
walltime = "2 h"
[backends.here.deadlines]
pending = "1 d"
gone_lists = 3
[backends.here.limits]
total = 8
"""
    )
    queue = config.settings.queues["analysis"]
    assert queue.allocation is Allocation.WEIGHTED
    assert (queue.priority, queue.weight) == (3, 2.0)
    assert queue.backends == (BackendUse("here", 2.0, 0.0, 300.0, ("small",)),)
    assert queue.limits == Limits(total=10, per_minute=5)
    assert (queue.retirement.order, queue.retirement.budget) == ("least lost", 0.1)
    assert (queue.default_shape.memory_mb, queue.default_shape.walltime_s) == (1024, 7200)
    assert config.settings.backends["here"].pending_s == 86400.0
    assert config.settings.backends["here"].gone_lists == 3
    assert config.settings.backends["here"].limits == Limits(total=8)
    assert config.selections["home"]["analysis"].select == 'ApfQueue == "analysis"'


def test_the_thresholds_of_a_queues_backends_are_in_its_selection(loaded: Loaded, good: str) -> None:
    uses = '[{ name = "here" }, { name = "ce", burst_after = "10 min" }]'
    text = good.replace('type = "fake"', 'type = "patient"', 1).replace('["here", "ce"]', uses)
    assert loaded(text).selections == {"home": {"analysis": Selection(burst_after_s=(600.0,))}}


def test_common_keys_do_not_reach_the_plugin_but_its_own_timeout_follows(loaded: Loaded, good: str) -> None:
    source = loaded(with_line(good, "[sources.home]", 'every = "3 s"\ntimeout = "45 s"')).sources["home"]
    assert (source.every_s, source.timeout_s) == (3.0, 45.0)
    assert source.options.model_dump()["timeout_s"] == 45.0


def test_loading_twice_gives_equal_configurations(write: Callable[..., Path], good: str) -> None:
    file = write(good)
    assert load(file) == load(file)


# ------------------------------------------------------------------------------------- finding and merging


def test_the_file_of_the_current_directory_is_found(
    write: Callable[..., Path], good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(good).parent)
    assert load().files == (Path("apf-elastic.toml"),)


def test_files_of_conf_d_follow_in_lexical_order_and_the_last_wins(loaded: Loaded, good: str) -> None:
    config = loaded(
        good,
        b='[factory]\nname = "b"\n[queues.analysis]\nbackends = ["ce"]',
        a='[factory]\nname = "a"\ncycle = "9 s"',
    )
    assert [file.name for file in config.files] == ["apf-elastic.toml", "a.toml", "b.toml"]
    assert (config.factory.name, config.factory.cycle_s) == ("b", 9.0)
    assert [use.backend for use in config.settings.queues["analysis"].backends] == ["ce"]


def test_hidden_files_of_conf_d_are_left_alone(write: Callable[..., Path], good: str) -> None:
    file = write(good, a="")
    (file.parent / "conf.d" / ".#a.toml").write_text("not TOML")
    assert len(load(file).files) == 2


TREES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers(), max_size=2), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(), max_size=3),
    max_leaves=8,
)


def naive(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: naive(old[key], new[key]) if key in old else new[key] for key in new}


@given(st.lists(TREES, max_size=4))
def test_merging_is_deep_for_tables_and_the_last_word_elsewhere(trees: list[dict[str, Any]]) -> None:
    expected: dict[str, Any] = {}
    for tree in trees:
        expected = naive(expected, tree)
    before = repr(trees)
    merged = merge([Document(Path(str(n)), "", tree) for n, tree in enumerate(trees)])
    assert merged.tree == expected
    assert repr(trees) == before


def test_a_problem_names_the_file_that_had_the_last_word(wrong: Callable[..., list[Any]], good: str) -> None:
    (problem,) = wrong(good, a="[queues.analysis]\nweight = 1", b='\n\n[queues.analysis]\nweight = "x"')
    assert (problem.file.name, problem.line, problem.key) == ("b.toml", 4, "queues.analysis.weight")


# -------------------------------------------------------------------------------------- mistakes, in print

MISTAKES: dict[str, tuple[Callable[[str], str], str]] = {
    "unknown source": (
        lambda text: text.replace('source = "home"', 'source = "hme"'),
        'DIR/apf-elastic.toml:20: queues.analysis.source: there is no source "hme"\n'
        '    did you mean "home"? sources: home',
    ),
    "unknown pool": (
        lambda text: text.replace('pool = "home"', 'pool = "away"'),
        'DIR/apf-elastic.toml:21: queues.analysis.pool: there is no pool "away"\n    pools: home',
    ),
    "unknown backend": (
        lambda text: text.replace('["here", "ce"]', '["here", "cee"]'),
        'DIR/apf-elastic.toml:22: queues.analysis.backends[1]: there is no backend "cee"\n'
        '    did you mean "ce"? backends: ce, here',
    ),
    "a queue without a backend": (
        lambda text: text.replace('["here", "ce"]', "[]"),
        "DIR/apf-elastic.toml:22: queues.analysis.backends: is an array, needs at least 1\n    name one",
    ),
    "a queue that does not mention backends": (
        lambda text: text.replace('backends = ["here", "ce"]', ""),
        "DIR/apf-elastic.toml:19: queues.analysis.backends: is missing\n"
        '    the backends that may serve it, by name or as tables; write backends = ["here"]',
    ),
    "a backend twice": (
        lambda text: text.replace('["here", "ce"]', '["here", "ce", "here"]'),
        'DIR/apf-elastic.toml:22: queues.analysis.backends: names "here" 2 times\n    name it once',
    ),
    "a wrong unit": (
        lambda text: with_line(text, "[sources.home]", 'every = "5 parsecs"'),
        "DIR/apf-elastic.toml:5: sources.home.every: \"5 parsecs\" has the unknown unit 'parsecs'\n"
        '    write a number of seconds or "90 s", "5 min", "2 h", "1 d"',
    ),
    "a wrong size in a plugin's table": (
        lambda text: text.replace('"2 GB"', '"2 G"'),
        "DIR/apf-elastic.toml:15: backends.here.offerings.small.memory: \"2 G\" has the unknown unit 'G'\n"
        '    write a number of MB (2**20 bytes) or "512 MiB", "2 GiB", "2 GB", "1 TB"',
    ),
    "both spellings": (
        lambda text: with_line(text, 'memory = "2 GB"', "memory_mb = 2000"),
        "DIR/apf-elastic.toml:16: backends.here.offerings.small.memory_mb: "
        "says the same as `memory`, which is given too\n    keep one of them",
    ),
    "a unit in the plain spelling": (
        lambda text: text.replace('memory = "2 GB"', 'memory_mb = "2 GB"'),
        'DIR/apf-elastic.toml:15: backends.here.offerings.small.memory_mb: "2 GB" is not a plain number\n'
        "    write `memory` for a size with a unit: "
        'write a number of MB (2**20 bytes) or "512 MiB", "2 GiB", "2 GB", "1 TB"',
    ),
    "a wrong key": (
        lambda text: with_line(text, "[queues.analysis]", "priorty = 1"),
        "DIR/apf-elastic.toml:20: queues.analysis.priorty: is not a known key\n"
        '    did you mean "priority"? keys here: allocation, backends, default_shape, limits, policy, pool, '
        "priority, retirement, select, source, weight",
    ),
    "a wrong key in a plugin's table": (
        lambda text: with_line(text, "[backends.ce]", 'graze = "5 s"'),
        "DIR/apf-elastic.toml:17: backends.ce.graze: is not a known key\n"
        '    did you mean "grace"? keys here: deadlines, environment, every, grace, limits, offerings, stages, '
        "timeout, type",
    ),
    "a wrong table": (
        lambda text: text + "[queus.b]\n",
        "DIR/apf-elastic.toml:23: queus: is not a known table\n"
        '    did you mean "queues"? tables: backends, factory, pools, queues, sources',
    ),
    "a wrong type of plugin": (
        lambda text: text.replace('type = "fake"', 'type = "htcndor"', 1),
        'DIR/apf-elastic.toml:5: sources.home.type: there is no source of type "htcndor"\n'
        '    did you mean "htcondor"? types of sources: embedded, fake, htcondor, missing, patient',
    ),
    "a plugin without a type": (
        lambda text: text.replace('type = "fake"\n', "", 1),
        'DIR/apf-elastic.toml:4: sources.home.type: is missing\n    which plugin; write type = "htcondor"',
    ),
    "a text for a number": (
        lambda text: with_line(text, "[queues.analysis]", 'weight = "heavy"'),
        'DIR/apf-elastic.toml:20: queues.analysis.weight: is "heavy", must be a number\n    write it without quotes',
    ),
    "a number for a text": (
        lambda text: text.replace('name = "campus"', "name = 3"),
        'DIR/apf-elastic.toml:2: factory.name: is 3, must be a text\n    text goes in quotes: "..."',
    ),
    "a text for a truth": (
        lambda text: text + '[queues.analysis.retirement]\ndrain_busy = "no"\n',
        'DIR/apf-elastic.toml:24: queues.analysis.retirement.drain_busy: is "no", must be true or false\n'
        "    write it without quotes, in lower case",
    ),
    "a text for an array": (
        lambda text: text.replace('["here", "ce"]', '"here"'),
        'DIR/apf-elastic.toml:22: queues.analysis.backends: is "here", must be an array\n'
        '    arrays go in brackets: ["...", "..."]',
    ),
    "a number for a table": (
        lambda text: with_line(text, "[queues.analysis]", "limits = 5"),
        "DIR/apf-elastic.toml:20: queues.analysis.limits: is 5, must be a table\n"
        "    give it a [header] of its own, or write { key = value }",
    ),
    "a word that is no choice": (
        lambda text: with_line(text, "[queues.analysis]", 'allocation = "cheap"'),
        'DIR/apf-elastic.toml:20: queues.analysis.allocation: is "cheap", not one of the choices\n'
        '    did you mean "cheapest"? choices: cheapest, fill, weighted',
    ),
    "a negative limit": (
        lambda text: text + "[queues.analysis.limits]\ntotal = -1\n",
        "DIR/apf-elastic.toml:24: queues.analysis.limits.total: is -1, must be at least 0\n"
        "    write at least 0, or leave the key out",
    ),
    "an infinite number": (
        lambda text: with_line(text, "[queues.analysis]", "weight = 1e999"),
        "DIR/apf-elastic.toml:20: queues.analysis.weight: inf is not a finite number\n"
        "    leave the key out if there is no limit",
    ),
    "not a number": (
        lambda text: with_line(text, "[queues.analysis]", "weight = nan"),
        "DIR/apf-elastic.toml:20: queues.analysis.weight: nan is not a finite number\n"
        "    leave the key out if there is no limit",
    ),
    "a name with blanks": (
        lambda text: text.replace("[queues.analysis]", '[queues."my queue"]'),
        'DIR/apf-elastic.toml:19: queues."my queue": is not a usable name\n'
        "    use 1 to 60 letters, digits, dots, underscores and hyphens",
    ),
    "an offering with a bad name": (
        lambda text: text.replace(".small]", '."a/b"]'),
        'DIR/apf-elastic.toml:13: backends.here.offerings."a/b": is not a usable name\n'
        "    use 1 to 60 letters, digits, dots, underscores and hyphens",
    ),
    "an unknown offering": (
        lambda text: text.replace('["here", "ce"]', '[{ name = "here", offerings = ["smal"] }, "ce"]'),
        'DIR/apf-elastic.toml:22: queues.analysis.backends[0].offerings[0]: there is no offering "smal"\n'
        '    did you mean "small"? offerings: small',
    ),
    "waiting thresholds from a source that does not count them": (
        lambda text: text.replace('["here", "ce"]', '["here", { name = "ce", burst_after = "5 min" }]'),
        "DIR/apf-elastic.toml:22: queues.analysis.backends[1].burst_after: "
        'the source "home" (fake) does not say how long jobs have waited\n'
        "    leave burst_after out, or use another source",
    ),
    "a selection that the source cannot read": (
        lambda text: with_line(text, "[queues.analysis]", 'select = "== 3"'),
        "DIR/apf-elastic.toml:20: queues.analysis.select: starts with an operator\n"
        "    write it in the language of fake sources",
    ),
    "what the plugin itself refuses": (
        lambda text: with_line(text, "[sources.home]", 'constraint = "(("'),
        "DIR/apf-elastic.toml:5: sources.home.constraint: \"((\": '((' has unbalanced parentheses",
    ),
    "a plugin that falls over": (
        lambda text: text.replace('[backends.ce]\ntype = "fake"', '[backends.ce]\ntype = "fragile"\ndepth = 1'),
        "DIR/apf-elastic.toml:16: backends.ce: cannot be checked: KeyError: 'a fault of the plugin'\n"
        "    this is a fault of the plugin",
    ),
    "polls that are too rare": (
        lambda text: with_line(text, "[sources.home]", 'every = "3 min"'),
        "DIR/apf-elastic.toml:5: sources.home.every: asked every 180 s, it is unknown half of the time: "
        "answers count for factory.max_age = 120 s\n    ask more often",
    ),
    "control characters": (
        lambda text: with_line(text, "[queues.analysis]", 'select = "\\u001b[2J"'),
        'DIR/apf-elastic.toml:20: queues.analysis.select: "\\x1b[2J" has a control character (U+001B)\n'
        "    write it without, or put it into a file",
    ),
    "a date": (
        lambda text: text.replace('"campus"', "1979-05-27"),
        "DIR/apf-elastic.toml:2: factory.name: 1979-05-27 is a date or a time\n    text goes in quotes",
    ),
    "no factory": (
        lambda text: text.replace('[factory]\nname = "campus"\n', "\n\n"),
        'DIR/apf-elastic.toml: factory: is missing\n    write [factory] and in it name = "campus"',
    ),
    "no name": (
        lambda text: text.replace('name = "campus"', ""),
        "DIR/apf-elastic.toml:1: factory.name: is missing\n"
        "    the mark carried by everything this factory creates; choose one per factory and never change it; "
        'write name = "campus"',
    ),
    "no queue": (
        lambda text: text[: text.index("[queues")],
        "DIR/apf-elastic.toml: queues: no queue is configured\n    write [queues.NAME] with a source and backends",
    ),
    "no TOML": (
        lambda text: text.replace('"campus"', "campus"),
        "DIR/apf-elastic.toml:2: is not TOML: Invalid value at column 8\n"
        "    text goes in quotes, tables in [brackets], every key once: https://toml.io",
    ),
    "a key twice": (
        lambda text: with_line(text, 'name = "campus"', 'name = "again"'),
        "DIR/apf-elastic.toml:3: is not TOML: Cannot overwrite a value at column 15\n"
        "    text goes in quotes, tables in [brackets], every key once: https://toml.io",
    ),
    "an empty file": (
        lambda text: "# nothing\n",
        "DIR/apf-elastic.toml: the configuration is empty\n    start from one of the examples in configs/",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_line_key_and_cure(mistake: str, message: Message, good: str) -> None:
    make, expected = MISTAKES[mistake]
    assert message(make(good)) == f"1 problem in the configuration\n{expected}"


def test_all_problems_of_all_files_are_said_at_once_from_top_to_bottom(message: Message, good: str) -> None:
    text = with_line(good.replace('"campus"', "3"), "[queues.analysis]", "prio = 1")
    words = message(text.replace('source = "home"', 'source = "x"'), a='[factory]\ncycle = "x"')
    places = [line.split(": ")[0] for line in words.splitlines() if line.startswith("DIR")]
    assert words.startswith("4 problems in the configuration\n")
    assert [place.removeprefix("DIR/") for place in places] == [
        "apf-elastic.toml:2",
        "apf-elastic.toml:20",
        "apf-elastic.toml:21",
        "conf.d/a.toml:2",
    ]


# ------------------------------------------------------------------------------------------------ bad files


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: does not exist\n    name another with --config FILE"):
        load(tmp_path / "none.toml")


def test_no_file_anywhere_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("apf_elastic.config.files.SYSTEM", tmp_path / "etc" / "apf-elastic.toml")
    with pytest.raises(ConfigError, match=r"there is no apf-elastic\.toml here and no .*/etc/apf-elastic\.toml"):
        load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(write: Callable[..., Path], good: str) -> None:
    file = write(good)
    file.chmod(0)
    with pytest.raises(ConfigError, match="may not be read by this user"):
        load(file)


def test_a_directory_in_place_of_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[factory]\nname = "\xff"', r":2: is not UTF-8"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
        (b"a" + b".a" * 100_000 + b" = 1", "is nested too deeply"),
        (b"a" + b".a" * 150 + b" = 1", "is nested more than 20 deep"),
        (b"a = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"# " + b"x" * 2**23, "is larger than 4194304 bytes"),
        (b'[factory]\nname = "a\x00b"', r":2: is not TOML"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        load(file)
    assert len(str(caught.value)) < 1000


def test_a_huge_text_is_refused_and_printed_short(wrong: Callable[..., list[Any]], good: str) -> None:
    (problem,) = wrong(with_line(good, "[queues.analysis]", f'select = "{"x" * 2**20}"'))
    assert "has 1048576 characters, more than 16384" in str(problem)
    assert len(str(problem)) < 500


def test_hostile_keys_are_escaped(message: Message, good: str) -> None:
    words = message(good + '"\\u001b]0;pwned\\u0007" = 1\n' + f'"{"k" * 5000}" = 1\n')
    assert "\x1b" not in words
    assert "\\x1b]0;pwned" in words
    assert len(words) < 2000


def test_a_conf_d_that_cannot_be_listed_is_not_taken_for_an_empty_one(write: Callable[..., Path], good: str) -> None:
    file = write(good)
    (file.parent / "conf.d").write_text("a file")
    with pytest.raises(ConfigError, match=r"conf\.d: cannot be listed: Not a directory"):
        load(file)


def test_of_very_many_problems_the_first_are_printed(message: Message, good: str) -> None:
    words = message(good + "".join(f"[else{n}]\n" for n in range(1000)))
    assert words.startswith("1000 problems in the configuration\n")
    assert words.endswith("... and 900 more")


# --------------------------------------------------------------------------------------------------- secrets


def test_values_that_look_like_secrets_are_not_echoed(message: Message, good: str) -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    text = with_line(good, "[sources.home]", f'constraint = "({token}"\npassword = ["hunter2"]')
    words = message(with_line(text, "[queues.analysis]", f'allocation = "{token}"'))
    assert token not in words
    assert "hunter2" not in words
    assert "queues.analysis.allocation: is a value that is not shown here" in words


def test_a_table_that_is_named_like_a_secret_is_none(message: Message, good: str) -> None:
    text = good.replace("[sources.home]", "[sources.token]").replace('source = "home"', 'source = "token"')
    assert '"5 parsecs" has the unknown unit' in message(with_line(text, "[sources.token]", 'every = "5 parsecs"'))


def test_a_secret_file_that_everybody_may_read_is_refused(message: Message, good: str, tmp_path: Path) -> None:
    directory = tmp_path / "tokens.d"
    directory.mkdir(mode=0o755)
    (directory / "a").write_text("secret")
    (directory / "a").chmod(0o644)
    words = message(with_line(good, "[sources.home]", f'token_dir = "{directory}"'))
    assert words == (
        "1 problem in the configuration\n"
        "DIR/apf-elastic.toml:5: sources.home.token_dir: DIR/tokens.d/a is open to every user of this machine "
        "(mode 644)\n    chmod 600 DIR/tokens.d/a"
    )


def test_a_secret_file_that_its_group_may_read_is_mentioned(loaded: Loaded, good: str, tmp_path: Path) -> None:
    directory = tmp_path / "tokens.d"
    directory.mkdir(mode=0o755)
    (directory / "a").write_text("secret")
    (directory / "a").chmod(0o640)
    (warning,) = loaded(with_line(good, "[sources.home]", f'token_dir = "{directory}"')).warnings
    assert "open to its group (mode 640)" in str(warning)


def test_a_directory_that_others_cannot_enter_protects_its_files(loaded: Loaded, good: str, tmp_path: Path) -> None:
    directory = tmp_path / "tokens.d"
    directory.mkdir(mode=0o700)
    (directory / "a").write_text("secret")
    (directory / "a").chmod(0o644)
    assert loaded(with_line(good, "[sources.home]", f'token_dir = "{directory}"')).warnings == ()


def test_a_secret_in_the_configuration_makes_its_file_a_secret(write: Callable[..., Path], good: str) -> None:
    file = write(with_line(good, "[sources.home]", 'password = "hunter2"'))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"password: a secret stands here, and .* is open to every user") as caught:
        load(file)
    assert "hunter2" not in str(caught.value)
    file.chmod(0o600)
    assert load(file).warnings == ()


def test_what_no_queue_uses_is_mentioned(loaded: Loaded, good: str) -> None:
    (warning,) = loaded(good.replace('["here", "ce"]', '["here"]')).warnings
    assert "backends.ce: is used by no queue" in str(warning)


# ------------------------------------------------------------------------------------------------------ fuzz

WORDS = st.sampled_from(
    """
    factory sources pools backends queues home here analysis name type every timeout limits total source pool select
    weight policy chain ready offset retirement budget idle deadlines join offerings small cores memory memory_mb
    walltime_s stages environment token_dir password constraint burst_after allocation default_shape fake fragile
    none missing patient htcondor local embedded directory domain collector schedds submit grid_resource
    """.split()  # noqa: SIM905
)
VALUES = st.one_of(
    WORDS,
    st.text(max_size=5),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.times(),
    st.sampled_from(["5 min", "2 GB", "50%", "Ready", "\x1b", "/etc", "~nobody-here/x", "\ud800"]),
)
TREE = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=5),
    max_leaves=30,
)
GROUPS = st.dictionaries(WORDS, TREE | st.fixed_dictionaries({"type": WORDS}, optional={"every": TREE}), max_size=3)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "factory": TREE | st.fixed_dictionaries({"name": st.just("a")}),
        "sources": TREE | GROUPS,
        "pools": TREE | GROUPS,
        "backends": TREE | GROUPS,
        "queues": TREE | st.dictionaries(WORDS, st.dictionaries(WORDS, TREE, max_size=6), max_size=3),
        "else": TREE,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, FILES)
def test_any_tree_is_a_configuration_or_a_list_of_problems(one: dict[str, Any], two: dict[str, Any]) -> None:
    try:
        config = build([Document(Path("a"), "", one), Document(Path("b"), "", two)])
        assert config.settings.queues
    except ConfigError as caught:
        error = caught
    else:
        return
    assert error.problems
    assert all(c.isprintable() or c == "\n" for c in str(error))


EXAMPLES = [path.read_text() for path in sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))]
PIECES = st.sampled_from(
    ['"', "'", "[", "]", "{", "=", ".", ",", "-", "#", "\n", "1e999", "nan", "true", "é", "\x00", '"""']
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(EXAMPLES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES), min_size=1, max_size=3)
)
def test_a_damaged_example_is_a_configuration_or_a_list_of_problems(
    tmp_path: Path, text: str, damages: list[tuple[float, int, str]]
) -> None:
    for place, lost, piece in damages:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + lost :]
    file = tmp_path / "damaged.toml"
    file.write_text(text)
    try:
        assert load(file).settings.queues
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all(it.file == file and (it.line is None or 0 < it.line <= text.count("\n") + 1) for it in problems)
