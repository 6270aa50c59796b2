"""Optimizer groups of a distillation: those of the student alone, and one more."""

from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as CONSTRUCTORS
from torch import nn

from kdtoolbox.registry import OPTIM_WRAPPER_CONSTRUCTORS

_DEFAULT = 'DefaultOptimWrapperConstructor'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DistillerOptimWrapperConstructor:
    """Pass only the student to the student's own optimizer constructor.

    Constructors look for parts such as ``backbone`` by their names, which have the
    prefix ``student.`` in a distiller. With this class each parameter of the student
    gets the group, learning rate and weight decay that it has when trained alone, and
    each of a peer that which it has as a student of this recipe. The
    parameters of connectors and losses form one more group with the default settings
    of the optimizer. ``tools/train.py`` sets this constructor; with other tools, set it
    in the config.

    Args:
        optim_wrapper_cfg: The config that mmengine passes to constructors. Its key
            ``student_constructor`` is the type of the student's own constructor, by
            default mmengine's.
        paramwise_cfg: Argument of the student's own constructor.

    Raises:
        ValueError: If the student's constructor makes several optimizers.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        config = dict(optim_wrapper_cfg)
        self._student = CONSTRUCTORS.build(
            dict(
                type=config.pop('student_constructor', _DEFAULT),
                optim_wrapper_cfg=config,
                paramwise_cfg=paramwise_cfg,
            )
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimizer wrapper for a distiller or for a plain model."""
        bare: Any = model.module if is_model_wrapper(model) else model
        student = getattr(bare, 'student', None)
        if not isinstance(student, nn.Module):
            return self._student(bare)
        wrapper = self._student(student)
        for peer in getattr(bare, 'trained_peers', {}).values():
            _add_groups(wrapper, self._student(peer))
        own = {
            name: parameter
            for name, parameter in bare.named_parameters()
            if not name.startswith(('student.', 'peers.'))
        }
        if own:
            _add_group(wrapper, own)
        return wrapper


def _add_groups(wrapper: Any, other: Any) -> None:
    """Add the groups of another optimizer to that of a wrapper."""
    _check_single(wrapper)
    for group in other.optimizer.param_groups:
        wrapper.optimizer.add_param_group(group)


def _check_single(wrapper: Any) -> None:
    if not isinstance(wrapper, OptimWrapper):
        raise ValueError(
            f'optim_wrapper: expected one optimizer, got a {type(wrapper).__name__}; '
            'a distillation trains the student, its connectors and losses with one'
        )


def _add_group(wrapper: Any, parameters: dict[str, nn.Parameter]) -> None:
    _check_single(wrapper)
    group: dict[str, Any] = {'params': [*parameters.values()]}
    if 'param_names' in wrapper.optimizer.param_groups[0]:
        # torch requires names in all groups or in none.
        group['param_names'] = [*parameters]
    wrapper.optimizer.add_param_group(group)


def group_as_student(cfg: Config) -> None:
    """Set the optimizer constructor of a distillation to that of this module.

    Args:
        cfg: The config of a run, changed in place. A config dumped by a run already
            sets this constructor and stays unchanged.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('constructor', _DEFAULT)
    ours = f'kdtoolbox.{DistillerOptimWrapperConstructor.__name__}'
    if 'optimizer' in wrapper and kind != ours:
        wrapper.student_constructor = kind
        wrapper.constructor = ours
