"""A foundation model as teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtoolbox.registry import TEACHERS
from kdtoolbox.teachers.foundation.building import build_foundation
from kdtoolbox.teachers.teacher import NAME, Teacher


@TEACHERS.register_module()
class FoundationTeacher(Teacher):
    """A backbone of timm, transformers, torch.hub or your own, whose layers are maps.

    Record ``maps`` for all its maps (N, C, h, w), one for each of ``layers``. Other
    recorders reach into ``backbone``, the module of the library. The maps have the
    sizes that the model gives them: bring them to those of the student by a
    ``ResizeConnector``, and the student to their channels by a ``ConvConnector``.

    Names in ``model``:

    - ``timm::vit_small_patch14_dinov2``: any model of timm with
      ``forward_intermediates``, transformers as well as convolutional nets. A layer is
      a block of a ViT, and a stage of other nets.
    - ``transformers::facebook/dinov2-small``: the vision model of a name on the Hugging
      Face hub, of a folder, or of a model type such as ``dinov2``, which stands for its
      default config. DINOv2 with and without registers, DINOv3 (ViT and ConvNeXt), SAM
      and SigLIP are tested.
    - ``hub::facebookresearch/dinov2:dinov2_vits14``: an entry of a repository of
      torch.hub, or of a folder with a ``hubconf.py``. The entry takes ``pretrained``.
    - ``package.module.Class``: your own module. Its forward takes images and returns a
      map (N, C, h, w) or (N, h, w, C), tokens (N, L, C), or several of these in a list,
      tuple or dict, which then are the layers. A module with the
      ``get_intermediate_layers`` of DINOv2 is read by that.

    Images are resized to the nearest multiple of the patch, bilinear with antialiasing;
    those of SAM of transformers to the only size that it takes. Nets without patches
    get them as they are. Position embeddings are interpolated by the library. Class and
    register tokens are dropped. The last layer is the output of the features of the
    model: with its final norm, or the neck of SAM. Other layers are as their blocks
    leave them, without a norm; a stage of Swin of transformers ends with its
    downsampling. ``compile`` has no effect on timm and on DINO's own
    code, whose layers do not come from their forward.

    timm and transformers are needed for their models alone: ``pip install
    kdtoolbox[foundation]``. Only they and torch.hub download, into their own caches,
    and weights only with ``pretrained``. The log names the licence of the published
    weights.

    Args:
        model: The name of the model.
        checkpoint: Path or https URL of its weights, loaded strictly; of a larger model
            the keys of the backbone alone.
        layers: Numbers of layers; negative ones count from the last. By default the
            last one alone.
        arguments: Arguments for ``timm.create_model``, entries of the config of
            transformers, or arguments of the entry or class.
        mean: Mean of the images in pixel units, 0 to 255. By default that of the
            library: of timm's config of the weights, or of the image processor of
            transformers or of its family. Others have no default.
        std: Their standard deviation, as ``mean``.
        bgr: Whether the model expects BGR instead of RGB images.
        patch_size: Stride of the tokens in pixels, where the library does not tell it.
        pretrained: Take the weights that the library has for this name; for your own
            class, say that it loads them itself.
        allow_random: Allow random weights.
        trust_pickle: Load pickles that contain more than weights. They can run any
            code.
        name: Name of the teacher.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If an argument has a wrong value; if the model has no weights, two
            sources of them, or ones that do not fit; if the library is missing or does
            not know the model; if there is no such layer; if mean or std is unknown.
        TypeError: If the model has no such argument.

    Example:
        >>> import torch
        >>> conv = dict(in_channels=3, out_channels=8, kernel_size=16, stride=16)
        >>> pixels = dict(mean=[0, 0, 0], std=[255, 255, 255])
        >>> teacher = FoundationTeacher(
        ...     'torch.nn.Conv2d', arguments=conv, allow_random=True, **pixels)
        >>> records = teacher.observe({'maps': 'maps'}, torch.zeros(2, 3, 64, 96), [])
        >>> [tuple(level.shape) for level in records['maps']]
        [(2, 8, 4, 6)]
    """

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        layers: Sequence[int] | None = None,
        arguments: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
        patch_size: int | None = None,
        pretrained: bool = False,
        allow_random: bool = False,
        trust_pickle: bool = False,
        name: str = NAME,
        where: str = 'model.teacher',
    ) -> None:
        built = build_foundation(
            model,
            checkpoint,
            layers,
            arguments,
            mean,
            std,
            bgr,
            patch_size,
            pretrained,
            allow_random,
            trust_pickle,
            where,
        )
        super().__init__(built, name, where)
