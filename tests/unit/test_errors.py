"""The tree of errors is as it is drawn, and each can be imported by its name from one place."""

from __future__ import annotations

import re

from forwardpass import errors


def drawn() -> list[tuple[str, str]]:
    """Return child and parent, as the drawing in the package's docstring has them."""
    assert errors.__doc__ is not None
    pairs, above = [], [(-1, "Exception")]
    for line in errors.__doc__.splitlines():
        if (found := re.match(r"^    ([│├└─ ]*)([A-Z]\w+)(?:  .*)?$", line)) is None:
            continue
        depth, name = len(found[1]), found[2]
        while above[-1][0] >= depth:
            above.pop()
        pairs.append((name, above[-1][1]))
        above.append((depth, name))
    return pairs


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.ForwardpassError)


def test_every_error_is_drawn_below_its_parent_and_can_be_imported() -> None:
    pairs = drawn()
    assert sorted(name for name, _ in pairs) == sorted(errors.__all__)
    for name, parent in pairs:
        assert getattr(errors, name).__bases__[0].__name__ == parent


def test_slugs_are_stable_names_of_one_class_each() -> None:
    slugs = [getattr(errors, name).slug for name in errors.__all__]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)
    assert all(is_error(getattr(errors, name)) for name in errors.__all__)
