import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdtoolbox.recorders import check_recorders, record


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return tuple(outputs)


class Neck(nn.Module):
    """One convolution and one upsampling, each used on every level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return [self.up(self.conv(level)) for level in levels]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.meta = Meta()

    def forward(self, levels: list[Tensor], scale: float) -> dict:
        scores = [self.relu(self.conv(level)) for level in levels]
        return dict(scores=scores, extra=(scores[0] * scale, None, self.meta('cat')))


class Meta(nn.Module):
    def forward(self, text: str) -> str:
        return text.upper()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck()
        self.bbox_head = Head()
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> dict:
        return self.bbox_head(scale=2.0, levels=self.neck(self.backbone(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def image() -> Tensor:
    return torch.arange(48.0).sin().reshape(1, 3, 4, 4)


def hooks_of(model: nn.Module) -> list:
    names = [
        '_forward_hooks',
        '_forward_hooks_with_kwargs',
        '_forward_hooks_always_called',
        '_forward_pre_hooks',
        '_forward_pre_hooks_with_kwargs',
        '_backward_hooks',
    ]
    modules = list(model.modules())
    return [hook for m in modules for name in names for hook in getattr(m, name)]


def never(*_: object) -> None:
    raise AssertionError('this module must not run')


@pytest.mark.parametrize(
    ('path', 'index'),
    [
        ('backbone.layers.2', 2),
        ('backbone.layers[2]', 2),
        ('backbone.layers[-1]', 3),
        ('backbone.layers.-1', 3),
        ('backbone.layers[-4]', 0),
        ('backbone.lay*[-2]', 2),
    ],
)
def test_path(net: Net, image: Tensor, path: str, index: int) -> None:
    with record(net, {'x': path}) as records:
        net(image)
    [tensor] = records['x']
    assert torch.equal(tensor, net.backbone(image)[index])


def test_every_name_of_named_modules_is_a_path(net: Net) -> None:
    for name, module in net.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            check_recorders(net, {'x': name}, 'recorders')


def test_glob_records_every_match_in_order_of_the_calls(
    net: Net, image: Tensor
) -> None:
    with record(net, {'x': 'backbone.layers.*'}) as records:
        net(image)
    expected = net.backbone(image)
    assert len(records['x']) == 4
    assert all(map(torch.equal, records['x'], expected))


def test_glob_stays_within_one_component(net: Net) -> None:
    with pytest.raises(ValueError, match='no module'):
        check_recorders(net, {'x': 'back*.0'}, 'recorders')


def test_tuple_becomes_one_entry_per_level(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'backbone'}) as records:
        net(image)
    assert all(map(torch.equal, records['x'], net.backbone(image)))
    assert len(records['x']) == 4


def test_nested_output_is_flattened_and_its_rest_left_out(
    net: Net, image: Tensor
) -> None:
    with record(net, {'x': 'bbox_head'}) as records:
        output = net(image)
    assert len(records['x']) == 5
    assert records['x'][-1] is output['extra'][0]


def test_shared_module_gives_one_entry_per_call(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'neck.conv', 'y': 'neck'}) as records:
        net(image)
    assert len(records['x']) == len(records['y']) == 4


def test_input_takes_keywords_and_positions(net: Net, image: Tensor) -> None:
    recorders = {
        'keyword': dict(source='bbox_head', what='input'),
        'position': dict(source='neck', what='input'),
        'output': dict(source='backbone', what='output'),
    }
    with record(net, recorders) as records:
        net(image)
    assert [len(records[name]) for name in recorders] == [4, 4, 4]
    assert records['position'][1] is records['output'][1]
    assert records['keyword'][0].shape == (1, 3, 8, 8)


def test_two_names_of_one_module_and_of_nested_ones(net: Net, image: Tensor) -> None:
    recorders = {'a': 'neck', 'b': 'neck', 'c': 'backbone.layers.3', 'd': 'backbone'}
    with record(net, recorders) as records:
        net(image)
    assert records['a'][0] is records['b'][0]
    assert records['c'][0] is records['d'][3]


def test_record_does_not_change_the_output(net: Net, image: Tensor) -> None:
    expected = net(image)['scores'][0]
    recorders = {'x': dict(source='neck', what='input'), 'y': 'bbox_head'}
    with record(net, recorders):
        output = net(image)['scores'][0]
    assert torch.equal(output, expected)


def test_gradients_flow_through_a_record(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'neck'}, require_grad=True) as records:
        net(image)
    sum(tensor.sum() for tensor in records['x']).backward()
    assert net.backbone.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('path', 'near'),
    [
        ('nek', 'neck'),
        ('backbone.layer.2', 'backbone.layers.2'),
        ('backbone.layers[9]', 'backbone.layers.'),
        ('bbox_head.relu.conv', 'bbox_head.conv'),
        ('', 'none'),
    ],
)
def test_unknown_path_names_near_ones(net: Net, path: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as caught:
        check_recorders(net, {'fpn': path}, 'model.recorders.student')
    assert 'model.recorders.student.fpn: Net has no module' in str(caught.value)


@pytest.mark.parametrize('path', ['backbone.layers', '*.layers'])
def test_module_list_is_refused_with_the_cure(net: Net, path: str) -> None:
    with pytest.raises(ValueError, match=r"record its members with 'backbone.layers"):
        check_recorders(net, {'x': path}, 'recorders')


@pytest.mark.parametrize(
    'recorder',
    [
        dict(source='neck', what='outputs'),
        dict(source='neck', level=1),
        dict(what='input'),
        ['neck'],
        None,
    ],
)
def test_malformed_recorder_is_named_by_its_config_path(
    net: Net, recorder: object
) -> None:
    with pytest.raises((TypeError, ValueError), match=r'recorders\.x: expected'):
        check_recorders(net, {'x': recorder}, 'recorders')


def test_module_that_was_not_called(net: Net, image: Tensor) -> None:
    with (
        pytest.raises(ValueError, match="'unused' was not called in this forward"),
        record(net, {'x': 'unused'}),
    ):
        net(image)


def test_head_entered_past_its_hooks_gets_a_cure(net: Net, image: Tensor) -> None:
    with (
        pytest.raises(ValueError, match='record a module inside or before it'),
        record(net, {'x': 'bbox_head'}),
    ):
        net.bbox_head.forward(net.neck(net.backbone(image)), 1.0)


@pytest.mark.parametrize(
    'recorder',
    ['bbox_head.conv', dict(source='bbox_head.relu', what='input')],
    ids=['output', 'input'],
)
def test_tensor_overwritten_in_place_is_refused(
    net: Net, image: Tensor, recorder: str | dict
) -> None:
    with (
        pytest.raises(ValueError, match='overwritten in place'),
        record(net, {'x': recorder}),
    ):
        net(image)
    with record(net, {'x': 'bbox_head.relu'}) as records:
        net(image)
    assert min(tensor.min() for tensor in records['x']) >= 0


def test_overwritten_in_no_grad_is_refused_too(net: Net, image: Tensor) -> None:
    with (
        pytest.raises(ValueError, match='overwritten in place'),
        torch.no_grad(),
        record(net, {'x': 'bbox_head.conv'}),
    ):
        net(image)


def test_require_grad_refuses_a_frozen_part(net: Net, image: Tensor) -> None:
    net.backbone.layers[:2].requires_grad_(False)
    with record(net, {'x': 'backbone.layers.2'}, require_grad=True):
        net(image)
    with (
        pytest.raises(ValueError, match=r'frozen stage.*record a later module'),
        record(net, {'x': 'backbone.layers.1'}, require_grad=True),
    ):
        net(image)


@pytest.mark.parametrize('what', ['output', 'input'])
def test_module_without_tensors_is_a_type_error(
    net: Net, image: Tensor, what: str
) -> None:
    with (
        pytest.raises(
            TypeError, match=f"the {what} of 'bbox_head.meta' contains no tensor"
        ),
        record(net, {'x': dict(source='bbox_head.meta', what=what)}),
    ):
        net(image)
    assert not hooks_of(net)


def test_nothing_is_left_on_the_model(net: Net, image: Tensor) -> None:
    recorders = {'x': 'neck', 'y': dict(source='bbox_head', what='input')}
    with record(net, recorders, stop_early=True):
        assert hooks_of(net)
        net(image)
    assert not hooks_of(net)


def test_exception_of_the_block_passes_unchanged(net: Net, image: Tensor) -> None:
    error = KeyError('mine')

    def use(model: Callable) -> None:
        # The incomplete record must not hide the error.
        with record(net, {'x': 'unused'}, stop_early=True, require_grad=True):
            model(image)
            raise error

    with pytest.raises(KeyError) as caught:
        use(net)
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert not hooks_of(net)


def test_exception_of_the_forward_leaves_no_hooks(net: Net) -> None:
    with (
        pytest.raises(RuntimeError, match='channels'),
        record(net, {'x': 'neck', 'y': 'backbone'}, stop_early=True),
    ):
        net(torch.zeros(1, 5, 4, 4))
    assert not hooks_of(net)


def test_model_can_be_copied_and_saved_after_recording(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'neck'}) as records:
        net(image)
    torch.save(net, io.BytesIO())
    copied = copy.deepcopy(net)
    copied(image)
    assert not hooks_of(copied)
    assert len(records['x']) == 4


def test_every_use_starts_empty(net: Net, image: Tensor) -> None:
    for _ in range(2):
        with record(net, {'x': 'neck'}) as records:
            net(image)
        assert len(records['x']) == 4


def test_two_forwards_in_one_block_add_up(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'neck'}) as records:
        net(image)
        net(image)
    assert len(records['x']) == 8


def test_nested_records_of_one_model(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'neck'}) as outer:
        with record(net, {'x': 'backbone', 'y': 'neck'}) as inner:
            net(image)
        net(image)
    assert len(inner['x']) == len(inner['y']) == 4
    assert len(outer['x']) == 8
    assert not hooks_of(net)


def test_inner_stop_does_not_end_the_outer_block(net: Net, image: Tensor) -> None:
    reached = False
    with record(net, {'x': 'backbone'}) as outer:
        with record(net, {'x': 'backbone'}, stop_early=True):
            net(image)
        reached = True
    assert reached
    assert len(outer['x']) == 4


def test_outer_stop_ends_the_outer_block(net: Net, image: Tensor) -> None:
    with record(net, {'x': 'backbone'}, stop_early=True) as outer:
        with record(net, {'x': 'backbone.layers.0'}):
            net(image)
        never()
    assert len(outer['x']) == 4


@pytest.mark.parametrize(
    ('path', 'entries', 'unreached'),
    [
        ('neck', 4, 'bbox_head'),
        ('backbone', 4, 'neck'),
        ('backbone.layers[1]', 1, 'backbone.layers.2'),
        ('bbox_head.conv', 4, 'unused'),
        ('bbox_head.relu', 4, 'unused'),
        ('neck.conv', 4, 'bbox_head'),
        ('neck.up', 4, 'bbox_head'),
    ],
)
def test_stop_early(
    net: Net, image: Tensor, path: str, entries: int, unreached: str
) -> None:
    net.get_submodule(unreached).register_forward_pre_hook(never)
    recorder = dict(source=path, what='output')
    if path == 'bbox_head.conv':
        recorder['what'] = 'input'
    with record(net, {'x': recorder}, stop_early=True) as records:
        net(image)
        never()
    assert len(records['x']) == entries


def test_stop_waits_for_the_deepest_record(net: Net, image: Tensor) -> None:
    net.bbox_head.register_forward_pre_hook(never)
    recorders = {'a': 'backbone.layers[0]', 'b': 'neck', 'c': 'backbone'}
    with record(net, recorders, stop_early=True) as records:
        net(image)
    assert [len(records[name]) for name in 'abc'] == [1, 4, 4]


def test_stop_before_the_forward_of_an_uncalled_module(net: Net, image: Tensor) -> None:
    with (
        pytest.raises(ValueError, match='was not called'),
        record(net, {'x': 'unused', 'y': 'neck'}, stop_early=True),
    ):
        net(image)


def test_stopped_model_still_runs(net: Net, image: Tensor) -> None:
    expected = net(image)['scores'][0]
    with record(net, {'x': 'backbone'}, stop_early=True):
        net(image)
    assert torch.equal(net(image)['scores'][0], expected)
