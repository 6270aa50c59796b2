#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]; GPUS,
# GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS tell srun about the job, PYTHON which interpreter to use.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [flags]" >&2; exit 2; }
here=$(dirname "$0")
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
PYTHONPATH="$here/..:${PYTHONPATH:-}" srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$here/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
