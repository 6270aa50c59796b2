"""The files that a forge and other tools read, beside the code."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdtoolbox import __version__

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / '.github'
FORMS = ('bug.yml', 'method.yml')


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_citation_and_the_changelog_have_the_version_of_the_package() -> None:
    headings = re.findall(r'^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    citation = read(ROOT / 'CITATION.cff')
    assert citation['version'] == __version__
    assert headings[0] == 'Unreleased'
    assert headings[1] == f'{__version__} - {citation["date-released"]}'


@pytest.mark.parametrize('name', FORMS)
def test_an_issue_form_asks_each_question_once(name: str) -> None:
    form = read(GITHUB / 'ISSUE_TEMPLATE' / name)
    assert form['name']
    assert form['description']
    names = [question['id'] for question in form['body']]
    assert len(names) == len(set(names)) > 4
    for question in form['body']:
        assert question['attributes']['label']


def test_the_commands_and_pages_that_the_forms_name_exist() -> None:
    texts = [path.read_text() for path in GITHUB.rglob('*.*')]
    named = re.findall(r'\b((?:tools|docs)/[\w.-]+\.(?:py|md))', ' '.join(texts))
    assert {'tools/versions.py', 'docs/writing-a-method.md'} <= set(named)
    for name in named:
        assert (ROOT / name).is_file(), name


def test_the_choice_of_issue_forms_is_read() -> None:
    choice = read(GITHUB / 'ISSUE_TEMPLATE/config.yml')
    for link in choice['contact_links']:
        assert link.keys() == {'name', 'url', 'about'}
        assert link['url'].startswith('https://')


def test_the_workflow_runs_what_ci_runs_and_nothing_else() -> None:
    workflow = read(GITHUB / 'workflows/ci.yml')
    # YAML reads the key `on` as True.
    assert {'push', 'pull_request'} <= workflow[True].keys()
    [job] = workflow['jobs'].values()
    commands = [step['run'] for step in job['steps'] if 'run' in step]
    assert commands == ['bash .ci/run']
    assert (ROOT / '.ci/run').is_file()
    [python] = [
        step['with']['python-version']
        for step in job['steps']
        if 'python-version' in step.get('with', {})
    ]
    assert python == '3.11'
    assert job['timeout-minutes'] > 0
    assert workflow['concurrency']['group']


def test_pre_commit_runs_the_commands_of_make_check() -> None:
    """A hook from elsewhere would have a version of its own."""
    text = (ROOT / 'Makefile').read_text().partition('\ncheck:')[2].partition('\n\n')[0]
    checks = re.findall(r'^\t\$\(PY\) -m (.*)$', text, re.M)
    repositories = read(ROOT / '.pre-commit-config.yaml')['repos']
    assert [repository['repo'] for repository in repositories] == ['local']
    entries = [hook['entry'] for hook in repositories[0]['hooks']]
    assert [entry.replace(' --force-exclude', '') for entry in entries] == [
        '.venv/bin/python -m ' + check.replace(' --check', '').removesuffix(' .')
        for check in checks
    ]


@pytest.mark.e2e
def test_the_tool_for_bug_reports_prints_the_names_of_the_packages() -> None:
    done = subprocess.run(
        [sys.executable, 'tools/versions.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines['kdtoolbox'].startswith(f'{__version__}, commit ')
    assert 'mmcv ' in lines['mmcv']
    assert lines['torch'].startswith('torch ')
