"""Optimizer groups of a distillation: the student's as without one, and its own."""

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
    """Let the student's own constructor see the student alone.

    Constructors look for parts such as ``backbone`` and for parameters whose names
    begin with it. Here each parameter of the student gets the group, learning rate and
    weight decay that it gets when trained alone. Those of connectors and losses form
    one more group with the settings of the optimizer. ``tools/train.py`` sets this
    constructor; with other tools name it in the config.

    Args:
        optim_wrapper_cfg: As mmengine's constructors take it, and in it as
            ``student_constructor`` the type of the student's own, mmengine's default
            one if there is none.
        paramwise_cfg: What the student's own constructor takes.

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
        """Return the optimizer wrapper of a model, a distiller or any other."""
        bare: Any = model.module if is_model_wrapper(model) else model
        student = getattr(bare, 'student', None)
        if not isinstance(student, nn.Module):
            return self._student(bare)
        wrapper = self._student(student)
        own = {
            name: parameter
            for name, parameter in bare.named_parameters()
            if not name.startswith('student.')
        }
        if own:
            _add_group(wrapper, own)
        return wrapper


def _add_group(wrapper: Any, parameters: dict[str, nn.Parameter]) -> None:
    if not isinstance(wrapper, OptimWrapper):
        raise ValueError(
            f'optim_wrapper: expected one optimizer, got a {type(wrapper).__name__}; '
            'a distillation trains the student, its connectors and losses with one'
        )
    group: dict[str, Any] = {'params': [*parameters.values()]}
    if 'param_names' in wrapper.optimizer.param_groups[0]:
        # torch takes names for all groups or for none.
        group['param_names'] = [*parameters]
    wrapper.optimizer.add_param_group(group)


def group_as_student(cfg: Config) -> None:
    """Set the constructor of a distillation's config to the one of this module.

    Args:
        cfg: The config of a run; a dumped one, which has it already, stays as it is.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('constructor', _DEFAULT)
    ours = f'kdtoolbox.{DistillerOptimWrapperConstructor.__name__}'
    if 'optimizer' in wrapper and kind != ours:
        wrapper.student_constructor = kind
        wrapper.constructor = ours
