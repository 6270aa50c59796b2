"""Initialise a student from its teacher's neck and heads (inheriting strategy)."""

from mmengine.logging import print_log
from torch import Tensor, nn


def inherit(student: nn.Module, teacher: nn.Module) -> dict[str, int]:
    """Copy each part of the teacher whose tensors all fit, except the backbone.

    A part is a child of the model, such as ``neck`` or ``bbox_head``. It is copied
    completely or not at all. The log lists the copied and the skipped parts.

    Returns:
        The number of tensors of each copied part.

    Raises:
        ValueError: If no part fits.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone, self.neck = nn.Linear(2, 3), nn.Linear(3, 1)
        >>> student, teacher = Model(), Model()
        >>> inherit(student, teacher)
        {'neck': 2}
        >>> bool((student.neck.weight == teacher.neck.weight).all())
        True
    """
    copied, kept = {}, {}
    for name, part in student.named_children():
        state = part.state_dict()
        if name in ('backbone', 'data_preprocessor') or not state:
            continue
        source = dict(teacher.named_children()).get(name, nn.Module()).state_dict()
        misfit = _first_misfit(state, source)
        if misfit:
            kept[name] = misfit
        else:
            part.load_state_dict(source)
            copied[name] = len(state)
    skipped = [f'{name} ({misfit})' for name, misfit in kept.items()]
    if not copied:
        raise ValueError(
            'model.init_student: no part of the teacher fits the student: '
            f'{"; ".join(skipped)}; set init_student=False'
        )
    report = ', '.join(f'{name} ({count} tensors)' for name, count in copied.items())
    print_log(
        f'init_student: copied {report} from the teacher'
        + (f'; not copied: {"; ".join(skipped)}' if skipped else ''),
        logger='current',
    )
    return copied


def _first_misfit(state: dict[str, Tensor], source: dict[str, Tensor]) -> str:
    for key, value in state.items():
        if key not in source:
            return f'the teacher has no {key}'
        if source[key].shape != value.shape:
            shapes = f'{tuple(source[key].shape)}, not {tuple(value.shape)}'
            return f"the teacher's {key} has shape {shapes}"
    extra = source.keys() - state.keys()
    return f'the student has no {min(extra)}' if extra else ''
