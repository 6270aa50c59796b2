import pytest
import torch
from torch import Tensor

from kdtoolbox.diagnosis.similarity import level_similarity, linear_cka


def features(rows: int = 500, columns: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(features(size, size, 1).double()).Q.float()


@pytest.mark.parametrize(
    'change',
    [lambda x: x @ rotation(6), lambda x: 1e-6 * x, lambda x: x + 3, lambda x: -x],
    ids=['rotated', 'scaled', 'shifted', 'negated'],
)
def test_cka_ignores_rotation_scale_and_shift(change) -> None:
    assert linear_cka(features(), change(features())) == pytest.approx(1, abs=1e-4)


def test_cka_sees_an_uneven_stretch() -> None:
    stretched = features() * torch.tensor([9.0, 1, 1, 1, 1, 1])
    assert linear_cka(features(), stretched) < 0.7


def test_cka_of_unrelated_features_is_near_0_and_symmetric() -> None:
    one, other = features(), features(columns=4, seed=7)
    value = linear_cka(one, other)
    assert 0 <= value < 0.05
    assert value == pytest.approx(linear_cka(other, one))


def test_plain_formula() -> None:
    one, other = features(20, 3), features(20, 2, seed=3)
    centre = torch.eye(20) - 1 / 20
    gram = [centre @ x @ x.T @ centre for x in (one, other)]
    expected = (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())
    assert linear_cka(one, other) == pytest.approx(float(expected), rel=1e-4)


def test_constant_features_have_no_cka() -> None:
    assert linear_cka(features(), torch.ones(500, 2)) is None


def test_maps_of_other_sizes_are_pooled() -> None:
    small = features(2 * 8 * 8, 5).reshape(2, 8, 8, 5).permute(0, 3, 1, 2)
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert level_similarity(large, small) == pytest.approx(1, abs=1e-4)
    assert level_similarity(small, small.flip(0)) < 0.2


def test_tokens_and_rows() -> None:
    tokens = features(40, 6).reshape(2, 20, 6)
    assert level_similarity(tokens, 2 * tokens) == pytest.approx(1, abs=1e-4)
    assert level_similarity(tokens, tokens[:, :5]) is None
    assert level_similarity(tokens[:0], tokens[:0]) is None


def test_many_positions_give_the_same_as_all() -> None:
    maps = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    mixed = maps + maps.flip(1)
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in (maps, mixed)]
    assert level_similarity(maps, mixed) == pytest.approx(linear_cka(*rows), abs=0.03)
