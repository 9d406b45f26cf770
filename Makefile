# data/ -> embed/ -> cache/ -> train/ -> evaluate/ -> sweep/, audit/ -> report/, reward/

DATASET ?= demo
ENCODER ?= minilm
SOURCE  ?=
ARGS    ?=
PYTHON  ?= python3
TORCH   ?=
BIN      = .venv/bin
PAL      = $(BIN)/pal
MANIFEST = cache/$(DATASET)/$(ENCODER)/manifest.json
CHOICE   = --dataset $(DATASET) --encoder $(ENCODER)
NEEDS_RUN = @$(if $(RUN),:,echo 'say which run: make $@ RUN=name; pal runs ls lists them'; exit 2)
TORCH_INDEX = https://download.pytorch.org/whl/$(TORCH)
EXTRAS   = docs,offline,optuna,ray,serve,tensorboard,trl

.DEFAULT_GOAL = help
.PHONY: help setup demo data embed train sweep audit adapt evaluate report export docs notebooks versions check format test test-all typings dist bench clean FORCE

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo; echo 'Variables: DATASET=$(DATASET) ENCODER=$(ENCODER) SOURCE=path-of-raw-data ARGS="--set train.k=4 --json"'
	@echo 'pal is $(abspath $(PAL)); ". $(BIN)/activate" lets you type pal alone'

setup: .venv/ready  ## build .venv with every extra and the development tools; TORCH=cpu: without CUDA
.venv/ready: pyproject.toml constraints.txt
	@echo 'installing into .venv, which takes minutes; what pip says: .venv/install.log'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(if $(TORCH),$(BIN)/pip install --quiet --no-deps --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	@$(BIN)/pip install --constraint constraints.txt --group dev --editable '.[$(EXTRAS)]' > .venv/install.log 2>&1 \
		|| { tail -n 20 .venv/install.log; exit 1; }
	@$(MAKE) --no-print-directory typings
	@touch $@
	@echo 'pal is $(abspath $(PAL)); ". $(BIN)/activate" lets you type pal alone'

demo: .venv/ready  ## both stages on built-in data, in a few minutes on two cores
	$(PAL) demo $(ARGS)

data: .venv/ready  ## raw data -> data/$(DATASET)
	$(PAL) prepare --dataset $(DATASET) $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

embed: $(MANIFEST)  ## stage one: unique items -> cache/$(DATASET)/$(ENCODER)
# The command itself knows what is missing; it takes a second when nothing is, and the manifest keeps its time.
# For another goal it takes of ARGS what are settings: the rest is that goal's.
SETTINGS = $(shell printf '%s' '$(ARGS)' | grep -oE -- '--(set|config)[ =][^ ]+')
$(MANIFEST): FORCE .venv/ready
	@$(PAL) embed $(CHOICE) $(if $(SOURCE),--source $(SOURCE)) $(if $(filter embed,$(MAKECMDGOALS)),$(ARGS),$(SETTINGS))

train: $(MANIFEST)  ## stage two: cached features -> runs/
	$(PAL) train $(CHOICE) $(ARGS)

sweep: $(MANIFEST)  ## hundreds of heads from the cache -> sweeps/
	$(PAL) sweep $(CHOICE) $(ARGS)

audit: $(MANIFEST)  ## does $(DATASET) hold plurality, and would we have seen it -> audits/
	$(PAL) audit $(CHOICE) $(ARGS)

adapt: .venv/ready  ## few-shot weights for new users of RUN=name
	$(NEEDS_RUN)
	$(PAL) adapt --run $(RUN) $(ARGS)

evaluate: .venv/ready  ## metrics of RUNS="name name" with error bars
	$(PAL) evaluate $(foreach run,$(RUNS),--run $(run)) $(ARGS)

report: .venv/ready  ## one page to look at of NAMES="name name", or of DATASET -> reports/
	$(PAL) report $(NAMES) --dataset $(DATASET) $(ARGS)

export: .venv/ready  ## a reward model for other tools from RUN=name -> exports/
	$(NEEDS_RUN)
	$(PAL) export --run $(RUN) $(ARGS)

docs: .venv/ready typings  ## the site of docs/ -> site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: .venv/ready  ## execute docs/notebooks/*.py: what came out is on the site
	$(BIN)/pip install --quiet --constraint constraints.txt --group notebooks
	$(BIN)/python benchmarks/notebooks.py $(NAMES)

versions: .venv/ready  ## the oldest and the newest allowed versions, tested -> docs/results/versions.md
	$(BIN)/pip install --quiet --group versions
	$(BIN)/python benchmarks/versions.py $(ARGS)

check: .venv/ready typings  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=typings:benchmarks $(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks/*.py

format: .venv/ready  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# a process for each of two cores, and a thread for each process; WORKERS=0 for a debugger
WORKERS ?= 2
test: export OMP_NUM_THREADS = 1
test: .venv/ready  ## all tests but the long campaigns
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all: .venv/ready  ## the long campaigns too
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

typings:  ## let type checkers and editors resolve pal.embed -> embed/
	@rm -rf typings && mkdir -p typings/pal
	@ln -s $(addprefix ../../,$(wildcard pal/*.py pal/*.yaml pal/py.typed) $(patsubst %/__init__.py,%,$(wildcard pal/*/__init__.py)) data embed cache train evaluate sweep audit report reward) typings/pal/

dist: .venv/ready  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

bench: .venv/ready  ## speed of the cache against memcpy and its peers
	$(BIN)/python benchmarks/read_cache.py

clean:  ## remove everything that was built; data, caches and runs stay
	rm -rf .venv build dist site typings *.egg-info .pytest_cache .mypy_cache .ruff_cache
