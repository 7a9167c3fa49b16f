# make demo   set up, run the main job end to end, no download
# make test   set up, run the test suite
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: install test test-slow fuzz lint format demo clean

install: $(STAMP)

# An environment without pip is what stays where Debian's python3-venv is missing: it is made again.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, and HilDA needs 3.11 or \
newer: make PYTHON=python3.12" % sys.version_info[:2])
$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv $(VENV); }
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e '.[all,dev]'
	@touch $@

# Two processes of one thread: threads of one test would wait for those of the other.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

test-slow: install
	$(PY) -m pytest -q -m slow

# Every parser of strangers' bytes for SECONDS each (docs/faults.md)
SECONDS := 120
fuzz: install
	$(PY) -m pip install -q -e '.[fuzz]'
	$(PY) fuzz/run.py --seconds $(SECONDS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# A synthetic drive -> its teacher cache -> two pre-trained students, HilDA's and ScaLR's base -> probes -> a report.
# The last scene is held out for judging. Begun anew each time, so that what is seen is what these commands make.
override DEMO := demo-out
TEACHER := pipeline/hilda_cache/teachers/demo
HELD_OUT := --set 'data.held_out=["scene-0005"]'
BASE := --set student.levels=[block8] --set objectives.global_context.weight=0 --set 'objectives.occupancy={kind: none}'
PROBE := -c $(DEMO)/cache --classes coarse8 --protocol quick
demo: install
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(VENV)/bin/hilda-cache synth $(DEMO)/drive --scenes 5 --frames 12
	$(VENV)/bin/hilda-cache extract $(DEMO)/drive -d nuscenes -t demo=$(TEACHER) --layers -2,-1 \
	  --image-size 224x392 -o $(DEMO)/cache
	$(VENV)/bin/hilda-cache verify $(DEMO)/cache
	$(VENV)/bin/hilda-cache show $(DEMO)/cache --frame 53 --root $(DEMO)/drive -o $(DEMO)/features.png
	$(VENV)/bin/hilda-train fit demo -c $(DEMO)/cache -o $(DEMO)/run $(HELD_OUT)
	$(VENV)/bin/hilda-train fit demo -c $(DEMO)/cache -o $(DEMO)/base $(HELD_OUT) $(BASE)
	$(VENV)/bin/hilda-train probe random --like $(DEMO)/run $(PROBE) -o $(DEMO)/random.json
	$(VENV)/bin/hilda-train probe $(DEMO)/base $(PROBE) -o $(DEMO)/base.json
	$(VENV)/bin/hilda-train probe $(DEMO)/run $(PROBE) -o $(DEMO)/hilda.json
	$(VENV)/bin/hilda-train report $(DEMO)/run -c $(DEMO)/cache -p $(DEMO)/features.png -o $(DEMO)/report.html \
	  --result $(DEMO)/random.json --result $(DEMO)/base.json --result $(DEMO)/hilda.json
	@echo "open $(DEMO)/report.html (features: $(DEMO)/features.png)"

clean:
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
