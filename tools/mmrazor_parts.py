"""The recorders, connectors and losses of a config of mmrazor in terms of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrazor_types import Values, convert, name_of

SIDE_OF = {
    f'{prefix}{end}': side
    for side, end in (('student', 'S'), ('teacher', 'T'))
    for prefix in ('preds_', 'logits_')
} | dict(s_feature='student', t_feature='teacher')
RECORDERS = dict(
    ParameterRecorder='a record is a tensor of a forward pass; for the weights of a '
    'classifier write sources=[dict(type="ClassifierWeights")]',
    FunctionOutputs='record a module that contains the call of the function',
    FunctionInputs='record a module that contains the call of the function',
    MethodOutputs='record a module that contains the call of the method',
    MethodInputs='record a module that contains the call of the method',
)


class Parts:
    """The recorders, connectors and losses of a distiller.

    Args:
        distiller: The config of a ConfigurableDistiller.
        map_size: See `convert_model`.
    """

    def __init__(
        self, distiller: Mapping[str, Any], map_size: Sequence[int] | None
    ) -> None:
        where = 'model.distiller'
        kind = name_of(distiller.get('type'))
        if kind != 'ConfigurableDistiller':
            raise ValueError(
                f'{where}: {kind} has no equal, only ConfigurableDistiller'
            )
        if distiller.get('distill_deliveries'):
            raise ValueError(
                f'{where}.distill_deliveries has no equal: the student never gets '
                'results of the teacher in place of its own'
            )
        self.distiller = distiller
        self.map_size = map_size
        self.mappings = distiller.get('loss_forward_mappings') or {}
        self.recorders: dict[str, Values] = dict(student={}, teacher={})
        self.connectors: dict[str, Values] = {}
        self.losses: dict[str, Values] = {}
        configs = distiller.get('distill_losses') or {}
        for name in configs.keys() ^ self.mappings.keys():
            raise ValueError(
                f'{where}: {name!r} is in one of distill_losses and '
                'loss_forward_mappings; remove it or add it to the other'
            )
        for name, config in configs.items():
            self.losses[name] = self._loss(name, config)

    def _loss(self, name: str, config: Mapping[str, Any]) -> Values:
        where = f'model.distiller.distill_losses.{name}'
        loss = convert(config, where)
        records = self.mappings[name]
        for argument in records:
            if argument not in SIDE_OF:
                raise ValueError(
                    f'model.distiller.loss_forward_mappings.{name}: {argument!r} has '
                    f'no equal; there are {sorted(SIDE_OF)}'
                )
        wires = {SIDE_OF[key]: self._wire(name, records[key]) for key in records}
        if loss['type'] == 'KDLoss':
            loss['loss_weight'] *= self._positions(where)
        kind = loss.pop('type')
        return dict(type=kind, **wires, **loss)

    def _positions(self, where: str) -> int:
        """Return the positions per map that mmrazor sums over and ours averages."""
        if self.map_size is None:
            raise ValueError(
                f'{where}: KLDivergence sums over the positions of a map, KDLoss '
                'averages. Add --map-size H W, the size of these logits in training, '
                'or --map-size 1 1 for rows (N, C)'
            )
        return self.map_size[0] * self.map_size[1]

    def _wire(self, loss: str, record: Mapping[str, Any]) -> str:
        """Return the wire of a record, and note the parts that it needs."""
        where = f'model.distiller.loss_forward_mappings.{loss}'
        side = 'student' if record['from_student'] else 'teacher'
        name = record['recorder']
        recorders = self.distiller.get(f'{side}_recorders') or {}
        if name not in recorders:
            raise ValueError(f'{where}: there is no recorder {name!r} of the {side}')
        self.recorders[side][name] = _recorder(
            recorders[name], f'model.distiller.{side}_recorders.{name}'
        )
        wire = f'{side}.{name}'
        level = self._level(record, where)
        if level is not None:
            taken = f'{side}_{name}_{level}'
            self._connect(
                taken, dict(type='LevelsConnector', input=wire, levels=[level])
            )
            wire = taken
        if record.get('connector'):
            wire = self._connected(record['connector'], wire)
        return wire

    def _level(self, record: Mapping[str, Any], where: str) -> int | None:
        """Return the position of a record in our wire; None for all of the wire."""
        call, part = record.get('record_idx', 0), record.get('data_idx')
        if part is not None and call:
            raise ValueError(
                f'{where}: record_idx={call} and data_idx={part} together have no '
                'equal; record the modules of the parts one by one'
            )
        if part is not None:
            return part
        alike = (record['from_student'], record['recorder'])
        others = (r for records in self.mappings.values() for r in records.values())
        repeated = any(
            other.get('record_idx')
            for other in others
            if (other['from_student'], other['recorder']) == alike
        )
        return call if repeated else None

    def _connected(self, name: str, wire: str) -> str:
        where = f'model.distiller.connectors.{name}'
        config = (self.distiller.get('connectors') or {}).get(name)
        if config is None:
            raise ValueError(f'{where}: there is no such connector')
        ours = convert(config, where)
        students = config.get('student_channels')
        if ours['type'] == 'MGDConnector' and students != ours['channels']:
            align = dict(in_channels=students, out_channels=ours['channels'])
            align = dict(type='ConvConnector', input=wire, **align)
            self._connect(f'{name}_align', align)
            wire = f'{name}_align'
        kind = ours.pop('type')
        self._connect(name, dict(type=kind, input=wire, **ours))
        return name

    def _connect(self, name: str, config: Values) -> None:
        if self.connectors.setdefault(name, config) != config:
            raise ValueError(
                f'model.distiller.connectors: {name!r} would read two records; give '
                'each a connector of its own'
            )


def _recorder(config: Mapping[str, Any], where: str) -> Any:
    kind = name_of(config.get('type'))
    if kind == 'ModuleOutputs':
        return config['source']
    if kind == 'ModuleInputs':
        return dict(source=config['source'], what='input')
    hint = RECORDERS.get(kind, 'there are ModuleOutputs and ModuleInputs')
    raise ValueError(f'{where}: {kind} has no equal: {hint}')
