# shellcheck shell=bash
# What tpu.sh and slurm.sh share; common.py is the same for Python. Sourced, not run.

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash $BASH_VERSION is too old: 5.0 or later is needed" >&2
  exit 2
fi

PREEMPTED=75 # as manas_jax.runtime.signals has it: saved, and the same command goes on from there
CANCELLED=130 # Ctrl-C
dry_run=false

die() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "launch: $*" >&2
}

# need TOOL: it is only needed where something is really run.
need() {
  $dry_run || command -v "$1" >/dev/null || die "$1 is not installed; --dry-run works without it"
}

# run COMMAND...: prints it in a dry run, runs it otherwise.
run() {
  if $dry_run; then shown "$@"; else "$@"; fi
}

# shown WORD...: one line that a shell would read as these words.
shown() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# hide FLAG...: sets `hidden`, the flags with *** for values whose names speak of secrets.
hide() {
  local flag before=""
  local secret='^-[^=]*(token|secret|passw|credential|api[-_]?key)[^=]*'
  hidden=()
  for flag in "$@"; do
    if [[ ${before,,} =~ $secret$ ]]; then
      hidden+=("***")
    elif [[ ${flag,,} =~ $secret= ]]; then
      hidden+=("${flag%%=*}=***")
    else
      hidden+=("$flag")
    fi
    before=$flag
  done
}

# check_run_flags FLAG...: whether `python -m manas_jax.main` could run with them, from here.
check_run_flags() {
  local flag config="" workdir=""
  for flag in "$@"; do
    case $flag in
      --config=*) config=${flag#*=} ;;
      --workdir=*) workdir=${flag#*=} ;;
      --coordinator | --coordinator=* | --process | --process=* | --processes | --processes=* | \
        --distributed | --distributed=*)
        die "${flag%%=*} is set by the launcher: leave it out"
        ;;
    esac
  done
  [[ $config ]] || die "--config=... is missing after --"
  [[ -f ${config%%:*} ]] || die "--config=$config: no such file"
  [[ $workdir ]] || die "--workdir=... is missing after --"
}

# restartable STATUS: whether the same command, started again, goes on.
restartable() {
  (($1 == PREEMPTED || ($1 > 128 && $1 != CANCELLED)))
}
