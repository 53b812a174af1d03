#!/usr/bin/env bash
# Cloud TPU VMs and pod slices, by queued resources.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

usage() {
  cat <<'END'
usage: launch/tpu.sh COMMAND --name=NAME --project=PROJECT --zone=ZONE [OPTIONS] [-- FLAGS]

  preflight  compile the run for TYPE on this machine, to see whether it fits; creates nothing
  create     request the TPU and wait until it is ready; from then on it is billed
  push       copy the last commit to all workers
  install    install its requirements on all workers
  run        run `python -m manas_jax.main --distributed FLAGS` on all workers
  resume     run, and restart after interruptions; create the TPU again after a preemption
  stop       tell all workers to save and exit
  status     the state of the TPU and its workers
  delete     delete the TPU and its disks; ends the billing

  --accelerator=TYPE   such as v5litepod-8, v5p-128, v6e-16 (preflight, create, resume)
  --runtime=VERSION    of the TPU software; default: the one for TYPE (create, resume)
  --spot               cheaper, may be preempted at any time (create, resume)
  --nfs=HOST:/SHARE    a file share to mount as /mnt/runs on all workers (install, resume)
  --restarts=N         maximum number of restarts of resume; default: 10
  --dry-run            print what would run, run nothing

Options that a command does not need are ignored, so that one list of options serves all.
FLAGS are those of manas_jax.main: --config=FILE --workdir=DIR [--config.KEY=VALUE ...]
END
}

name="" project="" zone="" accelerator="" runtime="" nfs="" restarts=10
spot=() flags=()

parse() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --accelerator=*) accelerator=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --nfs=*) nfs=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --spot) spot=(--spot) ;;
      --dry-run) dry_run=true ;;
      --)
        shift
        flags=("$@")
        return
        ;;
      *) die "$1: unknown (launch/tpu.sh help)" ;;
    esac
    shift
  done
}

# Finds all mistakes on the command line before anything is created.
check() {
  if [[ $command == preflight ]]; then
    check_accelerator
    check_run_flags "${flags[@]}"
    return
  fi
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "--name=$name: give small letters, digits and dashes, a letter first"
  [[ $project ]] || die "--project=... is missing"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone=$zone: give a zone, such as us-west4-a"
  [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts: give a whole number"
  [[ ! $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*$ ]] ||
    die "--nfs=$nfs: give HOST:/SHARE"
  case $command in
    create | resume)
      check_accelerator
      [[ $runtime ]] || runtime=$(runtime_of "$accelerator")
      ;;
  esac
  case $command in
    run | resume)
      check_run_flags "${flags[@]}"
      ;;
    *) ((${#flags[@]} == 0)) || die "$command takes no flags after --" ;;
  esac
  case $command in
    push | resume)
      git rev-parse --quiet --verify HEAD >/dev/null || die "push needs a git checkout"
      ;;
  esac
  need gcloud
}

check_accelerator() {
  [[ $accelerator =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] ||
    die "--accelerator=$accelerator: give a type, such as v5litepod-8"
}

# https://cloud.google.com/tpu/docs/runtimes
runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "--accelerator=$1: its software version is unknown here, give --runtime=..." ;;
  esac
}

queue() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" \
    --project="$project" --zone="$zone" "$@"
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" \
    --project="$project" --zone="$zone" --worker=all --command="$1"
}

# Empty if there is no such TPU; fails if gcloud cannot tell, and shows why.
state() {
  local errors status=0
  errors=$(mktemp)
  queue describe --format="value(state.state)" 2>"$errors" || status=$?
  if ((status)); then
    if grep -qi "not[_ ]found" "$errors"; then status=0; else tail -n 1 "$errors" >&2; fi
  fi
  rm -f "$errors"
  return "$status"
}

# As state, but waits until gcloud can tell.
wait_for_state() {
  until state; do
    say "gcloud cannot tell the state of $name, trying again"
    sleep "${POLL_SECONDS:-30}"
  done
}

preflight() {
  run "${PYTHON:-python}" -m manas_jax.preflight --topology="$accelerator" "${flags[@]}"
}

create() {
  local before
  if ! $dry_run; then
    before=$(state) || die "gcloud cannot tell whether $name exists"
    [[ ! $before ]] || die "$name exists already ($before): resume, or delete it"
    say "\`launch/tpu.sh preflight\` compiles a run for $accelerator here, before anything is billed"
  fi
  queue create --node-id="$name" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" "${spot[@]}" ||
    die "$name was not created; if \`launch/tpu.sh status\` finds it, delete it"
  await
}

# Waits until the TPU is ready, which can take days. Ctrl-C leaves the request in the queue.
await() {
  local now last=""
  if $dry_run; then
    queue describe --format="value(state.state)"
    return
  fi
  while now=$(wait_for_state) && [[ $now != ACTIVE ]]; do
    case $now in
      "" | FAILED | SUSPEND* | DELETING) die "$name is ${now:-gone}: delete it and try again" ;;
    esac
    [[ $now == "$last" ]] || say "$name is $now"
    last=$now
    sleep "${POLL_SECONDS:-30}"
  done
  say "$name is ready and billed until you delete it"
}

# A bundle rather than an archive, so that runs can record their commit.
push() {
  [[ ! $(git status --porcelain) ]] || say "uncommitted changes are not pushed"
  run mkdir -p build
  run git bundle create --quiet build/manas_jax.bundle HEAD
  run gcloud compute tpus tpu-vm scp build/manas_jax.bundle "$name:manas_jax.bundle" \
    --project="$project" --zone="$zone" --worker=all
  on_workers "git init -q manas_jax && cd manas_jax && git fetch -q ../manas_jax.bundle HEAD \
&& git checkout -qf FETCH_HEAD"
}

# The image's own Python is older than 3.11; uv installs one.
install() {
  local mount=""
  if [[ $nfs ]]; then
    mount="sudo apt-get install -qq nfs-common && sudo mkdir -p /mnt/runs \
&& { mountpoint -q /mnt/runs || sudo mount -t nfs $nfs /mnt/runs; } \
&& sudo chmod go+rwx /mnt/runs && "
  fi
  on_workers "${mount}cd manas_jax && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv \
&& python3 -m uv venv -q --allow-existing --python 3.11 .venv && python3 -m uv pip install -q \
--python .venv/bin/python -r requirements.txt \
-r requirements-gcs.txt -r requirements-tpu.txt"
}

# The lock: gcloud repeats a command whose connection broke, though it may still be running.
work() {
  on_workers "cd manas_jax && exec 9>../manas_jax.lock && flock 9 \
&& exec $(variables).venv/bin/python -m manas_jax.main --distributed $(shell_line "${flags[@]}")"
}

# With a workdir in a bucket compiled programs are there as well, as the TPU's disk is deleted with it.
variables() {
  local flag
  for flag in "${flags[@]}"; do
    [[ $flag == --workdir=gs://* ]] || continue
    flag=${flag#*=}
    echo "env $(shell_line "JAX_COMPILATION_CACHE_DIR=${flag%/}/compilation_cache") "
  done
}

stop() {
  on_workers "pkill -TERM -f '[.]venv/bin/python -m manas_jax' || echo nothing runs here"
}

status() {
  if $dry_run; then
    queue describe --format="value(state.state)"
  else
    local now
    now=$(state) || die "gcloud cannot tell the state of $name"
    echo "$name: ${now:-there is none}"
    [[ $now == ACTIVE ]] || return 0
  fi
  on_workers "pgrep -af '[.]venv/bin/python -m manas_jax' || echo nothing runs here"
}

delete() {
  queue delete --force --quiet || die "$name was not deleted, and may be billed: see status"
  $dry_run || say "$name is deleted"
}

# Prepares the TPU for a run, whatever its state.
ready() {
  local now
  if $dry_run; then
    echo "# if the TPU is missing or was preempted:"
    delete
    create
    push
    install
    echo "# then, and up to $restarts more times after interruptions:"
    return
  fi
  now=$(wait_for_state)
  case $now in
    ACTIVE) return ;;
    "") create ;;
    FAILED | SUSPEND*)
      say "$name is $now"
      delete
      create
      ;;
    *) await ;;
  esac
  push
  install
}

resume() {
  local code left
  for ((left = restarts; left >= 0; left--)); do
    ready
    code=0
    work || code=$?
    if $dry_run || ((code == 0)); then return 0; fi
    # A preempted TPU ends gcloud with a status of gcloud's own.
    if [[ $(state) == ACTIVE ]] && ! restartable "$code"; then break; fi
    ((left == 0)) || say "status $code: restarting, $((left - 1)) restarts left after this one"
  done
  return "$code"
}

command=${1:-help}
case $command in
  preflight | create | push | install | stop | status | delete | resume) action=$command ;;
  run) action=work ;;
  help | --help | -h)
    usage
    exit
    ;;
  *) die "$command: unknown (launch/tpu.sh help)" ;;
esac
shift
parse "$@"
check
if $dry_run; then
  redact "${flags[@]}"
  flags=("${redacted[@]}")
fi
$action
