"""What every command says the same way."""

import pytest

from apf_elastic.commands.words import age, clean, sentences, states


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "never"),
        (-3.0, "0 s"),
        (0.5, "0.5 s"),
        (42.0, "42 s"),
        (119.0, "119 s"),
        (600.0, "10 min"),
        (7200.0, "2 h"),
        (400_000.0, "5 d"),
    ],
)
def test_an_age_reads_well(seconds: float | None, said: str) -> None:
    assert age(seconds) == said


def test_text_from_elsewhere_cannot_speak_to_the_terminal() -> None:
    assert clean("\x1b[2Jhost\x07\r") == "\\x1b[2Jhost\\x07\\x0d"


def test_resources_are_told_by_state_in_the_order_of_their_life() -> None:
    assert states({"busy": 2, "pending": 3, "idle": 0}) == "3 pending, 2 busy"


def test_no_resources_are_none() -> None:
    assert states({}) == "none"


def test_a_queue_that_holds_says_only_why() -> None:
    record = {"hold": "the schedd does not answer", "accounts": [], "steps": [], "notes": [], "actions": []}
    assert sentences(record) == ["Holds, nothing is created or retired: the schedd does not answer."]


def test_every_unit_of_demand_is_in_the_sentence() -> None:
    account = {"shape": "2 cores", "waiting": 10, "covered": 3, "wanted": 7, "granted": 5, "withheld": {"limit": 2}}
    (said,) = sentences({"accounts": [account]})
    assert (
        said == "10 jobs of 2 cores wait: 3 covered by what is there or on its way; 5 granted now; 2 withheld: limit."
    )


def test_the_steps_of_a_chain_are_told_one_by_one() -> None:
    steps = [{"name": "Ready", "n": 86, "reason": "100 activated"}, {"name": "Scale", "n": 43, "reason": "x 0.5"}]
    assert sentences({"steps": steps}) == ["Ready: 86 (100 activated)", "Scale: 43 (x 0.5)"]


def test_without_work_it_says_so() -> None:
    assert sentences({}) == ["No work is waiting, nothing to do."]
