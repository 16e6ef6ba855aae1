from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfoot.engine import EngineError, _secrets
from fleetfoot.engine import _paths as paths
from fleetfoot.engine import _values as values
from fleetfoot.engine._secrets import Crypter
from fleetfoot.engine._values import UNKNOWN_VALUE, Secret, equal


@pytest.fixture(scope="module")
def crypter() -> Crypter:
    return Crypter("correct horse")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8")),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3),
        inner.map(values.seal),
    ),
    max_leaves=8,
)
properties = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), trees, max_size=4)


@given(properties)
def test_wire_keeps_values(given_: dict[str, Any]) -> None:
    assert equal(values.from_struct(values.to_struct(given_, secrets=True)), given_)


@given(given_=properties)
def test_state_keeps_values_and_is_stable(crypter: Crypter, given_: dict[str, Any]) -> None:
    first = json.dumps(values.to_state(given_, crypter.encrypt))
    back = values.from_state(json.loads(first), crypter.decrypt)
    assert equal(back, given_)
    # What did not change is byte-identical, although each encryption has a new nonce.
    assert json.dumps(values.to_state(back, crypter.encrypt)) == first


def test_unknown_is_left_out_for_those_who_do_not_know_it() -> None:
    struct = values.to_struct({"a": UNKNOWN_VALUE, "b": 1}, secrets=False, unknowns=False)
    assert set(struct.fields) == {"b"}


def test_secrets_go_in_clear_only_to_those_who_cannot_read_them() -> None:
    assert values.to_struct({"a": Secret("x")}, secrets=False)["a"] == "x"
    assert values.to_struct({"a": Secret("x")}, secrets=True)["a"]["value"] == "x"


def test_true_is_not_one() -> None:
    assert not equal({"a": True}, {"a": 1})
    assert equal([1], [1.0])


def test_wrong_passphrase_is_told(crypter: Crypter) -> None:
    with pytest.raises(EngineError, match="passphrase"):
        Crypter("wrong", crypter.state)


def test_salt_of_the_cli_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_secrets, "_ITERATIONS", 1_000_000)
    # Made by the CLI (3.260) with the passphrase "pw".
    state = "v1:68rIiJcTeQM=:v1:AKEk0ZcPjp8vjwux:eZ7DU870cB9uSCchKzIX9cJtu+SvEA=="
    sealed = "v1:G/IUrexsSIoh5y7j:klDIWX09tG0IopXj6QJmOiO4JNoRnMOH"
    assert json.loads(Crypter("pw", state).decrypt(sealed)) == "geheim"


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", ["a"]),
        ("a.b[0].c", ["a", "b", 0, "c"]),
        ('a["x.y"]', ["a", "x.y"]),
        ("a[*].b", ["a", "*", "b"]),
    ],
)
def test_paths(path: str, parts: list[str | int]) -> None:
    assert paths.parse(path) == parts


def test_ignored_paths_stay_as_they_were() -> None:
    new = {"a": {"b": 2, "c": 3}, "d": [1, 2], "e": 1}
    old = {"a": {"b": 1}, "d": [9, 8]}
    kept = paths.keep(new, old, ["a.b", "d[1]", "e"])
    assert kept == {"a": {"b": 1, "c": 3}, "d": [1, 8]}
    assert new["a"]["b"] == 2
