# shellcheck shell=bash
# What tpu.sh and slurm.sh share; common.py is its counterpart in Python. Sourced, not run.

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash $BASH_VERSION is too old: 5.0 or later is needed" >&2
  exit 2
fi

PREEMPTED=75 # as in manas_jax.runtime.signals: saved, the same command resumes
CANCELLED=130 # Ctrl-C
dry_run=false

die() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "launch: $*" >&2
}

# need TOOL: exits if it is missing, except in a dry run.
need() {
  $dry_run || command -v "$1" >/dev/null || die "$1 is not installed; --dry-run works without it"
}

# run COMMAND...: runs it, or prints it in a dry run.
run() {
  if $dry_run; then shell_line "$@"; else "$@"; fi
}

# shell_line WORD...: prints the words in one line, quoted for a shell.
shell_line() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# redact FLAG...: sets `redacted`, the flags with *** for the values of flags named like secrets.
redact() {
  local flag before=""
  local secret='^-[^=]*(token|secret|passw|credential|api[-_]?key)[^=]*'
  redacted=()
  for flag in "$@"; do
    if [[ ${before,,} =~ $secret$ ]]; then
      redacted+=("***")
    elif [[ ${flag,,} =~ $secret= ]]; then
      redacted+=("${flag%%=*}=***")
    else
      redacted+=("$flag")
    fi
    before=$flag
  done
}

# check_run_flags FLAG...: exits if `python -m manas_jax.main` could not run with them from here.
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

# restartable STATUS: whether the same command would resume.
restartable() {
  (($1 == PREEMPTED || ($1 > 128 && $1 != CANCELLED)))
}
