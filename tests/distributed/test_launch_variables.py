import os

import pytest

from kdtoolbox.runs.command_line import _name_as_torchrun

NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
MPI = [f'OMPI_COMM_WORLD_{name}' for name in ('RANK', 'SIZE', 'LOCAL_RANK')]
SLURM = ['SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID']


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that what a test sets is taken back.
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.mark.parametrize(('launcher', 'theirs'), [('mpi', MPI), ('slurm', SLURM)])
def test_ranks_of_a_launcher_get_the_names_that_torch_reads(
    launcher: str, theirs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip([*theirs, 'MASTER_ADDR'], '341a', strict=True):
        monkeypatch.setenv(name, value)
    # `run_config` has set this one before.
    monkeypatch.setenv('LOCAL_RANK', '0')
    _name_as_torchrun(launcher)
    assert [os.environ[name] for name in NAMES] == ['3', '4', '1', 'a', '29500']


def test_what_torchrun_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ['1', '2', '1', 'node7', '1234']
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    _name_as_torchrun('pytorch')
    assert [os.environ[name] for name in NAMES] == values
