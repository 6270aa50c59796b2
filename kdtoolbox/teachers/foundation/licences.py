"""The licences of the published weights of foundation models."""

UNKNOWN = 'unknown: look at its model card'

_APACHE_DINOV2 = 'Apache-2.0 (github.com/facebookresearch/dinov2)'
_DINOV3 = 'DINOv3 License (github.com/facebookresearch/dinov3)'

_LICENCES = {
    'dinov2': _APACHE_DINOV2,
    'dinov2_with_registers': _APACHE_DINOV2,
    'dinov3_vit': _DINOV3,
    'dinov3_convnext': _DINOV3,
    'sam_vision_model': 'Apache-2.0 (github.com/facebookresearch/segment-anything)',
    'siglip_vision_model': 'Apache-2.0 (github.com/google-research/big_vision)',
    'facebookresearch/dinov2': _APACHE_DINOV2,
    'facebookresearch/dinov3': _DINOV3,
}
"""Licences by the model types of transformers and by repositories of torch.hub."""


def licence_of(family: str) -> str:
    """Return the licence of a family of models with its source.

    Example:
        >>> licence_of('dinov3_vit')
        'DINOv3 License (github.com/facebookresearch/dinov3)'
        >>> licence_of('clip_vision_model')
        'unknown: look at its model card'
    """
    return _LICENCES.get(family, UNKNOWN)
