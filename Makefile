# make demo [TASK=det|seg] [METHOD=pkd]       distil on DigitScenes and show the result
# make test [ARGS='-k packaging'] [JOBS=2]    the whole test suite, in JOBS processes
# make check                                  format, lint and types
# make audit                                  check the pins for known vulnerabilities
# make docs                                   build the docs in docs/_build/html
# make teachers                               train the shipped teachers again
# make gpu                                    on a GPU: its tests, and the time of six recipes
#
# The first command makes .venv. PYTHON=/path/to/python3.11 chooses its interpreter.
# STACK=openmmlab uses the original packages instead of the forks, in .venv-openmmlab.
# PY=/path/to/python uses your own environment and skips the set-up.

TASK := det
METHOD :=
ARGS :=
JOBS := 2
PYTHON ?=
STACK := forks
VENV_forks := .venv
VENV_openmmlab := .venv-openmmlab
VENV := $(or $(VENV_$(STACK)),$(error STACK is $(STACK), not forks or openmmlab))
STAMP := $(VENV)/.set-up

ifeq ($(origin PY),command line)
# kdtoolbox need not be installed in that environment.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
SET_UP :=
else
PY := $(VENV)/bin/python
SET_UP := $(STAMP)
endif

.PHONY: help demo test check audit docs teachers gpu

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(SET_UP)
	$(PY) tools/demo.py --task $(TASK) $(if $(METHOD),--method $(METHOD))

test: $(SET_UP)
	$(PY) -m pytest -n $(JOBS) --dist loadgroup --durations=40 $(ARGS)

check: $(SET_UP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# --strict: fail for a package that PyPI does not know.
audit: $(SET_UP)
	$(if $(SET_UP),$(PY) -m pip install -q -c requirements/constraints.txt -r requirements/audit.txt)
	$(PY) -m pip_audit --strict --no-deps --disable-pip -r requirements/constraints.txt

docs: $(SET_UP)
	$(if $(SET_UP),$(PY) -m pip install -q -c requirements/constraints.txt -r requirements/docs.txt)
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

teachers: $(SET_UP)
	$(PY) tools/make_teachers.py

GPU_RECIPES := pkd/pkd_fpn_gfl_r101_gfl_r50_1x_coco \
	fgd/fgd_fpn_retina_x101_retina_r50_2x_coco \
	crosskd/crosskd_head_gfl_r101_gfl_r50_1x_coco \
	cwd/cwd_fpn_frcnn_r101_frcnn_r50_2x_coco \
	cwd/cwd_logits_pspnet_r101_pspnet_r18_80k_cityscapes-512x1024 \
	cirkd/cirkd_bottleneck_deeplabv3_r101_deeplabv3_r18_80k_cityscapes-512x1024

gpu: $(SET_UP)
	@$(PY) -c 'import torch; exit(0 if torch.cuda.is_available() else \
	"make gpu: no CUDA device is there; expected torch.cuda.is_available() to be True. Use a machine with a GPU and a torch built for CUDA.")'
	$(PY) -m pytest -m gpu tests/gpu $(ARGS)
	@mkdir -p work_dirs/gpu
	set -e; for recipe in $(GPU_RECIPES); do \
	    $(PY) tools/benchmark.py step configs/$$recipe.py --device cuda \
	        --json work_dirs/gpu/$$(basename $$recipe).json; \
	done

$(STAMP): $(wildcard requirements/*.txt) setup.py tools/set_up.sh
	@STACK='$(STACK)' PYTHON='$(PYTHON)' bash tools/set_up.sh
