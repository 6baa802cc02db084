"""Folded paths stand for exactly the paths they were made of."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from autopar.core.folding import common_folder, fold, numbers

parts = st.sampled_from(["a", "b", "block_0", "block_1", "block_2", "0", "1"])
paths = st.lists(st.lists(parts, min_size=1, max_size=4).map("/".join), unique=True, max_size=24)


def folded(*found: str, known: tuple[str, ...] = ()) -> list[str]:
    return [pattern.show(numbers((*found, *known))) for pattern in fold(found)]


@given(paths)
def test_every_path_is_in_one_pattern_once(found):
    patterns = fold(found)
    expanded = ["/".join(path) for p in patterns for path in itertools.product(*p.parts)]
    assert sorted(expanded) == sorted(found)
    assert sum(pattern.count for pattern in patterns) == len(found)


@given(paths)
def test_all_lie_in_the_common_folder(found):
    folder = common_folder(found)
    assert all(path.startswith(folder) for path in found)
    assert not folder or folder.endswith("/")


def test_layers_and_names_fold():
    both = [f"block_{i}/{name}/kernel" for i in range(12) for name in ("k", "q")]
    assert folded(*both, "head/kernel") == ["block_*/{k,q}/kernel", "head/kernel"]


def test_a_star_stands_for_every_number_there_is():
    four = tuple(f"block_{i}/w" for i in range(4))
    assert folded(*four) == ["block_*/w"]
    assert folded(*four, known=("block_4/w",)) == ["block_{0..3}/w"]
    assert folded(four[0], four[3], known=four) == ["block_{0,3}/w"]
    assert folded(four[2], known=four) == ["block_2/w"]


def test_numbers_alone_and_mixed_names():
    assert folded("layers/0/w", "layers/1/w") == ["layers/*/w"]
    assert folded("opt/mu/w", "opt/0/w") == ["opt/{0,mu}/w"]


def test_common_folder():
    assert common_folder(["state/params/a/w", "state/params/b/w"]) == "state/params/"
    assert common_folder(["state/w"]) == "state/"
    assert common_folder(["w", "state/w"]) == common_folder([]) == ""
