"""Write a segmentor of mmseg or a dense detector of mmdet as ONNX, and check the file.

The file contains the normalisation of the `data_preprocessor`. Its input `images` are
float32 (N, 3, H, W) in the range and channel order in which the images are loaded, by
default BGR from 0 to 255. A segmentor returns `logits` (N, classes, H, W). A detector
returns the maps of its head, one output per level, named after the arguments of the
head's `predict_by_feat`, which decodes them. docs/deployment.md has examples.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.runs.brief_errors import add_traceback, brief_errors
from kdtoolbox.runs.command_line import read_config
from kdtoolbox.runs.student_config import student_config
from kdtoolbox.teachers.models import build_model
from kdtoolbox.teachers.normalization import Renormalization

BOUND = 1e-4
"""Largest difference to torch, as a share of the largest value of an output."""

# Multiples of 128, so that no pyramid level is a single cell, which torch would assume
# for all sizes.
TRACED, OTHER = (256, 384), (384, 512)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model, such as student.py')
    parser.add_argument('checkpoint', help='its weights, .pth or .safetensors')
    parser.add_argument('out', type=Path, help='file to write, .onnx')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='fix the size of the images; by default H, W and N are free, with --size '
        'only N',
    )
    parser.add_argument('--opset', type=int, help="opset; by default torch's own")
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    add_traceback(parser)
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        parser.error(f'OUT must end in .onnx, got {args.out}')
    if not args.out.parent.is_dir():
        parser.error(f'the folder {args.out.parent} of OUT does not exist; make it')
    if args.out.exists() and not args.overwrite:
        parser.error(f'{args.out} exists; name another file or add --overwrite')
    return args


class Network(nn.Module):
    """A model from raw images to the maps of its head, by the names of the outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.is_segmentor = hasattr(model, 'encode_decode')
        head = getattr(model, 'bbox_head', None)
        staged = hasattr(model, 'roi_head') or hasattr(model, 'forward_transformer')
        if not self.is_segmentor and (head is None or staged):
            raise ValueError(
                f'a {type(model).__name__} is neither a segmentor nor a detector with '
                'one dense head; convert it with mmdeploy, see docs/deployment.md'
            )
        self.keys = (
            [] if head is None else [*signature(head.predict_by_feat).parameters]
        )
        to_model = Renormalization(ImgDataPreprocessor(), model.data_preprocessor)
        self.flip = to_model.flip
        self.register_buffer('scale', to_model.scale)
        self.register_buffer('shift', to_model.shift)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `logits`, or the maps of the head, for raw images (N, 3, H, W)."""
        images = images.flip(1) if self.flip else images
        images = images * self.scale + self.shift
        if self.is_segmentor:
            metas = [dict(img_shape=images.shape[2:])]
            return dict(logits=self.model.encode_decode(images, metas))
        maps = self.model(images, None, mode='tensor')
        named = zip(self.keys, maps, strict=False)
        return {f'{key}.{i}': x for key, xs in named for i, x in enumerate(xs)}


def make_images(count: int, size: Sequence[int]) -> Tensor:
    return 255 * torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def convert(network: Network, size: Sequence[int] | None, opset: int | None) -> bytes:
    example = (make_images(2, size or TRACED),)
    names = {0: 'N'} if size else {0: 'N', 2: 'H', 3: 'W'}
    free = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
    # Not strict, the sizes that mmseg computes with `int` would become constants.
    traced = torch.export.export(network, example, dynamic_shapes=(free,), strict=True)
    program = torch.onnx.export(
        traced,
        input_names=['images'],
        output_names=[*network(*example)],
        dynamic_shapes=(names,),
        opset_version=opset,
        verbose=False,
    )
    return program.model_proto.SerializeToString()


def difference(network: Network, session: Any, images: Tensor) -> float:
    """Return the largest difference to torch, as a share of its output's largest value.

    It is infinite if the file cannot process images of this size.
    """
    expected = network(images)
    try:
        found = session.run([*expected], dict(images=images.numpy()))
    except Exception as error:
        print(str(error).splitlines()[0])
        return math.inf
    return max(
        float((torch.from_numpy(x) - y).abs().max() / y.abs().max())
        for x, y in zip(found, expected.values(), strict=True)
    )


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise SystemExit(f'{error}; pip install onnx onnxscript onnxruntime') from error
    cfg = read_config(args.config, need_teacher=False)
    model = build_model(Config(student_config(cfg)))
    state = load_checkpoint(args.checkpoint)['state_dict']
    load_strictly(model, state, repr(args.checkpoint), args.config)
    network = Network(model).eval()
    for name in ('torch', 'onnxscript'):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        content = convert(network, args.size, args.opset)
    except Exception as error:
        raise ValueError(
            f'{args.config}: torch cannot export this {type(model).__name__}; the '
            'errors above say why. Convert it with mmdeploy, see docs/deployment.md'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options)
    for count, size in ((2, args.size or TRACED), (1, args.size or OTHER)):
        found = difference(network, session, make_images(count, size))
        shape = (count, 3, *size)
        print(f'images {shape}: largest relative difference to torch {found:.1e}')
        if not found <= BOUND:
            advice = '' if args.size else '; it may depend on the size: add --size H W'
            raise SystemExit(f'not written: the difference exceeds {BOUND}{advice}')
    with write_whole(args.out, len(content)) as file:
        file.write(content)
    print(f'{args.out}: {len(content) / 1e6:.1f} MB')
    for value in [*session.get_inputs(), *session.get_outputs()]:
        print(f'  {value.name} {value.shape}')


def main() -> None:
    args = parse_args()
    with brief_errors(args.traceback):
        export(args)


if __name__ == '__main__':
    main()
