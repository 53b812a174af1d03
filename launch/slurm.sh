#!/usr/bin/env bash
# Submits a run to a Slurm cluster: slurm.sbatch, with the options checked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

usage() {
  cat <<'END'
usage: launch/slurm.sh --nodes=N --gpus-per-node=N --time=TIME [OPTIONS] -- FLAGS

  --nodes=N           how many machines
  --gpus-per-node=N   one process each; 0: one process a machine, on its CPU
  --time=TIME         limit, [DAYS-]HOURS:MINUTES:SECONDS; the run saves before it, and requeues
  --partition=NAME, --account=NAME, --cpus-per-task=N
                      as the cluster requires them
  --restarts=N        maximum number of times it requeues; default: 10
  --dry-run           print what would run, run nothing

FLAGS are those of manas_jax.main: --config=FILE --workdir=DIR [--config.KEY=VALUE ...]
END
}

nodes="" gpus="" limit="" restarts=10 flags=() more=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --time=*) limit=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --partition=?* | --account=?* | --cpus-per-task=?*) more+=("$1") ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      usage
      exit
      ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    *) die "$1: unknown (launch/slurm.sh --help)" ;;
  esac
  shift
done

[[ $nodes =~ ^[1-9][0-9]*$ ]] || die "--nodes=$nodes: give a whole number"
[[ $gpus =~ ^(0|[1-9][0-9]*)$ ]] || die "--gpus-per-node=$gpus: give a whole number"
[[ $limit =~ ^([0-9]+-)?[0-9]{1,2}:[0-5][0-9]:[0-5][0-9]$ ]] ||
  die "--time=$limit: give [DAYS-]HOURS:MINUTES:SECONDS"
[[ $restarts =~ ^(0|[1-9][0-9]*)$ ]] || die "--restarts=$restarts: give a whole number"
check_run_flags "${flags[@]}"
need sbatch
$dry_run || [[ -x .venv/bin/python ]] || die ".venv/bin/python is missing: install as README.md says"

if $dry_run; then
  redact "${flags[@]}"
  flags=("${redacted[@]}")
fi
if ((gpus)); then
  more=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus" "${more[@]}")
else
  more=(--ntasks-per-node=1 "${more[@]}")
fi
run sbatch --nodes="$nodes" --time="$limit" "${more[@]}" --export=ALL,RESTARTS="$restarts" \
  launch/slurm.sbatch "${flags[@]}"
