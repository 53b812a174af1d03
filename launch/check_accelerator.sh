#!/usr/bin/env bash
# Tries a machine with a GPU or TPU: does it run, are its results those of the CPU, how fast is it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

usage() {
  cat <<'END'
usage: launch/check_accelerator.sh [--platform=NAME] [--out=FOLDER] [--dry-run]

  On the first device:

  1. configs/quickstart.py, from the search to an image without rain
  2. 20 steps of search and of training, whose losses may differ from the CPU's by 1%
  3. seconds and memory of the steps of `small` and of a 320x480 image

  --platform=NAME  as JAX calls it: cuda (default), rocm or tpu
  --out=FOLDER     of the results; default: runs/check_PLATFORM
END
}

platform=cuda out=""
while (($#)); do
  case $1 in
    --platform=*) platform=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --dry-run) dry_run=true ;;
    help | --help)
      usage
      exit
      ;;
    *) die "$1: unknown (launch/check_accelerator.sh help)" ;;
  esac
  shift
done
[[ $platform =~ ^[a-z]+$ ]] || die "--platform=$platform: give JAX's name, such as cuda"
out=${out:-runs/check_$platform}
[[ ! -e $out ]] || die "$out exists already: remove it, or give another --out"
python=${PYTHON:-python}

# Without this JAX would fall back to the CPU, and all would seem well.
export JAX_PLATFORMS=$platform
if ! $dry_run; then
  device=$("$python" -c "import jax; print(jax.devices()[0].device_kind)" 2>/dev/null) ||
    die "JAX finds no device of the platform $platform: install requirements-gpu.txt or" \
      "requirements-tpu.txt, and see that the machine's driver works"
  say "$device"
fi
run "$python" -m manas_jax.main --config=configs/quickstart.py --config.devices=1 \
  --workdir="$out/quickstart"
# It starts processes of both platforms.
run env -u JAX_PLATFORMS "$python" -m benchmarks.agreement --platform="$platform" \
  --out="$out/agreement.json"
run "$python" -m benchmarks.speed search_first_order_small train_small inference_320x480_small \
  --out="$out/speed.json"
$dry_run || say "$device: everything ran; the figures are in $out"
