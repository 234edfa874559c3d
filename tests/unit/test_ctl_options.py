"""The grammar of the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.ctl.main import TABLE, load
from omnid.ctl.options import COMMON, Option, Verb, parse, usage
from omnid.errors import Rejected

VERB = Verb(
    lambda _: 0,
    "For the test.",
    "[TASK...]",
    (
        Option("cwd", "DIR", "A directory"),
        Option("label", "LABEL", "A label", many=True),
        Option("follow", None, "A flag", short="f"),
        Option("file", "FILE", "With a letter", short="i"),
    ),
    rest="COMMAND",
)
VERBS = [name for name in TABLE if name != "help"]

values = st.text(min_size=1, max_size=10)
pieces = st.lists(
    st.tuples(st.just("--cwd"), values)
    | st.tuples(st.just("--label"), values)
    | st.tuples(st.just("-i"), values)
    | st.tuples(st.just("--follow"), st.none())
    | st.tuples(st.none(), values.filter(lambda text: not text.startswith("-"))),
    max_size=8,
    unique_by=lambda piece: piece[0] if piece[0] in ("--cwd", "-i") else object(),
)


@given(pieces, st.none() | st.lists(values, max_size=4), st.data())
def test_whatever_is_written_is_read_back(pieces, rest, data):
    argv, arguments, labels, one = [], [], [], {}
    for flag, value in pieces:
        if flag is None:
            argv.append(value)
            arguments.append(value)
        elif value is None:
            argv.append(flag)
        elif flag.startswith("--") and (value.startswith("--") or data.draw(st.booleans())):
            argv.append(f"{flag}={value}")
        elif value.startswith("--"):
            continue
        else:
            argv += [flag, value]
        if flag == "--label":
            labels.append(value)
        elif flag in ("--cwd", "-i"):
            one[flag] = value
    given = parse("test", VERB, argv + ([] if rest is None else ["--", *rest]))
    assert given.arguments == arguments
    assert given.rest == rest
    assert (given.many("label") or []) == labels
    assert (given.text("cwd"), given.text("file")) == (one.get("--cwd"), one.get("-i"))
    assert given.flag("follow") is any(flag == "--follow" for flag, _ in pieces)


@given(
    st.lists(st.text(max_size=8) | st.sampled_from(["--", "-", "--cwd", "--cwd=", "-f", "-fi", "--json=x"]), max_size=6)
)
def test_any_command_line_is_read_or_refused(argv):
    try:
        parse("test", VERB, argv)
    except Rejected as error:
        assert error.code == "bad_usage"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--cw", "x"], "There is no option --cw (did you mean --cwd?)"),
        (["--fol"], "There is no option --fol (did you mean --follow?)"),
        (["--follow=yes"], "--follow takes no value"),
        (["--cwd"], "--cwd needs a value: --cwd DIR"),
        (["--cwd", "--follow"], "--cwd needs a value: --cwd DIR"),
        (["--cwd", "a", "--cwd", "b"], "--cwd was given twice"),
        (["-x"], "There is no option -x"),
    ],
)
def test_mistakes_are_named(argv, says):
    with pytest.raises(Rejected) as caught:
        parse("test", VERB, argv)
    assert caught.value.what.startswith(says)
    assert "omnictl test --help" in caught.value.do


def test_negative_numbers_and_a_lone_dash_are_arguments_and_values():
    assert parse("test", VERB, ["t7", "-5", "-"]).arguments == ["t7", "-5", "-"]
    assert parse("test", VERB, ["--cwd", "-5"]).text("cwd") == "-5"


@pytest.mark.parametrize(
    ("arguments", "argv", "says"),
    [
        ("TASK", [], "It needs TASK"),
        ("TASK...", [], "It needs TASK..."),
        ("TASK", ["t1", "t2"], "It has no use for 't2'"),
        ("", ["t1"], "It has no use for 't1'"),
        ("TASK", ["t1", "--", "x"], "It takes nothing after --"),
    ],
)
def test_the_number_of_arguments_is_checked(arguments, argv, says):
    with pytest.raises(Rejected) as caught:
        parse("test", Verb(lambda _: 0, "For the test.", arguments), argv)
    assert caught.value.what.startswith(says)


def test_help_needs_no_arguments():
    assert parse("test", Verb(lambda _: 0, "For the test.", "TASK"), ["-h"]).flag("help")


@pytest.mark.parametrize(
    ("read", "argv", "says"),
    [
        (lambda given: given.whole("cwd"), ["--cwd", "five"], "--cwd takes a whole number, not 'five'"),
        (lambda given: given.json_object("cwd"), ["--cwd", "{"], "--cwd takes a JSON object, and this is no JSON"),
        (lambda given: given.json_object("cwd"), ["--cwd", "[1]"], "--cwd takes a JSON object"),
        (lambda given: given.words("cwd"), ["--cwd", "a 'b"], "--cwd can't be split into words"),
        (lambda given: given.duration_s("cwd"), ["--cwd", "soon"], "soon is not a time"),
    ],
)
def test_values_are_checked(read, argv, says):
    with pytest.raises(Rejected) as caught:
        read(parse("test", VERB, argv))
    assert caught.value.what.startswith(says)


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_every_verb_fits_and_names_every_option(name):
    verb = load(name)
    lines = usage(name, verb)
    assert lines[0].startswith(f"Usage: omnictl {name}")
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for option in (*verb.options, *COMMON):
        assert f"--{option.name} {f'{option.value} ' if option.value else ''}{option.about}" in text


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_gives_an_option_two_meanings(name):
    options = (*load(name).options, *COMMON)
    names = [option.name for option in options] + [option.short for option in options if option.short]
    assert len(names) == len(set(names))
