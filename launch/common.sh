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

# redact FLAG...: sets `redacted`, the flags with *** for secrets; see redacted() in common.py.
redact() {
  local flag shown before=""
  local words='(token|secret|passw|credential|api[-_]?key)'
  local secret="^[^=]*${words}[^=]*" user='^(.*://)[^/[:space:]]*@(.*)$'
  local query="^(.*[?&][^=&]*($words|sig)[^=&]*=)([^&*][^&]*)(.*)$"
  redacted=()
  shopt -s nocasematch
  for flag in "$@"; do
    shown=$flag
    if [[ $before == -* && $before =~ $secret$ ]]; then
      shown="***"
    elif [[ $flag =~ $secret= ]]; then
      shown="${flag%%=*}=***"
    elif [[ $flag =~ $user ]]; then
      shown="${BASH_REMATCH[1]}***@${BASH_REMATCH[2]}"
    fi
    while [[ $shown =~ $query ]]; do
      shown="${BASH_REMATCH[1]}***${BASH_REMATCH[5]}"
    done
    redacted+=("$shown")
    before=$flag
  done
  shopt -u nocasematch
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
  local file=${config%%:*}
  [[ -f $file || ($file =~ ^[a-zA-Z0-9_]+$ && -f configs/$file.py) ]] ||
    die "--config=$config: no such file"
  [[ $workdir ]] || die "--workdir=... is missing after --"
}

# restartable STATUS: whether the same command would resume.
restartable() {
  (($1 == PREEMPTED || ($1 > 128 && $1 != CANCELLED)))
}
