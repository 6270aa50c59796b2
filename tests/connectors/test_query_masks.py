import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.connectors import QueryMaskConnector


def factors() -> tuple[list[Tensor], Tensor]:
    """Return the embeddings of 4 queries in 3 layers, and features of 5 x 6."""
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(3, 2, 4, 7, generator=generator).double().unbind(0)
    return list(layers), torch.randn(2, 7, 5, 6, generator=generator).double()


@pytest.mark.parametrize('pool_size', [1, 2, 4])
def test_masks_are_pooled_products_of_embeddings_and_features(pool_size: int) -> None:
    layers, features = factors()
    found = QueryMaskConnector(pool_size)(layers, [features])
    assert len(found) == 3
    for masks, embeddings in zip(found, layers, strict=True):
        full = torch.stack(
            [
                torch.stack([sum(q[c] * maps[c] for c in range(7)) for q in image])
                for image, maps in zip(embeddings, features, strict=True)
            ]
        )
        expected = functional.avg_pool2d(full, pool_size, ceil_mode=True)
        torch.testing.assert_close(masks, expected)


def test_map_smaller_than_a_cell_is_averaged() -> None:
    [masks] = QueryMaskConnector(4)(
        [torch.ones(1, 2, 1)], [torch.arange(6.0).reshape(1, 1, 2, 3)]
    )
    assert torch.equal(masks, torch.full((1, 2, 1, 1), 2.5))


def test_embeddings_and_features_get_a_gradient() -> None:
    layers, features = factors()
    layers[2].requires_grad_(), features.requires_grad_()
    masks = QueryMaskConnector(2)(layers, [features])
    masks[2].square().sum().backward()
    assert layers[2].grad.any()
    assert features.grad.any()


def test_masks_equal_those_of_mask2former() -> None:
    from mmdet.models.dense_heads import Mask2FormerHead

    layers, features = factors()
    head = torch.nn.Module()
    head.transformer_decoder = torch.nn.Module()
    head.transformer_decoder.post_norm = torch.nn.Identity()
    head.cls_embed = head.mask_embed = torch.nn.Identity()
    head.num_heads = 1
    _, expected, _ = Mask2FormerHead._forward_head(head, layers[1], features, (2, 2))
    found = QueryMaskConnector()(layers, [features])
    torch.testing.assert_close(found[1], expected)


def test_invalid_inputs_raise() -> None:
    layers, features = factors()
    with pytest.raises(ValueError, match=r'expected one map .*pixel_decoder.mask_fea'):
        QueryMaskConnector()(layers, [features, features])
    with pytest.raises(ValueError, match=r'\(N, Q, C\) .* got \(2, 4, 6\)'):
        QueryMaskConnector()([layers[0][..., 1:]], [features])
