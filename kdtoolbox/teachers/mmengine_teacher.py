"""A detector or segmentor of mmdet or mmseg as teacher."""

from kdtoolbox.checkpoints.weights import class_names, load_checkpoint, load_strictly
from kdtoolbox.registry import TEACHERS
from kdtoolbox.teachers.models import build_model
from kdtoolbox.teachers.teacher import NAME, Teacher


def check_trained(
    checkpoint: str | None = None,
    allow_random: bool = False,
    where: str = 'model.teacher',
) -> None:
    """Raise ValueError if a teacher has no weights and is not allowed to be random."""
    if checkpoint is None and not allow_random:
        raise ValueError(
            f'{where}.checkpoint is None: a teacher with random weights '
            'teaches nothing. Name a path or URL, or set `allow_random=True`'
        )


@TEACHERS.register_module()
class MMEngineTeacher(Teacher):
    """A model of mmdet or mmseg with strictly loaded weights.

    This is the kind of a teacher whose config has no ``type``.

    Args:
        config: The teacher's config: ``package::path``, a file or a dict.
        checkpoint: Path or https URL of the weights.
        allow_random: Allow a teacher without a checkpoint.
        trust_pickle: Load pickles that contain more than weights. They can run any
            code.
        name: Name of the teacher.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If there is no checkpoint, or it does not fit the config.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str | None = None,
        allow_random: bool = False,
        trust_pickle: bool = False,
        name: str = NAME,
        where: str = 'model.teacher',
    ) -> None:
        check_trained(checkpoint, allow_random, where)
        place = f'{where}.config'
        model = build_model(config, where=place)
        classes = None
        if checkpoint is not None:
            loaded = load_checkpoint(checkpoint, trust_pickle)
            named = repr(config) if isinstance(config, str) else place
            load_strictly(model, loaded['state_dict'], repr(checkpoint), named)
            classes = class_names(loaded['meta'])
        super().__init__(model, name, where, classes)
